"""What was configured, and what a task means now: its selected option, and the model that is."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from opentelemetry.trace import Tracer, TracerProvider

from taskrouter import errors, telemetry
from taskrouter.backends.base import Backend, Call
from taskrouter.backends.external.base import Provider
from taskrouter.backends.registry import Registry
from taskrouter.config import Catalog, InferenceConfig, TaskConfig, load_catalog
from taskrouter.config.frameworks import EXTERNAL
from taskrouter.config.frozen import freeze
from taskrouter.manager import reports, specs
from taskrouter.manager.externals import Ledger, key_of
from taskrouter.manager.leases import Held
from taskrouter.manager.machine import Machine, ThisMachine
from taskrouter.manager.performing import Performer
from taskrouter.manager.routed import order_of
from taskrouter.manager.targets import Target
from taskrouter.manager.views import LiveView
from taskrouter.media.limits import MediaLimits
from taskrouter.memory.devices import DeviceInfo
from taskrouter.residency import Residency, State
from taskrouter.spend import SpendLedger
from taskrouter.types import ModelKey, ModelRequest, ModelSpec, TicketId


class Configured:
    """A manager's file, its selection, and the core that both are turned into on first use."""

    def __init__(
        self,
        config_path: str | os.PathLike[str],
        *,
        registry: Registry | None = None,
        machine: Machine | None = None,
        tracer_provider: TracerProvider | None = None,
        environ: Mapping[str, str] | None = None,
        spend: Ledger | None = None,
    ) -> None:
        self._registry = registry if registry is not None else Registry()
        self._environ = environ
        catalog = load_catalog(config_path, frameworks=self._registry.frameworks(), environ=environ)
        self._machine: Machine = machine if machine is not None else ThisMachine(share=catalog.memory.share)
        self._tracer_provider = tracer_provider
        self._spend: Ledger = spend if spend is not None else SpendLedger()
        self._tracer = telemetry.tracer(tracer_provider)
        self._targets: dict[str, Target] = {}
        self.performer: Performer | None = None
        self._pid = os.getpid()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._warmed: dict[str, str] = {}
        self.leases: dict[TicketId, Held] = {}
        self._pins: dict[ModelKey, tuple[bool, bool]] = {}
        """Models that were pinned (or not) meanwhile, and what the file said then."""
        self._configure(catalog)
        self._selected = dict(self._written)

    def _configure(self, catalog: Catalog) -> None:
        """Take over what a file says."""
        self._catalog = catalog
        self._written = {name: task.selected for name, task in catalog.tasks.items()}
        """What the file selects."""
        self._uses = specs.uses(catalog)
        self._keys = {(use.task, use.option): use.request.key for use in self._uses}
        self._frozen_config: dict[str, Any] = freeze(catalog.raw)
        self.media_limits = MediaLimits(
            max_bytes=catalog.media.max_bytes,
            max_pixels=catalog.media.max_pixels,
            max_seconds=catalog.media.max_seconds,
            max_frames=catalog.media.max_frames,
            roots=catalog.media_roots,
            remote=catalog.media.remote,
            allowed_hosts=tuple(catalog.media.allowed_hosts),
        )
        self.stream_idle_s = catalog.memory.stream_idle_s

    def __repr__(self) -> str:
        return f"<ModelManager {self._catalog.path}: {len(self.tasks)} tasks, {self._core!r}>"

    @property
    def tracer(self) -> Tracer:
        """What its spans are made with."""
        return self._tracer

    @property
    def traces_itself(self) -> bool:
        """Whether it was given a tracer provider of its own."""
        return self._tracer_provider is not None

    # --- what was configured ------------------------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        """The file as it was read, warnings included."""
        return self._catalog

    @property
    def config_path(self) -> Path:
        return Path(self._catalog.path)

    @property
    def config(self) -> dict[str, Any]:
        """The file as plain data; it can't be changed."""
        return self._frozen_config

    @property
    def tasks(self) -> Mapping[str, TaskConfig]:
        """The tasks, each with the option that is selected now."""
        return LiveView(lambda: {name: self._as_selected(task) for name, task in self._catalog.tasks.items()})

    def _as_selected(self, task: TaskConfig) -> TaskConfig:
        selected = self._selected[task.task_name]
        return task if task.selected == selected else task.with_selected(selected)

    @property
    def inference_config(self) -> InferenceConfig:
        return self._catalog.inference

    def get_model_config(self, task_type: str) -> TaskConfig | None:
        """The configuration of a task, or ``None`` if there is no such task."""
        try:
            return self._task(task_type)
        except errors.UnknownTask:
            return None

    def is_external_api(self, task_type: str) -> bool:
        """Whether the task's selected option is an external API. Raises ``UnknownTask``."""
        return self._task(task_type).get_selected_config().is_external

    def get_external_api_config(self, task_type: str) -> reports.ExternalAPIConfig:
        """How to reach the task's external API; the key is named, never shown.

        Raises ``UnknownTask``, or ``NotExternal`` where the selected option is a local model.
        """
        task = self._task(task_type)
        return reports.external_api_config(self._catalog, task, self._registry)

    def _task(self, name: str) -> TaskConfig:
        return self._as_selected(self._catalog.find(name))

    # --- the core, made on first use ----------------------------------------------------------------------------------

    @functools.cached_property
    def _devices(self) -> tuple[DeviceInfo, ...]:
        return self._machine.devices

    def _specs(self) -> dict[ModelKey, ModelSpec]:
        found = self._specs_written()
        for key, (pinned, written) in list(self._pins.items()):
            spec = found.get(key)
            if spec is None or spec.pinned is not written:
                del self._pins[key]  # the file has changed its mind, and it came later
            else:
                found[key] = replace(spec, pinned=pinned)
        return found

    def _specs_written(self) -> dict[ModelKey, ModelSpec]:
        return specs.model_specs(self._catalog, self._uses, self._selected, self._devices, self._registry)

    @functools.cached_property
    def _core(self) -> Residency:
        machine = self._devices
        return Residency(
            specs.devices(self._catalog, machine), self._specs().values(), specs.settings(self._catalog, machine)
        )

    @functools.cached_property
    def _requests(self) -> dict[ModelKey, ModelRequest]:
        requests: dict[ModelKey, ModelRequest] = {}
        for use in self._uses:
            requests.setdefault(use.request.key, use.request)
        return requests

    # --- what a task means now -----

    def target(self, task_type: str, option: str | None = None) -> Target:
        """What a task means now. Raises ``UnknownTask``, ``UnknownOption``, or what bars the option."""
        if option is None:
            known = self._targets.get(task_type)
            if known is not None:
                return known
        task = self._task(task_type)
        name = task.selected if option is None else option
        found = self._make_target(task, name)
        if option is None:
            self._targets[task_type] = found
        return found

    def _make_target(self, task: TaskConfig, name: str) -> Target:
        config = task.with_selected(name).get_selected_config()
        reason = self._catalog.why_unavailable(task.task_name, name)
        if reason:
            raise errors.MissingDependency(f"{task.task_name}/{name} can't be used: {reason}")
        key = key_of(task.task_name, name) if config.is_external else self._keys[task.task_name, name]
        if not config.is_external and key not in self._specs_known:
            self._registry.get(self._requests[key].framework)  # raises what keeps this backend from being used
            have = ", ".join(info.id for info in self._devices)
            raise errors.PreflightFailed(
                f"{task.task_name}/{name} is written for {specs.device_names(config)}, and this machine has {have}"
            )
        return Target(
            task=task.task_name,
            option=name,
            key=key,
            kind=task.kind,
            max_wait_s=task.max_wait_s if task.max_wait_s is not None else self._catalog.inference.max_wait_s,
            priority=task.priority,
            attributes=telemetry.attributes(
                task=task.task_name,
                option=name,
                model=key,
                framework=EXTERNAL if config.is_external else self._requests[key].framework,
            ),
            routed=bool(task.fallback) or config.is_external or task.when_cold != "wait",
        )

    def keys_of(self, task: str) -> list[ModelKey]:
        """The models of the options that a request to this task may be answered by, the selected one first."""
        config = self._task(task)
        return [
            key_of(task, name) if config.options[name].is_external else self._keys[task, name]
            for name in order_of(config)
        ]

    def backends(self, task: str, option: str | None = None) -> list[tuple[ModelRequest, Backend]]:
        """What may answer a request to this task on this machine: models and their backends, the selected option first.

        Those that can't be used are left out. Raises ``UnknownTask``.
        """
        config = self._task(task)
        found: list[tuple[ModelRequest, Backend]] = []
        for name in order_of(config) if option is None else (option,):
            key = self._keys.get((config.task_name, name))
            if key is not None:
                with suppress(errors.TaskRouterError):
                    found.append((self._requests[key], self._registry.get(self._requests[key].framework)))
        return found

    def own_verbs(self, task: str, option: str | None = None) -> dict[str, Call]:
        """The verbs of plug-ins' own that may be asked of this task, as their backends declare them."""
        found: dict[str, Call] = {}
        for _, backend in self.backends(task, option):
            found = {**getattr(backend, "calls", {}), **found}
        return found

    def provider(self, name: str) -> Provider:
        """A provider of external APIs. Raises what keeps it from being used."""
        return self._registry.provider(name)

    @functools.cached_property
    def _specs_known(self) -> frozenset[ModelKey]:
        return frozenset(self._specs())

    def _tasks_with(self, key: ModelKey) -> list[str]:
        """The tasks that list this model among their options."""
        return [use.task for use in self._uses if use.request.key == key]

    def _selecting(self, key: ModelKey) -> int:
        """How many tasks select this model."""
        return sum(self._keys.get(item) == key for item in self._selected.items())

    def _is_resident(self, key: ModelKey) -> bool:
        return key in self._core.resident()

    def _is_there(self, key: ModelKey) -> bool:
        """Whether the model holds bytes that nobody is freeing: it is resident, sleeps, or is on its way to either."""
        moving = self._core.status(key).state in (State.DEMOTING, State.HOST, State.PROMOTING)
        return moving or self._is_resident(key)
