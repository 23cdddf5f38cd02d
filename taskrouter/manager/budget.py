"""Does this file fit that machine? Arithmetic over what is declared, estimated or measured; nothing is loaded.

Per device: what all selected models together need (``valid`` asks for that), what fits only by swapping, and what can
never fit. A model that may go to one of several devices is placed first-fit, largest first, pinned ones before all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from taskrouter.config import Catalog
from taskrouter.manager.specs import Use, device_names
from taskrouter.residency import MODEL_SLOTS
from taskrouter.residency.messages import size
from taskrouter.types import CPU, DeviceId, DeviceSpec, Footprint, ModelKey, ModelSpec


class Fit(Enum):
    """How an option fits the machine."""

    TOGETHER = "fits beside all (other) selected"
    SWAPPING = "fits by swapping"
    NEVER = "can never fit"
    UNKNOWN = "need not known yet"
    EXTERNAL = "external"
    UNAVAILABLE = "can't be used here"


@dataclass(frozen=True, slots=True)
class OptionFit:
    """One option's line in the table. ``need`` is bytes on each device of ``devices``; ``about`` is for people."""

    task: str
    option: str
    selected: bool
    need: int
    source: str
    devices: tuple[DeviceId, ...]
    fit: Fit
    why: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True)
class DeviceFit:
    """One device's line: bytes that may be used, bytes all selected models need there, bytes of those pinned."""

    device: DeviceId
    total: int
    capacity: int
    selected: int
    pinned: int


@dataclass(frozen=True, slots=True)
class Budget:
    """The whole answer. ``all_resident``: every selected model at once; ``servable``: each of them beside the pins."""

    devices: tuple[DeviceFit, ...]
    options: tuple[OptionFit, ...]
    all_resident: bool
    servable: bool
    problems: tuple[str, ...]


class Rooms:
    """Devices being filled."""

    def __init__(self, devices: Iterable[DeviceSpec], max_models: int) -> None:
        self.left: dict[DeviceId, int] = {spec.id: spec.capacity for spec in devices}
        if max_models:
            self.left[MODEL_SLOTS] = max_models

    def need(self, spec: ModelSpec, devices: tuple[DeviceId, ...]) -> dict[DeviceId, int]:
        need = dict.fromkeys(devices, spec.need.device_bytes)
        if spec.need.ram_bytes:
            need[CPU] = need.get(CPU, 0) + spec.need.ram_bytes
        if MODEL_SLOTS in self.left:
            need[MODEL_SLOTS] = 1
        return need

    def where(self, spec: ModelSpec) -> tuple[DeviceId, ...] | None:
        """The first device set with room, or ``None``."""
        for devices in spec.placements:
            if all(self.left.get(device, 0) >= amount for device, amount in self.need(spec, devices).items()):
                return devices
        return None

    def put(self, spec: ModelSpec) -> tuple[DeviceId, ...] | None:
        devices = self.where(spec)
        for device, amount in self.need(spec, devices).items() if devices else ():
            self.left[device] -= amount
        return devices


def _first_fit_order(models: Iterable[ModelSpec]) -> list[ModelSpec]:
    return sorted(models, key=lambda spec: (not spec.pinned, -spec.need.device_bytes, spec.key))


