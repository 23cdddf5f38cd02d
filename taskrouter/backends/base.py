"""What a backend is: the seam between deciding (the manager and the core below it) and doing.

A backend is found by its framework's name through the entry-point group ``taskrouter.backends``; the entry point names
a class whose constructor takes no argument. One instance serves all models of that framework in this process. Being
imported must be cheap: libraries such as torch are imported by ``preflight`` or ``load``, never by the module.

A backend whose traits say ``can_sleep`` for some of its requests is a ``Sleeper`` too. One whose models have verbs of
their own may say in its class how these are asked over HTTP: ``calls``, a ``Call`` for each.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, TypeAlias

from taskrouter.types import Charges, DeviceId, Footprint, ModelRequest, Traits

START_TIMED_OUT = "its start took longer than start_timeout_s"
"""The message a load is cancelled with when it took too long: it may then raise ``LoadFailed`` that says how far it
came."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What checking a model found: its best known footprint, and what it can do, as far as that is known.

    ``verbs``: what it can be asked (empty: not known). ``lacks``: what it surely can't take beside text (``image``,
    ``audio``, ``video``, ``document``, ``tools``), and why; what isn't in it may be asked. ``context``: the most tokens
    of a request. Who asks for what is lacking is refused before anything is loaded, and routing asks the next option.
    ``slots``: operations it works on at a time, where the file doesn't say; ``None``: as its traits say.
    """

    need: Footprint | None = None
    verbs: frozenset[str] = frozenset()
    lacks: Mapping[str, str] = field(default_factory=dict)
    context: int | None = None
    slots: int | None = None


class LoadedModel(Protocol):
    """A model that is ready. The manager holds the only lasting reference to it."""

    @property
    def measured(self) -> Footprint | None:
        """Bytes it really takes, per device; ``None`` where that can't be measured."""

    @property
    def verbs(self) -> frozenset[str]:
        """What it can be asked."""

    @property
    def raw(self) -> Any:
        """The framework's own object, for callers that hold a lease and know what they do."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Small facts for status and traces (dtype, parameters); no reference to the model itself.

        ``can_sleep`` is ``yes``, or ``no: …`` and why not.
        """

    async def call(self, verb: str, request: Any) -> Any:
        """Answer one request.

        Must not block the event loop. When cancelled it tells the work to stop and **returns or raises only once the
        work has stopped**: the lease lasts as long as this coroutine. Raises ``BadInput`` for input it can't use,
        ``ModelDied`` when the model is gone, ``CallFailed`` otherwise.
        """

    def stream(self, verb: str, request: Any) -> AsyncIterator[Any]:
        """Answer in pieces (an async generator). The same rules; closing the iterator is cancelling."""

    async def wait_dead(self) -> Exception:
        """Return the error when the model dies on its own; wait for ever if it never does. May be cancelled."""


class Backend(Protocol):
    """The adapter for one framework."""

    def traits(self, request: ModelRequest) -> Traits:
        """What the core must know. Pure: no I/O, no import of the framework."""

    async def preflight(self, request: ModelRequest) -> Preflight:
        """Check everything that can be checked without loading: files, headers, packages, arguments.

        Must not block the event loop for long; may be cancelled. Raises ``PreflightFailed`` (``CheckpointMissing``,
        ``CheckpointCorrupt``) or ``MissingDependency``. The estimate in the answer counts weights and working memory.
        """

    async def load(self, request: ModelRequest, devices: tuple[DeviceId, ...], charges: Charges) -> LoadedModel:
        """Load on these devices within these bytes.

        Must leave the event loop free. Checks the memory that is really free just before it loads. Raises
        ``OutOfMemory`` or ``LoadFailed``, and holds no memory once it has raised. Cancelled: where
        ``traits.cancellable``, stops and frees before it raises; elsewhere cancellation is not sent. Cancelled with
        ``START_TIMED_OUT`` it may raise ``LoadFailed`` instead, to say how far it came.
        """

    async def unload(self, model: LoadedModel, *, timeout_s: float) -> Charges:
        """Free an idle model and see its bytes free, for at most ``timeout_s`` seconds.

        Returns what is still missing per device (empty: all of it was seen free). Never raises for an unload that went
        badly: what can't be freed is the answer. After this the object must not be used.
        """

    async def residue(self, key: str) -> Charges:
        """What is still missing of an unload that left something behind; empty once it is free. Cheap; never waits."""

    async def close(self) -> None:
        """Give up what the backend itself holds (threads, clients). Idempotent; called once all models are unloaded."""


@dataclass(frozen=True, slots=True)
class Asleep:
    """What a model takes that went to sleep: ``ram_bytes`` of host RAM in all, its processes included, and what stayed
    on its devices."""

    ram_bytes: int
    residue: Charges = field(default_factory=dict)


class Sleeper(Protocol):
    """What a backend can do beside, where its traits say ``can_sleep``: let a model's weights wait in host RAM.

    The same object sleeps and wakes, on the devices it was loaded on; ``unload`` takes it awake or asleep, and
    ``wait_dead`` goes on meaning what it means. Answers after a wake equal those before the sleep.
    """

    async def demote(self, model: LoadedModel, *, timeout_s: float) -> Asleep:
        """Put an idle model to sleep, and see its device bytes free, for at most ``timeout_s`` seconds.

        Must leave the event loop free. Never sent while a call is at work; isn't cancelled. Raises ``SleepFailed``
        where it can't: then the model is as it was, or dead, and is unloaded next.
        """

    async def promote(self, model: LoadedModel, charges: Charges) -> None:
        """Wake a sleeping model within these bytes: once it returns, the model answers.

        Must leave the event loop free; isn't cancelled. Raises ``OutOfMemory``, or ``SleepFailed``: then the model is
        asleep, or dead, and is unloaded next.
        """


@dataclass(frozen=True, slots=True)
class MediumMark:
    """What ``Medium`` marks a field with."""


Medium: TypeAlias = Annotated[Any, MediumMark()]
"""The type of a request's field that holds a medium: whatever the plug-in takes from callers in this process.

Who asks over HTTP sends a file, base64, a ``data:`` URL, a path under ``media.roots``, or a URL where ``media.remote``
lets it be fetched. The server checks and reads these: what the plug-in gets is bytes, or a binary file object.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """How a verb of a plug-in's own is asked over HTTP.

    ``request`` is a dataclass or a pydantic model: its fields are the arguments, those that hold a medium are
    ``Medium``, or a list or tuple of it. ``answer`` is any type that pydantic writes as JSON and reads again. Declared
    in the backend's class, by verb: ``calls = {"diarize": Call(DiarizeRequest, tuple[Turn, ...])}``.
    """

    request: type
    answer: Any


@dataclass(frozen=True, slots=True)
class Found:
    """An entry point: the framework's name, and which distribution brought it."""

    name: str
    distribution: str
    extra: str = ""
    aliases: tuple[str, ...] = field(default=())
