"""From a refusal of the core to the error its callers get. A fresh one for each: tracebacks must not be shared."""

from __future__ import annotations

from taskrouter import errors
from taskrouter.residency.events import Reason, Refusal

_CLASSES: dict[Reason, type[errors.TaskRouterError]] = {
    Reason.TOO_LARGE: errors.InsufficientMemory,
    Reason.NO_ROOM: errors.InsufficientMemory,
    Reason.PINNED: errors.AllPinned,
    Reason.OWN_LEASE: errors.WouldDeadlock,
    Reason.DEADLINE: errors.Overloaded,
    Reason.COOLDOWN: errors.CoolingDown,
    Reason.STUCK: errors.ModelStuck,
    Reason.PREFLIGHT: errors.PreflightFailed,
    Reason.LOAD_FAILED: errors.LoadFailed,
    Reason.OUT_OF_MEMORY: errors.OutOfMemory,
    Reason.DIED: errors.ModelDied,
    Reason.RETIRED: errors.Unloaded,
    Reason.SHUTDOWN: errors.ManagerClosed,
    Reason.UNKNOWN_MODEL: errors.UnknownOption,
}


def error_of(refusal: Refusal) -> errors.TaskRouterError:
    """The typed error of a refusal; what the backend raised keeps its own class, and is chained."""
    cause = refusal.error
    kind = type(cause) if isinstance(cause, errors.TaskRouterError) else _CLASSES[refusal.reason]
    error = kind(refusal.message, retry_after_s=refusal.retry_after_s)
    if cause is not None:
        error.__cause__ = cause.__cause__ if isinstance(cause, errors.TaskRouterError) else cause
    return error