class Survey:
    """One look at one file and one machine.

    ``known`` gives bytes, and where they come from (``measured``, ``estimated``), for models that declare nothing.
    """

    def __init__(
        self,
        catalog: Catalog,
        selected: Mapping[str, str],
        every: Iterable[Use],
        models: Mapping[ModelKey, ModelSpec],
        known: Mapping[ModelKey, tuple[int, str]],
        devices: tuple[DeviceSpec, ...],
    ) -> None:
        self._catalog = catalog
        self._selected = selected
        self._keys = {(use.task, use.option): use.request.key for use in every}
        self._known = known
        self._devices = devices
        self._most = catalog.memory.max_models
        self._models = {key: self._best(spec) for key, spec in models.items()}

    def _best(self, spec: ModelSpec) -> ModelSpec:
        if spec.declared or spec.key not in self._known:
            return spec
        return replace(spec, need=Footprint(self._known[spec.key][0], spec.need.ram_bytes))

    def take(self) -> Budget:
        """Work it out."""
        chosen = {
            self._keys[item]: self._models[self._keys[item]]
            for item in self._selected.items()
            if item in self._keys and self._keys[item] in self._models
        }
        order = _first_fit_order(chosen.values())
        together = Rooms(self._devices, self._most)
        placed = {spec.key: together.put(spec) for spec in order}
        pins = Rooms(self._devices, self._most)
        for spec in order:
            if spec.pinned:
                pins.put(spec)
        options = tuple(self._option(task, name, chosen, placed, pins) for task, name in self._every_option())
        problems = tuple(f"{fit.task}/{fit.option}: {fit.fit.value}: {fit.why}" for fit in options if self._is_bad(fit))
        return Budget(
            devices=self._device_fits(chosen.values(), placed),
            options=options,
            all_resident=not problems
            and all(where is not None for where in placed.values())
            and not any(fit.selected and fit.fit is Fit.UNKNOWN for fit in options),
            servable=not problems,
            problems=problems,
        )

    @staticmethod
    def _is_bad(fit: OptionFit) -> bool:
        return fit.selected and fit.fit in (Fit.NEVER, Fit.UNAVAILABLE)

    def _every_option(self) -> Iterable[tuple[str, str]]:
        return ((task.task_name, name) for task in self._catalog.tasks.values() for name in task.options)

    def _option(
        self,
        task: str,
        name: str,
        chosen: Mapping[ModelKey, ModelSpec],
        placed: Mapping[ModelKey, tuple[DeviceId, ...] | None],
        pins: Rooms,
    ) -> OptionFit:
        selected = self._selected[task] == name
        why = self._catalog.why_unavailable(task, name)
        config = self._catalog.tasks[task].options[name]
        key = self._keys.get((task, name))
        if key is None:
            return OptionFit(task, name, selected, 0, "external", (), Fit.UNAVAILABLE if why else Fit.EXTERNAL, why)
        spec = self._models.get(key)
        if spec is None:
            why = why or f"it is written for {device_names(config)}, which this machine doesn't have"
            need, source = config.vram_bytes, "declared" if config.vram_bytes else "unknown"
            return OptionFit(task, name, selected, need, source, (), Fit.UNAVAILABLE, why)
        source = "declared" if spec.declared else self._known[key][1] if key in self._known else "unknown"
        where = placed.get(key) if key in chosen else self._instead(task, spec, chosen)
        fit, where, reason = self._fit(spec, key in chosen, where, pins)
        if source == "unknown" and fit is not Fit.NEVER:
            fit = Fit.UNKNOWN
        return OptionFit(task, name, selected, spec.need.device_bytes, source, where, fit, reason)

    def _instead(self, task: str, spec: ModelSpec, chosen: Mapping[ModelKey, ModelSpec]) -> tuple[DeviceId, ...] | None:
        """Where this option would be if its task selected it and all selected models were resident; else ``None``."""
        others = {self._keys.get(item) for item in self._selected.items() if item[0] != task}
        models = [spec, *(other for key, other in chosen.items() if key in others)]
        rooms = Rooms(self._devices, self._most)
        placed = {model.key: rooms.put(model) for model in _first_fit_order(models)}
        return placed[spec.key] if all(where is not None for where in placed.values()) else None

    def _fit(
        self, spec: ModelSpec, is_chosen: bool, placed: tuple[DeviceId, ...] | None, pins: Rooms
    ) -> tuple[Fit, tuple[DeviceId, ...], str]:
        if placed is not None:
            return Fit.TOGETHER, placed, ""
        alone = Rooms(self._devices, self._most).where(spec)
        if alone is None:
            return Fit.NEVER, (), self._too_large(spec)
        beside = alone if spec.pinned and not is_chosen else pins.where(spec)
        if beside is None or (spec.pinned and is_chosen):
            if pins.left.get(MODEL_SLOTS) == 0:
                return Fit.NEVER, (), f"what is pinned fills memory.max_models ({self._most})"
            return Fit.NEVER, (), f"it needs {size(spec.need.device_bytes)} beside what is pinned"
        return Fit.SWAPPING, beside, ""

    def _too_large(self, spec: ModelSpec) -> str:
        """What even the empty machine lacks, in the words of the device that lacks least."""
        rooms = Rooms(self._devices, self._most)
        lacking = [
            (amount - rooms.left.get(device, 0), amount, rooms.left.get(device, 0), device)
            for devices in spec.placements
            for device, amount in rooms.need(spec, devices).items()
            if amount > rooms.left.get(device, 0)
        ]
        _, amount, most, device = min(lacking)
        of = " of host RAM" if not any(device in devices for devices in spec.placements) else ""
        return f"it needs {size(amount)}{of} and at most {size(most)} can be had"

    def _device_fits(
        self, chosen: Iterable[ModelSpec], placed: Mapping[ModelKey, tuple[DeviceId, ...] | None]
    ) -> tuple[DeviceFit, ...]:
        rooms = Rooms(self._devices, 0)
        selected = dict.fromkeys(rooms.left, 0)
        pinned = dict.fromkeys(rooms.left, 0)
        for spec in chosen:
            where = placed[spec.key] or spec.placements[0]
            for device, amount in rooms.need(spec, where).items():
                selected[device] += amount
                pinned[device] += amount if spec.pinned else 0
        return tuple(
            DeviceFit(device.id, device.total, device.capacity, selected[device.id], pinned[device.id])
            for device in self._devices
        )
