"""The core's records of waiting: a ticket that waits for a model, and a want (a cold model somebody waits for)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from taskrouter.residency.actions import Why
from taskrouter.residency.events import Acquire
from taskrouter.types import DeviceId

if TYPE_CHECKING:
    from taskrouter.residency.records import Model


class Ticket:
    """A request that waits. ``order`` is its static key: ``(arrival − ageing_s × priority, arrival, seq)``."""

    __slots__ = ("arrival", "background", "claim", "deadline", "holding", "id", "model", "order", "replaces", "waiting")

    def __init__(self, event: Acquire, model: Model, arrival: float, order: tuple[float, float, int]) -> None:
        self.id = event.ticket
        self.model = model
        self.arrival = arrival
        self.deadline = event.deadline
        self.order = order
        self.claim = event.claim
        self.background = event.background
        self.holding = event.holding
        self.replaces = event.replaces
        self.waiting = True


class Phase(Enum):
    """How far a want has come. From DRAINING on its plan is committed: bytes are promised to it."""

    PREFLIGHT = "preflight"
    BLOCKED = "blocked"
    DRAINING = "draining"
    EVICTING = "evicting"


class Want:
    """A cold model somebody waits for (or that is being restored, or loaded ``ahead``), and its plan once committed.

    ``victims`` are the models the plan unloads, ``sources`` every model whose bytes it still waits for (victims and
    unloads under way); ``need`` is what it will be charged per device. A model that is to sleep wants its bed in RAM in
    the same way; ``why`` then says for whom it makes room.
    """

    __slots__ = (
        "ahead", "considered", "devices", "evicted", "model", "need", "phase", "restoring", "sources", "victims", "why",
    )  # fmt: skip

    def __init__(self, model: Model, *, restoring: bool = False) -> None:
        self.model = model
        self.phase = Phase.PREFLIGHT
        self.restoring = restoring
        self.ahead = False
        self.devices: tuple[DeviceId, ...] = ()
        self.need: dict[DeviceId, int] = {}
        self.victims: list[Model] = []
        self.sources: set[Model] = set()
        self.evicted: list[Model] = []
        self.considered = 0
        self.why: Why | None = None
