"""What the residency core is told (events) and what it answers (actions).

Events are past or request forms, actions imperatives. Nobody changes one once it is made; a granted lease costs three
of them, so they must be cheap to make. ``generation`` counts the lives of one model; an event of an earlier life is
ignored.

Who sends what: the manager turns callers into ``Acquire``, ``Release`` and ``GiveUp``; every ``Preflight``, ``Load``,
``Unload``, ``CancelLoad`` or ``Kill`` it performs ends in exactly one of the events named beside the action below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias, TypeVar, dataclass_transform

from taskrouter.types import Charges, DeviceId, DeviceReading, Footprint, ModelKey, ModelSpec, TicketId


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
    """The model can be loaded as it is written. ``need`` is the best known footprint, ``None``: keep the spec's."""

    key: ModelKey
    generation: int
    need: Footprint | None = None


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
    | ClearCooldown
    | Hint
    | Tick
    | Shutdown
)


# --- actions ----------------------------------------------------------------------------------------------------------


@message
class Preflight:
    """Check that the model can be loaded → ``Preflighted`` or ``PreflightFailed``."""

    key: ModelKey
    generation: int


@message
class Load:
    """Load the model on these devices, now → ``Loaded``, ``LoadFailed``, ``LoadCancelled`` or ``LoadStuck``.

    ``ticket`` is the request that triggered it (``None``: a restoring load), for the trace.
    """

    key: ModelKey
    generation: int
    devices: tuple[DeviceId, ...]
    charges: Charges
    reason: Reason
    ticket: TicketId | None


@message
class CancelLoad:
    """Cancel the load under way → its ``Load`` ends in ``LoadCancelled`` (or in what it had already come to)."""

    key: ModelKey
    generation: int


@message
class Demote:
    """Put the idle model to sleep and see its device bytes free → ``Demoted`` or ``DemoteFailed``.

    ``ram_bytes`` is what its sleep is expected to take; the rest is as in ``Unload``.
    """

    key: ModelKey
    generation: int
    charges: Charges
    ram_bytes: int
    reason: Reason
    wanted: ModelKey | None = None
    ticket: TicketId | None = None
    considered: int = 0


@message
class Promote:
    """Wake the sleeping model on its devices, within these bytes → ``Promoted`` or ``PromoteFailed``."""

    key: ModelKey
    generation: int
    devices: tuple[DeviceId, ...]
    charges: Charges
    reason: Reason
    ticket: TicketId | None


@message
class Unload:
    """Unload the idle model and see its bytes free → ``Unloaded``.

    ``wanted`` is the model it makes room for, ``ticket`` the request behind that; ``considered`` counts the models that
    were looked at as victims.
    """

    key: ModelKey
    generation: int
    charges: Charges
    reason: Reason
    wanted: ModelKey | None = None
    ticket: TicketId | None = None
    considered: int = 0


@message
class Kill:
    """Clear away what is left of a model that died → ``Unloaded``."""

    key: ModelKey
    generation: int
    charges: Charges


@message
class Grant:
    """These tickets are leases (or claims) now, on this life of the model."""

    key: ModelKey
    generation: int
    tickets: tuple[TicketId, ...]


@message
class Refusal:
    """Why tickets were refused: for the error's class, its text, and when to come back."""

    reason: Reason
    key: ModelKey
    message: str
    retry_after_s: float | None = None
    error: Exception | None = None


@message
class Refuse:
    """These tickets will not be granted."""

    tickets: tuple[TicketId, ...]
    refusal: Refusal


@message
class WakeAt:
    """Send ``Tick`` at this instant. Replaces the one before; ``None``: no wake-up is needed."""

    when: float | None


Action: TypeAlias = Preflight | Load | CancelLoad | Demote | Promote | Unload | Kill | Grant | Refuse | WakeAt
