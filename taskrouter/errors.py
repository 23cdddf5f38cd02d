"""One tree of errors.

Every class carries ``status_hint``, the HTTP status it is translated to at the one place where errors become
responses, and every message says what happened, to which model, and what to do about it. Classes also inherit the
built-in exception that code written against the older, task-keyed managers catches (``ValueError`` for an unknown
task, ``RuntimeError`` for memory, ``TimeoutError`` for a deadline).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class TaskRouterError(Exception):
    """The root: everything this library raises on purpose.

    ``retry_after_s`` is the number of seconds after which asking again makes sense, or ``None`` where it doesn't.
    """

    status_hint: ClassVar[int] = 500
    code: str = "task_router_error"
    """What it is called where it crosses a wire: the class's own name in small letters, unless it says otherwise."""
    retry_after_s: float | None = None

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __init_subclass__(cls) -> None:
        if "code" not in cls.__dict__:
            cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


# --- the configuration file -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a configuration file, and where it is.

    ``line`` and ``column`` count from 1; 0 where the problem belongs to the file as a whole. ``path`` is the key's
    path, such as ``tasks.detect.options.detr.vram_gb``.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        path = f" {self.path}:" if self.path else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}:{path} {self.message}{hint}"


class ConfigError(TaskRouterError, ValueError):
    """The configuration file can't be used; ``problems`` holds everything that is wrong with it, found in one pass."""

    status_hint = 400

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfigNotFound(ConfigError, FileNotFoundError):
    """There is no configuration file at that path."""

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


# --- asking for the wrong thing ---------------------------------------------------------------------------------------


class UnknownTask(TaskRouterError, ValueError):
    """No task of that name in the configuration."""

    status_hint = 404


class UnknownOption(TaskRouterError, ValueError):
    """The task has no option of that name."""

    status_hint = 404


class NotExternal(TaskRouterError, ValueError):
    """The task's selected option is not an external API."""

    status_hint = 400


class UnsupportedVerb(TaskRouterError, ValueError):
    """The option can't do what was asked of it (``detect`` on a chat model); said before anything is loaded."""

    status_hint = 400


class BadInput(TaskRouterError, ValueError):
    """What was given to the model can't be used: an image that is no image, audio cut short, a nonsensical argument."""

    status_hint = 400


class MediaTooLarge(BadInput):
    """The input is over a limit of ``media:`` (bytes, pixels or seconds)."""

    status_hint = 413


