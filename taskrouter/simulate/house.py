"""The house that a trace is rehearsed in: devices, models, tasks, and how long things take there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from taskrouter.residency import Settings
from taskrouter.residency.records import READ_BYTES_PER_S, UNLOAD_PRIOR_S, wake_prior_s
from taskrouter.types import DeviceSpec, ModelKey, ModelSpec


@dataclass(frozen=True, slots=True)
class Served:
    """What a task's requests ask for: the model of its selected option, or ``None``, and then ``refused`` says why.

    ``None`` with nothing in ``refused`` is an external option: its requests take no memory here.
    """

    key: ModelKey | None
    max_wait_s: float = 120.0
    priority: int = 0
    refused: str = ""


@dataclass(frozen=True, slots=True)
class House:
    """Everything a rehearsal needs beside its trace.

    ``load_s`` are load times that are known; of others the core's own prior is taken. ``warm`` are the tasks that are
    warmed up before the first request, in this order. ``after`` are the pipelines: what is needed next, by whose word,
    once a task was asked for, and for ``patience_s``.
    """

    devices: tuple[DeviceSpec, ...]
    models: tuple[ModelSpec, ...]
    tasks: Mapping[str, Served]
    settings: Settings = field(default_factory=Settings)
    load_s: Mapping[ModelKey, float] = field(default_factory=dict)
    warm: tuple[str, ...] = ()
    after: Mapping[str, tuple[tuple[str, tuple[ModelKey, ...]], ...]] = field(default_factory=dict)
    patience_s: float = 300.0

    def owners(self) -> dict[ModelKey, str]:
        """The task in whose line a model's loads and evictions stand: the first that asks for it."""
        found: dict[ModelKey, str] = {}
        for name, task in self.tasks.items():
            if task.key is not None:
                found.setdefault(task.key, name)
        return found


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds that one model takes to be loaded, to wake, and to fall asleep; its unload takes ``UNLOAD_S``.

    The priors are the core's (``residency/records.py``): the backend's start time and its bytes at 0.5 GiB/s; awake 0.2
    s and its bytes at 4 GiB/s (at 0.5, where it keeps no weights), and falling asleep as
    long as a copy takes, or, without its weights, an unload.
    """

    load_s: float
    wake_s: float
    sleep_s: float


UNLOAD_S = UNLOAD_PRIOR_S


def durations(house: House) -> dict[ModelKey, Durations]:
    """How long each model of a house takes."""
    return {
        spec.key: Durations(
            house.load_s.get(spec.key, spec.traits.start_s + spec.need.device_bytes / READ_BYTES_PER_S),
            wake := wake_prior_s(spec.need.device_bytes, keeps_weights=spec.traits.keeps_weights),
            wake if spec.traits.keeps_weights else UNLOAD_S,
        )
        for spec in house.models
    }
