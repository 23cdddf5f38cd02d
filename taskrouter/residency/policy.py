"""Which idle models to evict. A policy is a function of the models it may take and the bytes that are missing.

It reads no clock and keeps no state. Candidates come in the order of their last use, oldest first; the answer is in the
order of choice. Where all of them together aren't enough, it answers every one that helps, and the planner goes on to
models that are still busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from taskrouter.residency.records import Model
from taskrouter.types import DeviceId

Missing: TypeAlias = dict[DeviceId, int]
"""Bytes still missing per device; a device that has enough is not in it."""

Policy: TypeAlias = Callable[[Iterable[Model], Missing], list[Model]]


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


def lru(candidates: Iterable[Model], missing: Missing) -> list[Model]:
    """Idle models, oldest use first, until there is enough."""
    return take(candidates, missing)


POLICIES: Mapping[str, Policy] = {"lru": lru}