class UnsupportedInput(BadInput):
    """The option can't take this kind of input (an image for a model of text, tools, a schema); another one may.

    ``param`` is the request's field that it is about, where that is one.
    """

    status_hint = 422

    def __init__(self, message: str, *, retry_after_s: float | None = None, param: str | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.param = param


class ContextTooLong(UnsupportedInput):
    """The request is longer than the option's context; another one's may be longer."""

    status_hint = 400
    code = "context_length_exceeded"  # as OpenAI's clients know it


# --- getting a model ready --------------------------------------------------------------------------------------------


class ModelUnavailable(TaskRouterError):
    """The root of everything that keeps a model from being ready."""

    status_hint = 503


class MissingDependency(ModelUnavailable, ImportError):
    """The option's framework or provider isn't installed; the message names the extra that brings it."""

    status_hint = 501


class PreflightFailed(ModelUnavailable):
    """The option can't be loaded as it is written, found out before anything was evicted for it."""

    status_hint = 424


class CheckpointMissing(PreflightFailed):
    """The model's files aren't there: no such folder, not in the cache while offline, a shard is missing."""


class CheckpointCorrupt(PreflightFailed):
    """The model's files are there and can't be used: a truncated safetensors file, unreadable JSON."""


class UnknownFramework(PreflightFailed, ValueError):
    """No backend of that name is installed."""

    status_hint = 501


class BrokenBackend(PreflightFailed):
    """The framework's plug-in can't be used: it doesn't import, or isn't a backend; other frameworks are unaffected."""

    status_hint = 500


class LoadFailed(ModelUnavailable, RuntimeError):
    """The backend could not load the model; the cause is chained."""

    status_hint = 502


class OutOfMemory(LoadFailed):
    """The device ran out of memory while the model loaded, also with more room on the second try."""

    status_hint = 507


class SleepFailed(LoadFailed):
    """The model could not be put to sleep, or did not wake; it is unloaded, and the next request loads it again."""


class ModelDied(ModelUnavailable):
    """The model died while serving; the next request loads it again."""

    status_hint = 502


class ModelStuck(ModelUnavailable):
    """A load is stuck in a thread that can't be killed. It keeps its bytes; what must queue behind it is refused."""


class CoolingDown(ModelUnavailable):
    """The model failed to load repeatedly and isn't tried again before ``retry_after_s`` has passed."""


class Unloaded(ModelUnavailable):
    """The model was unloaded by request (or left the configuration) while this call waited for it."""


class FilesBeingRemoved(ModelUnavailable):
    """The model's files are being deleted by request; asked again after that, it is fetched anew."""


class InsufficientMemory(ModelUnavailable, RuntimeError):
    """The model can't fit: larger than the budget, or what is left beside pinned models and residue is too small."""

    status_hint = 507


class AllPinned(InsufficientMemory):
    """Room could only come from pinned models."""

    status_hint = 409


class WouldDeadlock(ModelUnavailable, RuntimeError):
    """Room could only come from a model that the caller itself holds a lease on."""

    status_hint = 409


class Overloaded(ModelUnavailable, TimeoutError):
    """The deadline passed before the model was ready; the message says what it was waiting for."""


class Cold(ModelUnavailable):
    """The model isn't loaded and ``when_cold: fail`` is written; it loads meanwhile, for ``retry_after_s``."""


class NoOptionLeft(ModelUnavailable, RuntimeError):
    """Every option of the task was passed over or failed; ``passed`` says why, option by option."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, passed: Sequence[object] = ()) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.passed = tuple(passed)


# --- using a model ----------------------------------------------------------------------------------------------------


class CallFailed(TaskRouterError, RuntimeError):
    """The model raised while answering; the cause is chained. The model stays loaded."""

    status_hint = 502


class ProviderFailed(CallFailed):
    """An external API could not answer; ``status`` is the HTTP status it said, ``None`` where it said none."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, status: int | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.status = status


class ProviderAuth(ProviderFailed):
    """The key is missing, or the provider refuses it; the message names the environment variable."""


class ProviderQuota(ProviderFailed):
    """The provider's rate limit or quota is spent; ``retry_after_s`` is what it said."""

    status_hint = 429


class ProviderOverloaded(ProviderFailed):
    """The provider says that it is overloaded or broken (5xx, 529)."""

    status_hint = 503


class ProviderTimeout(ProviderFailed, TimeoutError):
    """The provider did not answer within ``timeout_s``."""

    status_hint = 504


class ProviderUnreachable(ProviderFailed, ConnectionError):
    """There was no connection to the provider, or it broke."""


class ProviderBrokeOff(ProviderUnreachable):
    """The connection broke after the request had gone out: it may have been worked on, so it isn't sent again."""


class KeyMissing(ProviderAuth):
    """The key isn't in the environment; the message names the variable."""


class ReaderGone(CallFailed):
    """Nobody read from a stream for ``memory.stream_idle_s``, so it was ended. The model is well."""


class ProviderProtocol(ProviderFailed):
    """What came back isn't what this provider's API says: no JSON, a stream cut short, another service's answer."""


class BudgetSpent(ProviderFailed):
    """The provider's ``daily_budget_usd`` is spent; ``retry_after_s`` is the time to midnight, UTC."""

    status_hint = 429


# --- deleting a model's files -----------------------------------------------------------------------------------------


class FilesKept(TaskRouterError, RuntimeError):
    """The root of what keeps a model's files from being deleted; nothing was."""

    status_hint = 409


class ModelLoaded(FilesKept):
    """The model is loaded, or on its way to be. ``force`` unloads it first."""


class FilesShared(FilesKept):
    """Other options of the file are loaded from the same files; the message names them."""


class FilesNotDownloaded(FilesKept):
    """The model's files aren't known to be a download: only what can be downloaded again is deleted."""


class RemovalFailed(TaskRouterError, RuntimeError):
    """A file could not be read or deleted; the message says which. ``freed_bytes`` were deleted before that."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, freed_bytes: int = 0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.freed_bytes = freed_bytes


# --- asking a server of ours ------------------------------------------------------------------------------------------


class ServerUnreachable(TaskRouterError, ConnectionError):
    """There is no taskrouter at that address, or the connection to it broke, or it fell silent."""

    status_hint = 502


class ServerRefused(TaskRouterError, RuntimeError):
    """The server itself refuses, whichever model was asked: a key, a key's limits, a task that isn't for this key.

    ``status`` is the HTTP status and ``code`` the word for it (``invalid_api_key``, ``rate_limit``) that it said.
    """

    status_hint = 502

    def __init__(self, message: str, *, retry_after_s: float | None = None, status: int, code: str = "refused") -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.status = status
        self.code = code


# --- using the manager ------------------------------------------------------------------------------------------------


class ManagerClosed(TaskRouterError, RuntimeError):
    """The manager has been shut down."""

    status_hint = 503


class WrongLoop(TaskRouterError, RuntimeError):
    """The manager is bound to another event loop; use one manager per loop, or ``manager.blocking()``."""


class Forked(TaskRouterError, RuntimeError):
    """The manager was made before this process was forked; make one in the child."""


class DeviceInUse(TaskRouterError, RuntimeError):
    """Another process already manages this GPU."""

    status_hint = 409
