"""What the world remembers of tickets, jobs and lives, and what it needs of a core."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from taskrouter.residency import actions as act
from taskrouter.residency import events as ev
from taskrouter.residency.books import DeviceBooks, ModelStatus, Settings, Snapshot
from taskrouter.types import DeviceId, DeviceSpec, ModelKey, ModelSpec

Bytes: TypeAlias = dict[DeviceId, int]


class Core(Protocol):
    """What the harnesses use of the core."""

    def handle(self, event: ev.Event, *, now: float) -> list[act.Action]: ...
    def snapshot(self) -> Snapshot: ...
    def status(self, key: ModelKey) -> ModelStatus: ...
    def books(self, device: DeviceId) -> DeviceBooks: ...
    def check(self) -> None: ...


CoreFactory: TypeAlias = Callable[[Iterable[DeviceSpec], Iterable[ModelSpec], Settings], Core]


class Violation(AssertionError):
    """The core broke a law; the message ends with the events and actions up to there."""


class Broken(Exception):
    """A backend's error, as the world injects it."""


@dataclass(slots=True)
class Ticket:
    """A request and, once granted, its lease."""

    ask: ev.Acquire
    arrival: float
    state: str = "waiting"
    generation: int = -1
    granted_at: float = 0.0
    refusal: act.Refusal | None = None
    note: Any = None

    @property
    def live(self) -> bool:
        return self.state == "granted"


@dataclass(slots=True)
class Job:
    """An action under way; ``kind`` is preflight, load, demote, promote or unload (a ``Kill`` unloads the dead)."""

    kind: str
    key: ModelKey
    generation: int
    since: float
    devices: tuple[DeviceId, ...] = ()
    wanted: ModelKey | None = None
    reason: ev.Reason | None = None
    cancelled: bool = False
    stuck: bool = False


@dataclass(slots=True)
class Life:
    """One copy of a model on its devices, from ``Load`` until its bytes are gone."""

    generation: int
    devices: tuple[DeviceId, ...]
    true: Bytes
    booked: Bytes
    started: float
    loaded_at: float | None = None
    load_s: float = 0.0
    dead: bool = False
    cancelled: bool = False
    idle_since: float = 0.0
    asleep: bool = False
    awake: Bytes = field(default_factory=dict)
    """What it held when it last went to sleep."""


@dataclass(slots=True)
class Step:
    """One call of the core: what was before it, what went in and what came out."""

    event: ev.Event
    before: Mapping[ModelKey, ModelStatus]
    free_before: Mapping[DeviceId, int]
    actions: list[act.Action] = field(default_factory=list)
    refused: list[Ticket] = field(default_factory=list)
    ended_claims: dict[ModelKey, list[Ticket]] = field(default_factory=dict)


class Watcher(Protocol):
    """Who wants to know of jobs that start and of tickets that are answered (and may not call back at once)."""

    def started(self, job: Job) -> None: ...
    def answered(self, ticket: Ticket) -> None: ...
