"""Answers in the shapes of the seed's manager: plain dicts for loaded models and the memory budget."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from taskrouter import errors
from taskrouter.backends.registry import Registry
from taskrouter.config import Catalog, TaskConfig
from taskrouter.manager import budget
from taskrouter.manager.externals import key_env_of
from taskrouter.residency import HOST_BUDGET, MODEL_SLOTS, DeviceBooks, ModelStatus
from taskrouter.types import CPU, GIB, Charges, DeviceReading, DeviceSpec

logger = logging.getLogger("taskrouter")


@dataclass(frozen=True, slots=True)
class ExternalAPIConfig:
    """How to reach an external API. The key is read from the environment when it is asked for, and never shown."""

    provider: str
    model_id: str
    api_endpoint: str | None
    requires_api_key: bool
    api_key_env: str | None

    @property
    def api_key(self) -> str | None:
        """The key, or ``None`` where the environment has none."""
        return os.environ.get(self.api_key_env) if self.api_key_env else None


def external_api_config(catalog: Catalog, task: TaskConfig, registry: Registry) -> ExternalAPIConfig:
    """The selected option's; raises ``NotExternal`` for a local model."""
    option = task.get_selected_config()
    if not option.is_external or option.provider is None:
        raise errors.NotExternal(
            f"the task {task.task_name!r} selects {task.selected}, a local model under {option.framework}"
        )
    named: str | None
    try:
        named = key_env_of(catalog, option, registry.provider(option.provider))
    except errors.TaskRouterError:  # its plug-in isn't here, and it alone would know a name that isn't written
        settings = catalog.providers.get(option.provider)
        named = option.api_key_env or (settings.api_key_env if settings else None)
    return ExternalAPIConfig(option.provider, option.model_id, option.api_endpoint, option.requires_api_key, named)


def charged(status: ModelStatus) -> int:
    """Bytes over all devices."""
    return byte_sum(status.charges)


def byte_sum(charges: Charges) -> int:
    return sum(amount for device, amount in charges.items() if device not in (MODEL_SLOTS, HOST_BUDGET))


def loaded_model(task: TaskConfig, status: ModelStatus, loaded_at: float | None) -> dict[str, Any]:
    """One loaded model, for ``get_loaded_models``."""
    option = task.get_selected_config()
    return {
        "option": task.selected,
        "model_id": option.model_id,
        "framework": option.framework,
        "quantization": option.quantization,
        "state": status.state.value,
        "devices": list(status.devices),
        "memory_bytes": charged(status),
        "memory_gb": round(charged(status) / GIB, 3),
        "load_time": loaded_at,
        "leases": status.leases,
        "pinned": status.pinned,
    }


def room(spec: DeviceSpec, books: DeviceBooks, reading: DeviceReading | None) -> int:
    """Bytes a device has free under its budget, given what was just read of it."""
    foreign = reading.foreign if reading is not None else books.foreign
    overhead = reading.overhead if reading is not None else books.overhead
    usable = min(spec.capacity, spec.limit - foreign - overhead)
    return usable - books.charged - books.promised - books.residue


def memory_budget(found: budget.Budget, threshold: float) -> dict[str, Any]:
    """The budget in the shape of the seed's ``validate_memory_budget``."""
    gpus = [device for device in found.devices if device.device != CPU] or list(found.devices)
    needs = {fit.task: fit for fit in found.options if fit.selected}
    return {
        "valid": found.all_resident,
        "servable": found.servable,
        "total_vram_gb": round(sum(device.total for device in gpus) / GIB, 3),
        "total_required_gb": round(sum(device.selected for device in gpus) / GIB, 3),
        "threshold": threshold,
        "max_allowed_gb": round(sum(device.capacity for device in gpus) / GIB, 3),
        "model_requirements": {
            task: {
                "option": fit.option,
                "vram_gb": round(fit.need / GIB, 3),
                "source": fit.source,
                "devices": list(fit.devices),
                "fit": fit.fit.value,
            }
            for task, fit in needs.items()
        },
        "problems": list(found.problems),
    }
