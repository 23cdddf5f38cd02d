"""Which idle models to evict: in what order a policy looks at them, and which it takes of those that turn out idle.

It reads no clock and keeps no state. Victims come oldest use first; candidates are those of them that are idle, looked
at one by one as the policy asks for them; the answer is in the order of choice. Where all of them together aren't
enough, it answers every one that helps, and the planner goes on to models that are still busy.

The worth of a model is what its eviction is expected to cost: ``back_s × n / (now − t_n + back_s)``, with ``back_s``
the seconds it takes to come back, ``n`` (at most 8) its latest uses, and ``t_n`` the oldest of these. The fraction is
the rate of its uses by the backward k-distance of LRU-K (O'Neil, O'Neil and Weikum, SIGMOD 1993), which ages by itself
and outlives an eviction; weighing it by the cost of coming back, against the bytes that are freed, is GreedyDual-Size
with frequency (Cao and Irani, USITS 1997; Cherkasova, HP Labs 1998). ``back_s`` in the denominator stands for the time
before the first of these uses: a model used only once isn't used all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeAlias

from taskrouter.residency.records import Model
from taskrouter.types import DeviceId

Missing: TypeAlias = dict[DeviceId, int]
"""Bytes still missing per device; a device that has enough is not in it."""

Worth: TypeAlias = Callable[[Model], float]
"""What evicting a model is expected to cost, in seconds of loading for each second that passes."""

EXACT = 10
"""Of at most so many models every set is looked at, as far as it could still be the cheapest."""


def take(candidates: Iterable[Model], missing: Missing) -> list[Model]:
    """Take candidates in the order given until nothing is missing; those that don't help are passed by.

    ``missing`` is reduced in place.
    """
    chosen: list[Model] = []
    if not missing:
        return chosen
    for model in candidates:
        charges = model.charges
        helps = False
        for device in tuple(missing):
            held = charges.get(device, 0)
            if held:
                helps = True
                if held >= missing[device]:
                    del missing[device]
                else:
                    missing[device] -= held
        if helps:
            chosen.append(model)
            if not missing:
                break
    return chosen


def drop_unneeded(chosen: list[Model], missing: Mapping[DeviceId, int]) -> list[Model]:
    """Drop every victim without which the others still suffice, the last chosen first.

    ``missing`` is what was missing before any was chosen.
    """
    spare = {device: sum(m.charges.get(device, 0) for m in chosen) - lack for device, lack in missing.items()}
    kept: list[Model] = []
    for model in reversed(chosen):
        if all(spare[device] >= model.charges.get(device, 0) for device in missing):
            for device in missing:
                spare[device] -= model.charges.get(device, 0)
        else:
            kept.append(model)
    kept.reverse()
    return kept


def by_priority(models: Iterable[Model]) -> list[Model]:
    """Lower priority first; among equals the order given stays."""
    return sorted(models, key=lambda model: model.spec.priority)


def worth_at(model: Model, now: float) -> float:
    """The formula of this module's head; 0 for a model that was never used."""
    if not model.weighed:
        model.weigh()
    return model.weight / (now - model.since)


def by_use(victims: Iterable[Model], missing: Missing, now: float) -> Iterable[Model]:
    """As they come: oldest use first."""
    return victims


def by_rate(victims: Iterable[Model], missing: Missing, now: float) -> list[Model]:
    """The cheapest for the share they free of what is missing first; who frees nothing is left out."""
    if not missing:
        return []
    (device, amount), *more = missing.items()
    if more:
        rated = [
            (worth_at(model, now) / share, model)
            for model in victims
            if (share := sum(min(model.charges.get(each, 0), lack) / lack for each, lack in missing.items()))
        ]
    else:
        # The same for one device, with worth_at written out: this is done for every model that is resident.
        rated = [
            (
                (model.weight / (now - model.since) if model.weighed else worth_at(model, now))
                / (held / amount if held < amount else 1.0),
                model,
            )
            for model in victims
            if (held := model.charges.get(device, 0))
        ]
    rated.sort(key=_rate)
    return [model for _, model in rated]


_rate = itemgetter(0)


def oldest(candidates: Iterable[Model], missing: Missing, worth: Worth) -> list[Model]:
    """Idle models as they come, until there is enough."""
    return take(candidates, missing)


def cheapest(candidates: Iterable[Model], missing: Missing, worth: Worth) -> list[Model]:
    """The set of idle models that suffices and is worth least.

    Exactly that where at most ``EXACT`` of them could help. Of more the cheapest for what they free (``by_rate``) are
    taken until there is enough, and the exact answer is sought among these and the next cheapest. Equal worths go in
    the order given.
    """
    if not missing:
        return []
    lack, rest = dict(missing), iter(candidates)
    pool = take(rest, missing)
    if missing:
        return pool
    enough = drop_unneeded(pool, lack)
    if len(enough) > EXACT or enough == pool[:1]:
        return enough  # the cheapest for what it frees, and it frees all that is missing: no other set is cheaper
    while len(pool) < EXACT and (more := next(rest, None)) is not None:
        if any(more.charges.get(device) for device in lack):
            pool.append(more)
    if len(pool) > EXACT:
        pool = enough + [model for model in pool if model not in enough][: EXACT - len(enough)]
    return _cheapest(pool, lack, {model: worth(model) for model in pool}, enough)


def _cheapest(pool: list[Model], lack: Missing, worths: Mapping[Model, float], known: list[Model]) -> list[Model]:
    """The cheapest set that suffices, by branch and bound: ``known`` is one that does."""
    best, best_cost = known, sum(worths[model] for model in known)
    devices = list(lack)
    held = [[model.charges.get(device, 0) for device in devices] for model in pool]
    # Behind each place: the least that a byte of this device can cost.
    least = [[float("inf")] * len(devices)]
    for place in range(len(pool) - 1, -1, -1):
        worth = worths[pool[place]]
        least.append([min(old, worth / own if own else old) for old, own in zip(least[-1], held[place], strict=True)])
    least.reverse()

    def search(place: int, chosen: list[Model], cost: float, short: list[int]) -> None:
        nonlocal best, best_cost
        if max(short) <= 0:
            if cost < best_cost:
                best, best_cost = list(chosen), cost
            return
        if place == len(pool):
            return
        bound = max(amount * each for amount, each in zip(short, least[place], strict=True) if amount > 0)
        if cost + bound >= best_cost:
            return
        left = [amount - own for amount, own in zip(short, held[place], strict=True)]
        search(place + 1, [*chosen, pool[place]], cost + worths[pool[place]], left)
        search(place + 1, chosen, cost, short)

    search(0, [], 0.0, [lack[device] for device in devices])
    return best


@dataclass(frozen=True, slots=True)
class Policy:
    """``order``: the victims as they are to be looked at. ``choose``: whom to take of those that are idle."""

    order: Callable[[Iterable[Model], Missing, float], Iterable[Model]]
    choose: Callable[[Iterable[Model], Missing, Worth], list[Model]]


POLICIES: Mapping[str, Policy] = {"lru": Policy(by_use, oldest), "cost_aware": Policy(by_rate, cheapest)}
