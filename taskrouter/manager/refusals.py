"""From a refusal of the core to the error its callers get. A fresh one for each: tracebacks must not be shared."""

from __future__ import annotations

import copy

from taskrouter import errors
from taskrouter.residency.actions import Refusal
from taskrouter.residency.events import Reason

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
    Reason.REMOVED: errors.Unloaded,
    Reason.SHUTDOWN: errors.ManagerClosed,
    Reason.UNKNOWN_MODEL: errors.UnknownOption,
}


def error_of(refusal: Refusal) -> errors.TaskRouterError:
    """The typed error of a refusal; what the backend raised keeps its own class, and is chained."""
    cause = refusal.error
    if isinstance(cause, errors.TaskRouterError):
        try:
            return fresh(cause)
        except Exception:  # noqa: BLE001  (a plug-in's error that can't be copied must not cost its callers their answer)
            pass
    error = _CLASSES[refusal.reason](refusal.message, retry_after_s=refusal.retry_after_s)
    error.__cause__ = cause
    return error


def fresh(error: errors.TaskRouterError) -> errors.TaskRouterError:
    """The same error once more: one that several callers raise would collect all their tracebacks."""
    another = copy.copy(error)
    another.__cause__ = error.__cause__
    return another
