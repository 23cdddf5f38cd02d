"""What the residency core answers: actions, in the imperative. Those that take time name the events they end in."""

from __future__ import annotations

from typing import TypeAlias

from taskrouter.residency.events import Reason, message
from taskrouter.types import Charges, DeviceId, ModelKey, TicketId


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
class Why:
    """Why a model goes.

    ``wanted`` is the model it makes room for, ``ticket`` the request behind that; ``considered`` counts the models that
    were looked at as victims.
    """

    reason: Reason
    wanted: ModelKey | None = None
    ticket: TicketId | None = None
    considered: int = 0


@message
class Demote:
    """Put the idle model to sleep and see its device bytes free → ``Demoted`` or ``DemoteFailed``.

    ``ram_bytes`` is what its sleep is expected to take.
    """

    key: ModelKey
    generation: int
    charges: Charges
    ram_bytes: int
    why: Why


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
    """Unload the idle model and see its bytes free → ``Unloaded``."""

    key: ModelKey
    generation: int
    charges: Charges
    why: Why


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
