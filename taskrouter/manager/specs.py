"""From what the file says and what the machine has to what the residency core knows: devices, models, settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from taskrouter.backends.registry import Registry
from taskrouter.config import Catalog, ModelConfig, TaskConfig, model_request
from taskrouter.errors import TaskRouterError
from taskrouter.memory.devices import DeviceInfo
from taskrouter.residency import Settings
from taskrouter.types import CPU, DeviceId, DeviceSpec, Footprint, ModelKey, ModelRequest, ModelSpec, Traits

MOST_PLACEMENTS = 64
HOST_SHARE = 0.5
"""Of all RAM, for sleeping models under `host_budget: auto`; free it has to be beside."""

SLEEP = ("auto", "discard", "never")
"""What options that share a model may say of its sleep: the later one counts."""


@dataclass(frozen=True, slots=True)
class Use:
    """One option of one task, and the model it is."""

    task: str
    option: str
    config: ModelConfig
    request: ModelRequest


def settings(catalog: Catalog, machine: Iterable[DeviceInfo] = ()) -> Settings:
    memory = catalog.memory
    ram = next((info.total for info in machine if info.id == CPU), 0)
    return Settings(
        host_budget=int(ram * HOST_SHARE) if memory.host_budget == "auto" else int(memory.host_budget),
        policy=memory.policy,
        max_models=memory.max_models,
        claim_s=memory.claim_s,
        min_residency_s=None if memory.min_residency_s == "auto" else float(memory.min_residency_s),
    )


def devices(catalog: Catalog, machine: Iterable[DeviceInfo]) -> tuple[DeviceSpec, ...]:
    """The machine's devices with the file's budgets; ``cpu`` always has a ledger, for host RAM."""
    specs = []
    for info in machine:
        written = catalog.memory.devices.get(info.id)
        specs.append(
            DeviceSpec(
                id=info.id,
                total=info.total,
                budget=written.budget if written else None,
                threshold=catalog.inference.offload_threshold,
                reserve=written.reserve if written else 0,
            )
        )
    return tuple(specs)


def placements(config: ModelConfig, machine: Iterable[DeviceInfo]) -> tuple[tuple[DeviceId, ...], ...]:
    """The device sets an option may be put on; none where it names a device that isn't there.

    A number asks for that many GPUs, any of them; where there is no GPU at all, models go to ``cpu``.
    """
    present = [info.id for info in machine]
    gpus = [device for device in present if device != CPU]
    if isinstance(config.devices, int):
        if not gpus:
            return ((CPU,),)
        return tuple(itertools.islice(itertools.combinations(gpus, config.devices), MOST_PLACEMENTS))
    named = tuple(DeviceId(device) for device in config.devices)
    return (named,) if all(device in present for device in named) else ()


def device_names(config: ModelConfig) -> str:
    """The devices an option is written for, in words: ``2 GPUs``, ``cuda:3``, ``cuda:0 + cuda:1``."""
    if isinstance(config.devices, int):
        return f"{config.devices} GPU{'' if config.devices == 1 else 's'}"
    return " + ".join(config.devices)


def uses(catalog: Catalog) -> tuple[Use, ...]:
    """Every local option of every task, in the order of the file.

    A model is called by its option's name; by task and option where several models would be called the same. Where one
    of the options that share a model says ``sleep: never``, it never sleeps: engines are started for that. Where one
    says ``discard``, it keeps no weights.
    """
    found = [
        Use(task.task_name, name, option, model_request(task, name, catalog=catalog))
        for task in catalog.tasks.values()
        for name, option in task.options.items()
        if not option.is_external
    ]
    models: dict[str, set[ModelKey]] = {}
    for use in found:
        models.setdefault(use.option, set()).add(use.request.key)
    sleep: dict[ModelKey, str] = {}
    for use in found:
        sleep[use.request.key] = max(sleep.get(use.request.key, SLEEP[0]), use.request.sleep, key=SLEEP.index)
    return tuple(
        replace(use, request=_told(use, alone=len(models[use.option]) == 1, sleep=sleep[use.request.key]))
        for use in found
    )


def _told(use: Use, *, alone: bool, sleep: str) -> ModelRequest:
    label = use.option if alone else f"{use.task}/{use.option}"
    return replace(use.request, label=label, sleep=sleep)


def model_specs(
    catalog: Catalog,
    every: Iterable[Use],
    selected: Mapping[str, str],
    machine: tuple[DeviceInfo, ...],
    registry: Registry,
) -> dict[ModelKey, ModelSpec]:
    """One spec per model. Options that are the same model share it: the strictest wish of each kind holds for it.

    Pinned: any. Keep-alive: the longest. Priority: the highest. Concurrency: the smallest. Declared need: the largest.
    A model without a placement here, or whose framework can't be used here, has no spec.
    """
    by_key: dict[ModelKey, list[Use]] = {}
    for use in every:
        by_key.setdefault(use.request.key, []).append(use)
    specs = {}
    for key, shared in by_key.items():
        spec = _spec(key, shared, catalog.tasks, selected, machine, registry)
        if spec is not None:
            specs[key] = spec
    return specs


def _spec(
    key: ModelKey,
    shared: list[Use],
    tasks: Mapping[str, TaskConfig],
    selected: Mapping[str, str],
    machine: tuple[DeviceInfo, ...],
    registry: Registry,
) -> ModelSpec | None:
    first = shared[0]
    where = placements(first.config, machine)
    traits = traits_of(first.request, registry)
    if not where or traits is None:
        return None
    configs = [use.config for use in shared]
    keep_alives = [config.keep_alive_s for config in configs]
    concurrencies = [config.max_concurrency for config in configs if config.max_concurrency is not None]
    vram, ram = max(config.vram_bytes for config in configs), max(config.ram_bytes for config in configs)
    return ModelSpec(
        key=key,
        label=first.request.label,
        need=Footprint(vram, ram),
        placements=where,
        traits=traits,
        slots=min(concurrencies, default=None),
        priority=max(tasks[use.task].priority for use in shared),
        pinned=any(config.pinned for config in configs),
        keep_alive_s=None if None in keep_alives else max(seconds for seconds in keep_alives if seconds is not None),
        selected=any(selected.get(use.task) == use.option for use in shared),
        declared=vram > 0,
    )


def traits_of(request: ModelRequest, registry: Registry) -> Traits | None:
    """A backend's traits; ``None`` where it can't be used in this installation."""
    try:
        return registry.get(request.framework).traits(request)
    except TaskRouterError:
        return None


def sharing_warnings(every: Iterable[Use]) -> list[str]:
    """Options that are one model and declare different needs: what ``validate`` warns of."""
    by_key: dict[ModelKey, list[Use]] = {}
    for use in every:
        by_key.setdefault(use.request.key, []).append(use)
    found = []
    for shared in by_key.values():
        needs = {use.config.vram_gb for use in shared}
        if len(needs) > 1:
            names = ", ".join(f"{use.task}.{use.option} {use.config.vram_gb:g}" for use in shared)
            found.append(f"these options are one model and declare different vram_gb ({names}): the largest is used")
    return found
