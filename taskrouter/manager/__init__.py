"""The manager: it performs what the residency core decides, and is what callers hold."""

from taskrouter.manager.budget import Budget, DeviceFit, Fit, OptionFit
from taskrouter.manager.handles import Model
from taskrouter.manager.leases import Lease
from taskrouter.manager.machine import Machine, StillMachine, ThisMachine
from taskrouter.manager.manager import ModelManager
from taskrouter.manager.statistics import Statistics
from taskrouter.manager.streams import Stream
from taskrouter.manager.watching import Happened

__all__ = [
    "Budget",
    "DeviceFit",
    "Fit",
    "Happened",
    "Lease",
    "Machine",
    "Model",
    "ModelManager",
    "OptionFit",
    "Statistics",
    "StillMachine",
    "Stream",
    "ThisMachine",
]
