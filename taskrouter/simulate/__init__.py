"""The rehearsal: the real residency core on a virtual clock, fed with a trace. Lines in, figures out; pure."""

from taskrouter.simulate.house import House, Served
from taskrouter.simulate.readers import Reading, Rule, read_trace, rule
from taskrouter.simulate.report import DeviceReport, Report, TaskReport
from taskrouter.simulate.run import Simulation, simulate
from taskrouter.simulate.synthetic import KINDS, SHIPPED, synthetic
from taskrouter.simulate.traces import Broken, Request, Told, Trace

__all__ = [
    "KINDS",
    "SHIPPED",
    "Broken",
    "DeviceReport",
    "House",
    "Reading",
    "Report",
    "Request",
    "Rule",
    "Served",
    "Simulation",
    "TaskReport",
    "Told",
    "Trace",
    "read_trace",
    "rule",
    "simulate",
    "synthetic",
]
