"""What a caller is told of errors whose own message is the operator's: what happened, to which model, and what to do.

The errors' own messages hold folders, variables' names and a log's last lines; those are for the admin and the log.
"""

from __future__ import annotations

from collections.abc import Mapping

from taskrouter import errors

_TRY_ANOTHER = "ask for another option of the task, or tell the server's operator"

_TEXTS: Mapping[type[errors.TaskRouterError], str] = {
    errors.TaskRouterError: "{} could not be asked: tell the server's operator",
    errors.ModelUnavailable: f"{{}} can't be made ready: ask again later, {_TRY_ANOTHER}",
    errors.MissingDependency: f"{{}} needs software that isn't installed on the server: {_TRY_ANOTHER}",
    errors.PreflightFailed: f"{{}} can't be loaded as it is configured on the server: {_TRY_ANOTHER}",
    errors.CheckpointMissing: f"{{}} can't be loaded, as its files aren't on the server: {_TRY_ANOTHER}",
    errors.CheckpointCorrupt: f"{{}} can't be loaded, as its files on the server are damaged: {_TRY_ANOTHER}",
    errors.UnknownFramework: f"{{}} needs a framework that the server doesn't have: {_TRY_ANOTHER}",
    errors.BrokenBackend: f"{{}} needs a framework whose plug-in is broken on the server: {_TRY_ANOTHER}",
    errors.LoadFailed: f"{{}} failed to load: ask again later, {_TRY_ANOTHER}",
    errors.OutOfMemory: f"{{}} failed to load, as the device ran out of memory: ask again later, {_TRY_ANOTHER}",
    errors.SleepFailed: "{} did not wake, and was unloaded: ask again, which loads it anew",
    errors.ModelDied: "{} died while it served the request: ask again, which loads it anew",
    errors.ModelStuck: f"{{}} can't be loaded, as a load on the server is stuck: {_TRY_ANOTHER}",
    errors.CallFailed: f"{{}} failed to answer this request: look at what was sent, {_TRY_ANOTHER}",
    errors.ProviderFailed: f"the provider of {{}} could not answer: ask again later, {_TRY_ANOTHER}",
    errors.ProviderAuth: f"the provider of {{}} refuses the server's own key, or the server has none: {_TRY_ANOTHER}",
    errors.ProviderQuota: "the rate limit or quota of {}'s provider is spent: ask again later, or another option",
    errors.ProviderOverloaded: "the provider of {} is overloaded or broken: ask again later, or another option",
    errors.ProviderTimeout: "the provider of {} did not answer in time: ask again, or another option",
    errors.ProviderUnreachable: "there is no connection to the provider of {}: ask again later, or another option",
    errors.ProviderBrokeOff: "the connection to the provider of {} broke; it may have worked on the request: ask again "
                             "where that does no harm",
    errors.ProviderProtocol: f"the provider of {{}} answered with what isn't its API: ask again, {_TRY_ANOTHER}",
    errors.BudgetSpent: "what may be spent at the provider of {} today is spent: ask again tomorrow, or another option",
    errors.DeviceInUse: "{} needs a GPU that another process manages: tell the server's operator",
}  # fmt: skip
"""By class, for those below it too. ``{}``: the model."""


def told_of(error: errors.TaskRouterError, model: str) -> str:
    """A sentence for the caller; ``model``: the task and option it asked, or nothing where that isn't known."""
    text = next(_TEXTS[kind] for kind in type(error).__mro__ if kind in _TEXTS)
    return text.replace("{}", model or "the model")
