"""What the residency core is told. What it answers stands in ``actions.py``.

Events are past or request forms, actions imperatives. Nobody changes one once it is made; a granted lease costs three
of them, so they must be cheap to make. ``generation`` counts the lives of one model; an event of an earlier life is
ignored.

Who sends what: the manager turns callers into ``Acquire``, ``Release`` and ``GiveUp``; every ``Preflight``, ``Load``,
``Demote``, ``Promote``, ``Unload``, ``CancelLoad`` or ``Kill`` it performs ends in exactly one of the events named
beside that action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias, TypeVar, dataclass_transform

from taskrouter.residency.books import Settings
from taskrouter.types import (
    Charges,
    DeviceId,
    DeviceReading,
    DeviceSpec,
    Footprint,
    ModelKey,
    ModelSpec,
    TicketId,
)


class Reason(Enum):
    """Why a ticket was refused, a model loaded or unloaded. The values are what traces and people see."""

    # refusals
    TOO_LARGE = "too_large"
    NO_ROOM = "no_room"
    PINNED = "pinned"
    OWN_LEASE = "own_lease"
    DEADLINE = "deadline"
    COOLDOWN = "cooldown"
    STUCK = "stuck"
    PREFLIGHT = "preflight_failed"
    LOAD_FAILED = "load_failed"
    OUT_OF_MEMORY = "out_of_memory"
    DIED = "died"
    RETIRED = "unloaded_by_request"
    REMOVED = "no_longer_configured"
    UNKNOWN_MODEL = "unknown_model"
    SHUTDOWN = "shutdown"
    # loads
    REQUEST = "request"
    WARMUP = "warmup"
    RESTORE = "restore"
    AHEAD = "needed_soon"
    # unloads
    ROOM = "room_needed"
    IDLE = "keep_alive_passed"
    SHRUNK = "device_shrank"
    HOST_ROOM = "host_room_needed"
    SLEEP_FAILED = "sleep_failed"


T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def message(cls: type[T]) -> type[T]:
    """A slotted dataclass that type checkers hold to be frozen. Frozen at run time it would cost four times as much."""
    return dataclass(slots=True)(cls)


# --- events -----------------------------------------------------------------------------------------------------------


@message
class Acquire:
    """Somebody wants a lease on a model (``claim``: wants it ready, takes no slot).

    ``arrival`` differs from now only for a ticket that was first refused by another option. ``deadline`` is absolute.
    ``holding`` names the tickets whose leases the caller holds. ``replaces`` is the model to evict first (a changed
    selection). ``background`` tickets (warm-up) take free bytes only, and are refused at once where there are none.
    """

    ticket: TicketId
    key: ModelKey
    deadline: float
    priority: int = 0
    claim: bool = False
    arrival: float | None = None
    holding: frozenset[TicketId] = frozenset()
    background: bool = False
    replaces: ModelKey | None = None


@message
class Release:
    """The operation of this lease has really stopped, or the claim's handle is gone. Harmless when repeated."""

    ticket: TicketId


@message
class GiveUp:
    """The caller of this ticket went away: dropped while queued, released when already granted."""

    ticket: TicketId


@message
class Preflighted:
    """The model can be loaded as it is written. ``need`` is the best known footprint, ``None``: keep the spec's.

    ``load_s``: the seconds its loads took in an earlier life of this process, where that is known. ``slots``: the
    operations it was found to work on at a time; ``None``: as its traits say. What the file says goes before both.
    """

    key: ModelKey
    generation: int
    need: Footprint | None = None
    load_s: float | None = None
    slots: int | None = None


@message
class PreflightFailed:
    """The model can't be loaded as it is written; nothing was evicted for it."""

    key: ModelKey
    generation: int
    error: Exception


@message
class Loaded:
    """The model is ready. ``measured`` is what it takes, ``None`` where that could not be measured."""

    key: ModelKey
    generation: int
    measured: Footprint | None = None


@message
class LoadFailed:
    """The load ended in an error and holds no bytes any more (``residue`` apart)."""

    key: ModelKey
    generation: int
    error: Exception
    out_of_memory: bool = False
    residue: Charges = field(default_factory=dict)


@message
class LoadCancelled:
    """The load was cancelled, as asked, and holds no bytes any more (``residue`` apart)."""

    key: ModelKey
    generation: int
    residue: Charges = field(default_factory=dict)


@message
class LoadStuck:
    """The load passed its bound in a thread that can't be killed. A late ``Loaded`` or ``LoadFailed`` still ends it."""

    key: ModelKey
    generation: int


@message
class Demoted:
    """The model sleeps: ``ram_bytes`` of host RAM hold it, ``residue`` is what stayed on its devices."""

    key: ModelKey
    generation: int
    ram_bytes: int
    residue: Charges = field(default_factory=dict)


@message
class DemoteFailed:
    """The model could not be put to sleep; it is unloaded next."""

    key: ModelKey
    generation: int
    error: Exception


@message
class Promoted:
    """The model woke, and is ready."""

    key: ModelKey
    generation: int


@message
class PromoteFailed:
    """The model did not wake; it is unloaded next, and loaded again for who waits."""

    key: ModelKey
    generation: int
    error: Exception


@message
class Unloaded:
    """The model's bytes were seen free, or the bound on seeing so has passed: then ``residue`` is what is missing."""

    key: ModelKey
    generation: int
    residue: Charges = field(default_factory=dict)


@message
class Reclaimed:
    """Residue of this model was seen free after all; ``residue`` is what is still missing."""

    key: ModelKey
    residue: Charges = field(default_factory=dict)


@message
class Died:
    """The model died on its own (an engine crashed). Its bytes count until ``Unloaded`` says otherwise."""

    key: ModelKey
    generation: int
    error: Exception


@message
class Observed:
    """What devices look like from outside. Devices not named keep their last reading."""

    readings: Mapping[DeviceId, DeviceReading]


@message
class Pin:
    """Pin (never a victim) or unpin a model."""

    key: ModelKey
    pinned: bool


@message
class Retire:
    """Unload this model: drain it first, refuse who waits for it. A load under way leaves nothing resident."""

    key: ModelKey


@message
class Reconfigure:
    """Add a model, or change what isn't part of its identity (priority, pin, slots, keep-alive, selected)."""

    spec: ModelSpec


@message
class Configure:
    """All that is configured, anew. Models that stand in it no more drain and go; the others go on as they are.

    ``devices`` are those there were, with the budgets they have now.
    """

    specs: tuple[ModelSpec, ...]
    devices: tuple[DeviceSpec, ...]
    settings: Settings


@message
class ClearCooldown:
    """Forget a model's failures: the next request tries it again."""

    key: ModelKey


@message
class Hint:
    """These models will be needed, in this order, until that instant. Replaces what ``source`` said before."""

    source: str
    keys: tuple[ModelKey, ...]
    until: float


@message
class Tick:
    """The instant named by the last ``WakeAt`` has come."""


@message
class Shutdown:
    """Refuse who waits, drain and unload everything."""


Event: TypeAlias = (
    Acquire
    | Release
    | GiveUp
    | Preflighted
    | PreflightFailed
    | Loaded
    | LoadFailed
    | LoadCancelled
    | LoadStuck
    | Demoted
    | DemoteFailed
    | Promoted
    | PromoteFailed
    | Unloaded
    | Reclaimed
    | Died
    | Observed
    | Pin
    | Retire
    | Reconfigure
    | Configure
    | ClearCooldown
    | Hint
    | Tick
    | Shutdown
)
