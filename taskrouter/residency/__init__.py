"""The heart: what is resident, who waits, who goes. Pure: events and ``now`` in, actions out."""

from taskrouter.residency.books import HOST_BUDGET, MODEL_SLOTS, DeviceBooks, ModelStatus, Settings, Snapshot, State
from taskrouter.residency.core import Residency

__all__ = ["HOST_BUDGET", "MODEL_SLOTS", "DeviceBooks", "ModelStatus", "Residency", "Settings", "Snapshot", "State"]
