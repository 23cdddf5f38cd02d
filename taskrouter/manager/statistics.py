"""One frozen snapshot of everything; what status, metrics and health read. Holds no reference to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskrouter.manager.performing import Performer
from taskrouter.manager.residents import Resident
from taskrouter.residency import DeviceBooks, ModelStatus, Residency
from taskrouter.types import DeviceId, ModelKey

OVERDUE_S = 1.0
"""How late the refusal of a deadline may be before something is wrong."""


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """A task: its selected option, and that option's model (``None``: external, or it can't be used here)."""

    task: str
    selected: str
    model: ModelStatus | None


@dataclass(frozen=True, slots=True)
class Statistics:
    """``waiting`` callers, the oldest for ``oldest_wait_s`` seconds; ``warmup`` says how warm-up went, by task.

    ``info`` is what the backends say of loaded models (an engine's pid, log and KV cache; a dtype), by model.
    ``healthy`` turns false when a caller waits past its deadline: then nothing moves any more (law 13).
    """

    devices: Mapping[DeviceId, DeviceBooks]
    models: Mapping[ModelKey, ModelStatus]
    tasks: Mapping[str, TaskStatus]
    waiting: int
    oldest_wait_s: float
    healthy: bool
    warmup: Mapping[str, str]
    info: Mapping[ModelKey, Mapping[str, Any]]


def _info(resident: Resident) -> Mapping[str, Any]:
    # A plug-in's word; a snapshot is for looking at what goes wrong, so it never fails itself.
    try:
        return dict(resident.model.info) if resident.model is not None else {}
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {error}"}


def snapshot(
    core: Residency,
    keys: Mapping[tuple[str, str], ModelKey],
    selected: Mapping[str, str],
    warmup: Mapping[str, str],
    performer: Performer | None,
) -> Statistics:
    seen = core.snapshot()
    now = performer.loop.time() if performer is not None else 0.0
    tasks = {}
    for task, option in selected.items():
        key = keys.get((task, option))
        tasks[task] = TaskStatus(task, option, seen.models.get(key) if key is not None else None)
    oldest = 0.0 if seen.oldest_arrival is None else max(now - seen.oldest_arrival, 0.0)
    return Statistics(
        devices=seen.devices,
        models=seen.models,
        tasks=tasks,
        waiting=seen.waiting,
        oldest_wait_s=oldest,
        healthy=seen.earliest_deadline is None or now <= seen.earliest_deadline + OVERDUE_S,
        warmup=warmup,
        info={} if performer is None else {key: _info(resident) for key, resident in performer.residents.items()},
    )
