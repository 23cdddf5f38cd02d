"""What a manager can be asked without waiting: what is loaded, what memory there is, whether the file fits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskrouter.manager import reports, specs
from taskrouter.manager.budget import Budget, Survey
from taskrouter.manager.configured import Configured
from taskrouter.manager.statistics import Statistics, snapshot
from taskrouter.manager.views import LiveView
from taskrouter.memory.devices import DeviceInfo
from taskrouter.types import CPU, DeviceId, DeviceReading, ModelKey


class Questions(Configured):
    """Answers that change nothing."""

    # --- what is there ------------------------------------------------------------------------------------------------

    @property
    def model_load_times(self) -> Mapping[str, float]:
        """When each task's model was loaded, in Unix seconds."""

        def look() -> dict[str, float]:
            skew = time.time() - self.performer.loop.time() if self.performer is not None else 0.0
            times = {task: self._core.status(key).loaded_at for task, key in self._loaded()}
            return {task: at + skew for task, at in times.items() if at is not None}

        return LiveView(look)

    @property
    def model_memory_usage(self) -> Mapping[str, int]:
        """Bytes each task's model is charged over all devices."""
        return LiveView(lambda: {task: reports.charged(self._core.status(key)) for task, key in self._loaded()})

    def _loaded(self) -> list[tuple[str, ModelKey]]:
        selected = {name: self._keys.get(item) for name, item in ((i[0], i) for i in self._selected.items())}
        return [(task, key) for key in self._core.resident() for task, its in selected.items() if its == key]

    def get_loaded_models(self) -> dict[str, dict[str, Any]]:
        """What is loaded: for each task its option, model, devices, bytes and times."""
        times = self.model_load_times
        return {
            task: reports.loaded_model(self.tasks[task], self._core.status(key), times.get(task))
            for task, key in self._loaded()
        }

    def selected_option(self, task: str) -> str:
        """The option that a task selects now; an empty name for a task that isn't there any more."""
        return self._selected.get(task, "")

    def key_of(self, task: str, option: str) -> ModelKey | None:
        """The model of an option; ``None`` for an external one, or one that isn't there."""
        return self._keys.get((task, option))

    @property
    def spend_path(self) -> Path | None:
        """The file that spend is kept in, where it is kept in one."""
        return getattr(self._spend, "path", None)

    def statistics(self) -> Statistics:
        """A frozen snapshot of everything: devices, models, who waits. Holds no reference to a model."""
        return snapshot(self._core, self._keys, self._selected, dict(self._warmed), self.performer)

    # --- memory -------------------------------------------------------------------------------------------------------

    def _look(self) -> Mapping[DeviceId, DeviceReading]:
        """Read the devices now."""
        return self._machine.look({device: self._core.books(device).charged for device in self._core.devices()})

    def _gpus(self) -> tuple[DeviceInfo, ...]:
        return tuple(info for info in self._devices if info.id != CPU)

    def get_total_vram(self) -> int:
        """Bytes over all GPUs; 0 without one."""
        return sum(info.total for info in self._gpus())

    def get_available_vram(self) -> int:
        """Bytes nobody uses, over all GPUs, as the driver sees it; 0 without one."""
        readings = self._look()
        return sum(max(info.total - self._used(info.id, readings.get(info.id)), 0) for info in self._gpus())

    def get_memory_usage_percentage(self) -> float:
        """Used fraction of all GPUs' memory, 0.0 to 1.0; 0.0 without one."""
        total = self.get_total_vram()
        return 1.0 - self.get_available_vram() / total if total else 0.0

    def _used(self, device: DeviceId, reading: DeviceReading | None) -> int:
        books = self._core.books(device)
        others = books.foreign + books.overhead if reading is None else reading.foreign + reading.overhead
        return others + books.charged + books.residue

    def check_memory_available(self, required_bytes: int) -> bool:
        """Whether one device (a GPU, or RAM where there is none) has so many bytes free, without evicting."""
        readings = self._look()
        wanted = {info.id for info in self._gpus() or self._devices}
        return any(
            reports.room(spec, self._core.books(spec.id), readings.get(spec.id)) >= required_bytes
            for spec in specs.devices(self._catalog, self._devices)
            if spec.id in wanted
        )

    def budget(self, known: Mapping[ModelKey, tuple[int, str]] | None = None) -> Budget:
        """What every option needs and how it fits this machine.

        ``known`` adds bytes, and where they come from, for models that declare none; what was measured is known anyway.
        """
        measured = {
            key: (status.need_bytes, "measured")
            for key, status in self._core.snapshot().models.items()
            if status.measured
        }
        devices = specs.devices(self._catalog, self._devices)
        found = {**(known or {}), **measured}
        return Survey(self._catalog, self._selected, self._uses, self._specs(), found, devices).take()

    def validate_memory_budget(self) -> dict[str, Any]:
        """Whether all selected models fit at once within the threshold (``valid``), and what fits by swapping.

        Sizes are what is declared; for models that declare none, what was measured or, unmeasured, 0 with a note.
        """
        return reports.memory_budget(self.budget(), self._catalog.inference.offload_threshold)

    def get_lru_model(self) -> str | None:
        """The task whose idle model was used longest ago, or ``None`` where none is loaded (and idle, and unpinned)."""
        key = self._core.lru()
        return None if key is None else self._task_of(key)

    def _task_of(self, key: ModelKey) -> str:
        """The task a model belongs to: one that selects it, else any that lists it."""
        tasks = [use.task for use in self._uses if use.request.key == key]
        selecting = [name for name in tasks if self._keys.get((name, self._selected[name])) == key]
        return (selecting or tasks)[0]
