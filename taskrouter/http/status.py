"""The manager's statistics and its budget as plain JSON. Times are Unix seconds."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from taskrouter.manager import OptionFit, Statistics
from taskrouter.residency import HOST_BUDGET, MODEL_SLOTS, ModelStatus
from taskrouter.types import ModelKey

if TYPE_CHECKING:
    from taskrouter.http.state import State


NO_DEVICES = (MODEL_SLOTS, HOST_BUDGET)
"""Budgets that are kept like devices and are none."""


def status_of(state: State) -> dict[str, Any]:
    """Everything that ``manager.statistics()`` says."""
    manager, seen, skew = state.manager, state.manager.statistics(), _skew(state)
    return {
        "devices": {device: asdict(books) for device, books in seen.devices.items()},
        "models": {key: _model(each, seen, skew) for key, each in seen.models.items()},
        "tasks": {
            name: {
                "selected": task.selected,
                "option_model": None if (model := seen.tasks[name].model) is None else model.key,
                "kind": task.kind,
                "options": list(task.options),
            }
            for name, task in manager.tasks.items()
        },
        "waiting": seen.waiting,
        "oldest_wait_s": seen.oldest_wait_s,
        "healthy": seen.healthy,
        "warmup": dict(seen.warmup),
        "leases": state.leases.rows(),
        "draining": state.draining,
        "version": installed(),
        "uptime_s": round(time.monotonic() - state.since, 3),
    }


def models_of(state: State) -> list[dict[str, Any]]:
    """Every option of every task: its state, what it needs, and how it fits."""
    manager, seen, skew = state.manager, state.manager.statistics(), _skew(state)
    known = {
        key: (each.need_bytes, "estimated")
        for key, each in seen.models.items()
        if each.need_bytes and not each.measured
    }
    return [_option(state, seen, fit, skew) for fit in manager.budget(known).options]


def _option(state: State, seen: Statistics, fit: OptionFit, skew: float) -> dict[str, Any]:
    manager = state.manager
    config = manager.tasks[fit.task].options[fit.option]
    key = manager.key_of(fit.task, fit.option)
    model = None if key is None else seen.models.get(key)
    return {
        "task": fit.task,
        "option": fit.option,
        "selected": fit.selected,
        "kind": manager.tasks[fit.task].kind,
        "framework": config.framework,
        "model_id": config.model_id,
        "model": key,
        "fit": fit.fit.name.lower(),
        "fit_text": fit.fit.value,
        "why": fit.why,
        "need_bytes": fit.need,
        "need_source": fit.source,
        "devices": list(fit.devices),
        "state": "external" if key is None else "unavailable" if model is None else model.state.value,
        "pinned": model is not None and model.pinned,
        "leases": 0 if model is None else model.leases,
        "waiting": 0 if model is None else model.waiting,
        "charged_bytes": 0 if model is None else sum(_bytes(model).values()),
        "last_used": None if model is None else _unix(model.last_used, skew),
        "cooldown_until": None if model is None else _unix(model.cooldown_until, skew),
    }


def budget_of(state: State) -> dict[str, Any]:
    """What all selected options need together, device by device."""
    found = state.manager.budget()
    return {
        "devices": [asdict(device) for device in found.devices],
        "all_resident": found.all_resident,
        "servable": found.servable,
        "problems": list(found.problems),
    }


def _model(model: ModelStatus, seen: Statistics, skew: float) -> dict[str, Any]:
    times = {name: _unix(getattr(model, name), skew) for name in ("last_used", "loaded_at", "cooldown_until")}
    return {
        **{name: plain(getattr(model, name)) for name in ModelStatus.__dataclass_fields__},
        **times,
        "state": model.state.value,
        "info": plain(seen.info.get(ModelKey(model.key), {})),
    }


def _bytes(model: ModelStatus) -> Mapping[str, int]:
    return {device: amount for device, amount in model.charges.items() if device not in NO_DEVICES}


def plain(value: Any, depth: int = 6) -> Any:
    """A value as JSON has it. What backends say of their models is theirs, so it may be anything."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 63 else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping) and depth:
        return {str(name): plain(each, depth - 1) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)) and depth:
        return [plain(each, depth - 1) for each in value]
    return str(value)[:500]


def _skew(state: State) -> float:
    """What makes the manager's clock Unix time."""
    performer = state.manager.performer
    return 0.0 if performer is None else time.time() - performer.time()


def _unix(at: float | None, skew: float) -> float | None:
    return None if at is None else round(at + skew, 3)


@functools.cache
def installed() -> str:
    """The version that runs."""
    try:
        return version("taskrouter")
    except PackageNotFoundError:
        return "unknown"
