"""From an error to what routing makes of it: the one table that tells them apart."""

from __future__ import annotations

from taskrouter import errors
from taskrouter.routing import Fault
from taskrouter.verbs import Passed, Why

FAULTS: tuple[tuple[type[Exception], Fault, Why | None], ...] = (
    (errors.UnsupportedInput, Fault.UNABLE, None),
    (errors.UnsupportedVerb, Fault.UNABLE, None),
    (errors.MediaTooLarge, Fault.UNABLE, None),
    (errors.BadInput, Fault.BAD_REQUEST, None),
    (errors.KeyMissing, Fault.NO_KEY, None),
    (errors.ProviderAuth, Fault.AUTH, None),
    (errors.ProviderQuota, Fault.QUOTA, None),
    (errors.BudgetSpent, Fault.BUDGET, None),
    (errors.ProviderOverloaded, Fault.OVERLOAD, None),
    (errors.ProviderTimeout, Fault.TIMEOUT, None),
    (errors.ProviderBrokeOff, Fault.BROKE_OFF, None),
    (errors.ProviderUnreachable, Fault.CONNECTION, None),
    (errors.ProviderFailed, Fault.BROKEN, None),
    (errors.ManagerClosed, Fault.FINAL, None),
    (errors.MissingDependency, Fault.NOT_READY, Why.UNAVAILABLE),
    (errors.PreflightFailed, Fault.NOT_READY, Why.UNAVAILABLE),
    (errors.InsufficientMemory, Fault.NOT_READY, Why.CANT_FIT),
    (errors.CoolingDown, Fault.NOT_READY, Why.COOLDOWN),
    (errors.ModelDied, Fault.BROKEN, None),
    (errors.ModelUnavailable, Fault.NOT_READY, None),
    (errors.ReaderGone, Fault.FINAL, None),
    (errors.CallFailed, Fault.BROKEN, None),
)
"""The first class that fits decides. What is in none of them is nobody's to route: it is raised as it is."""

ERRORS: dict[Why, type[errors.TaskRouterError]] = {
    Why.BREAKER: errors.CoolingDown,
    Why.COOLDOWN: errors.CoolingDown,
    Why.RATE_LIMIT: errors.ProviderQuota,
    Why.BUDGET: errors.BudgetSpent,
    Why.UNABLE: errors.UnsupportedInput,
    Why.TOO_SLOW: errors.Overloaded,
    Why.CANT_FIT: errors.InsufficientMemory,
}
"""What a task's only option is refused with, where it wasn't even tried."""


def fault_of(error: BaseException) -> tuple[Fault, Why | None]:
    """What an error says of the option; the reason shown, where it isn't the fault's own."""
    for kind, fault, why in FAULTS:
        if isinstance(error, kind):
            return fault, why
    return Fault.FINAL, None


def refusal(task: str, passed: tuple[Passed, ...], raised: dict[str, Exception]) -> Exception:
    """The one error of a request that no option is left for; an only option's own error stays what it is."""
    if len(passed) == 1:
        (only,) = passed
        own = raised.get(only.option)
        if own is not None:
            return own
        text = f"{task}/{only.option}: {only.text}"
        return ERRORS.get(only.why, errors.ModelUnavailable)(text, retry_after_s=only.retry_after_s)
    waits = [each.retry_after_s for each in passed if each.retry_after_s is not None]
    reasons = "; ".join(str(each) for each in passed)
    found = errors.NoOptionLeft(
        f"no option of {task!r} could answer: {reasons}", retry_after_s=min(waits, default=None), passed=passed
    )
    found.__cause__ = next(iter(raised.values()), None)
    return found
