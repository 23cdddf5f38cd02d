"""What can never be: a model for which no waiting would make room, and what stands in its way."""

from __future__ import annotations

from taskrouter.residency.books import State
from taskrouter.residency.planning import Planner
from taskrouter.residency.records import Model
from taskrouter.types import DeviceId, TicketId

MENDABLE = ("too_large", "no_room", "pinned", "own_lease")
"""Why a model can't fit, the hardest to mend first."""


def blocked_for_ever(
    plans: Planner,
    model: Model,
    holding: frozenset[TicketId],
    *,
    count_models: bool,
    placements: tuple[tuple[DeviceId, ...], ...] | None = None,
) -> tuple[str, DeviceId, int, int] | None:
    """Why no waiting would help: ``(what, device, needed bytes, bytes that could be had)``; ``None``: it could fit.

    ``what`` is ``too_large``, ``pinned``, ``own_lease`` or ``no_room`` (residue, a stuck load). Foreign use never
    counts. Of several device sets (``placements``; by default all of the model's) the one easiest to mend is named,
    and of these the one with the most room.
    """
    worst: tuple[str, DeviceId, int, int] | None = None
    for devices in placements or model.spec.placements:
        verdict: tuple[str, DeviceId, int, int] | None = None
        need = model.charges_on(devices, count_models=count_models)
        if (
            not holding
            and not plans.some_stay
            and all(amount <= plans.accounts[d].lasting for d, amount in need.items())
        ):
            return None
        for device, amount in need.items():
            account = plans.accounts[device]
            fixed = {"no_room": account.residue, "pinned": 0, "own_lease": 0}
            for other in (*plans.resident.values(), *plans.loading.values(), *plans.asleep.values()):
                held = other.charges.get(device, 0)
                if other is model or not held:
                    continue
                if other.state is State.STUCK:
                    fixed["no_room"] += held
                elif other.spec.pinned and not (other.cancelling or other.retiring):
                    fixed["pinned"] += held
                elif holding and not holding.isdisjoint(other.leases):
                    fixed["own_lease"] += held
            room = account.capacity - sum(fixed.values())
            if amount > account.capacity:
                verdict = ("too_large", device, amount, account.capacity)
            elif amount > room:
                what = next(what for what in ("own_lease", "pinned", "no_room") if fixed[what])
                verdict = (what, device, amount, room)
            if verdict:
                break
        if verdict is None:
            return None
        if worst is None or (MENDABLE.index(verdict[0]), verdict[3]) > (MENDABLE.index(worst[0]), worst[3]):
            worst = verdict
    return worst
