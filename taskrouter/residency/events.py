"""What the residency core is told (events) and what it answers (actions).

Events are past or request forms, actions imperatives. All are immutable tuples: a granted lease costs two of them, so
they must be cheap to make. ``generation`` counts the lives of one model; an event of an earlier life is ignored.

Who sends what: the manager turns callers into ``Acquire``, ``Release`` and ``GiveUp``; every ``Preflight``, ``Load``,
``Unload``, ``CancelLoad`` or ``Kill`` it performs ends in exactly one of the events named beside the action below.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

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
    # unloads
    ROOM = "room_needed"
    IDLE = "keep_alive_passed"
    SHRUNK = "device_shrank"


NOTHING: Charges = MappingProxyType({})


# --- events -----------------------------------------------------------------------------------------------------------


class Acquire(NamedTuple):
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


class Release(NamedTuple):
    """The operation of this lease has really stopped, or the claim's handle is gone. Harmless when repeated."""

    ticket: TicketId


class GiveUp(NamedTuple):
    """The caller of this ticket went away: dropped while queued, released when already granted."""

    ticket: TicketId


class Preflighted(NamedTuple):
    """The model can be loaded as it is written. ``need`` is the best known footprint, ``None``: keep the spec's."""

    key: ModelKey
    generation: int
    need: Footprint | None = None


class PreflightFailed(NamedTuple):
    """The model can't be loaded as it is written; nothing was evicted for it."""

    key: ModelKey
    generation: int
    error: Exception


class Loaded(NamedTuple):
    """The model is ready. ``measured`` is what it takes, ``None`` where that could not be measured."""

    key: ModelKey
    generation: int
    measured: Footprint | None = None


class LoadFailed(NamedTuple):
    """The load ended in an error and holds no bytes any more (``residue`` apart)."""

    key: ModelKey
    generation: int
    error: Exception
    out_of_memory: bool = False
    residue: Charges = NOTHING


class LoadCancelled(NamedTuple):
    """The load was cancelled, as asked, and holds no bytes any more (``residue`` apart)."""

    key: ModelKey
    generation: int
    residue: Charges = NOTHING


class LoadStuck(NamedTuple):
    """The load passed its bound in a thread that can't be killed. A late ``Loaded`` or ``LoadFailed`` still ends it."""

    key: ModelKey
    generation: int


class Unloaded(NamedTuple):
    """The model's bytes were seen free, or the bound on seeing so has passed: then ``residue`` is what is missing."""

    key: ModelKey
    generation: int
    residue: Charges = NOTHING


class Reclaimed(NamedTuple):
    """Residue of this model was seen free after all; ``residue`` is what is still missing."""

    key: ModelKey
    residue: Charges = NOTHING


class Died(NamedTuple):
    """The model died on its own (an engine crashed). Its bytes count until ``Unloaded`` says otherwise."""

    key: ModelKey
    generation: int
    error: Exception


class Observed(NamedTuple):
    """What devices look like from outside. Devices not named keep their last reading."""

    readings: Mapping[DeviceId, DeviceReading]


class Pin(NamedTuple):
    """Pin (never a victim) or unpin a model."""

    key: ModelKey
    pinned: bool


class Retire(NamedTuple):
    """Unload this model: drain it first, refuse who waits for it. A load under way leaves nothing resident."""

    key: ModelKey


class Reconfigure(NamedTuple):
    """Add a model, or change what isn't part of its identity (priority, pin, slots, keep-alive, selected)."""

    spec: ModelSpec


class ClearCooldown(NamedTuple):
    """Forget a model's failures: the next request tries it again."""

    key: ModelKey


class Tick(NamedTuple):
    """The instant named by the last ``WakeAt`` has come."""


class Shutdown(NamedTuple):
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
    | Unloaded
    | Reclaimed
    | Died
    | Observed
    | Pin
    | Retire
    | Reconfigure
    | ClearCooldown
    | Tick
    | Shutdown
)


# --- actions ----------------------------------------------------------------------------------------------------------


class Preflight(NamedTuple):
    """Check that the model can be loaded → ``Preflighted`` or ``PreflightFailed``."""

    key: ModelKey
    generation: int


class Load(NamedTuple):
    """Load the model on these devices, now → ``Loaded``, ``LoadFailed``, ``LoadCancelled`` or ``LoadStuck``.

    ``ticket`` is the request that triggered it (``None``: a restoring load), for the trace.
    """

    key: ModelKey
    generation: int
    devices: tuple[DeviceId, ...]
    charges: Charges
    reason: Reason
    ticket: TicketId | None


class CancelLoad(NamedTuple):
    """Cancel the load under way → its ``Load`` ends in ``LoadCancelled`` (or in what it had already come to)."""

    key: ModelKey
    generation: int


class Unload(NamedTuple):
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


class Kill(NamedTuple):
    """Clear away what is left of a model that died → ``Unloaded``."""

    key: ModelKey
    generation: int
    charges: Charges


class Grant(NamedTuple):
    """These tickets are leases (or claims) now, on this life of the model."""

    key: ModelKey
    generation: int
    tickets: tuple[TicketId, ...]


class Refusal(NamedTuple):
    """Why tickets were refused: for the error's class, its text, and when to come back."""

    reason: Reason
    key: ModelKey
    message: str
    retry_after_s: float | None = None
    error: Exception | None = None


class Refuse(NamedTuple):
    """These tickets will not be granted."""

    tickets: tuple[TicketId, ...]
    refusal: Refusal


class WakeAt(NamedTuple):
    """Send ``Tick`` at this instant. Replaces the one before; ``None``: no wake-up is needed."""

    when: float | None


Action: TypeAlias = Preflight | Load | CancelLoad | Unload | Kill | Grant | Refuse | WakeAt
