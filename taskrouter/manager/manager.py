"""``ModelManager``: a task-keyed manager of models that do not all fit.

The names, constructors and return shapes of the task-keyed managers that came before it are kept; what is new stands
beside them. Nothing is loaded, and no device looked at, before the first call that needs it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from opentelemetry.context import Context, get_current
from opentelemetry.trace import TracerProvider

from taskrouter import errors, telemetry
from taskrouter.backends.registry import Registry
from taskrouter.config import Catalog, InferenceConfig, TaskConfig, load_catalog
from taskrouter.config.frameworks import nearest
from taskrouter.config.frozen import freeze
from taskrouter.manager import reports, specs
from taskrouter.manager.budget import Budget, Survey
from taskrouter.manager.leaks import LeakWatch
from taskrouter.manager.leases import Held, Lease, Model, held_lease, holding
from taskrouter.manager.machine import Machine, ThisMachine
from taskrouter.manager.performing import Performer
from taskrouter.manager.spans import Spans
from taskrouter.manager.statistics import Statistics, snapshot
from taskrouter.manager.targets import Target
from taskrouter.manager.views import LiveView
from taskrouter.media.limits import MediaLimits
from taskrouter.memory.devices import DeviceInfo
from taskrouter.residency import Residency, State
from taskrouter.residency.events import Acquire, Reason, Reconfigure, Release, Retire, Shutdown
from taskrouter.types import CPU, DeviceId, DeviceReading, ModelKey, ModelRequest, ModelSpec, TicketId

DRAIN_S = 30.0


class ModelManager:
    """Resolves a task to its selected option, makes room on the device, loads, and hands out leases.

    Bound to the event loop of its first await: from another one it raises ``WrongLoop``, in a forked child ``Forked``.
    Raises ``ConfigError`` (a ``ValueError``) for a bad file, ``ConfigNotFound`` (a ``FileNotFoundError``) for a missing
    one. ``registry``, ``machine``, ``tracer_provider`` and ``environ`` are for embedding and for tests.
    """

    def __init__(
        self,
        config_path: str | os.PathLike[str],
        *,
        registry: Registry | None = None,
        machine: Machine | None = None,
        tracer_provider: TracerProvider | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._registry = registry if registry is not None else Registry()
        self._catalog = load_catalog(config_path, frameworks=self._registry.frameworks(), environ=environ)
        self._machine: Machine = machine if machine is not None else ThisMachine(share=self._catalog.memory.share)
        self._tracer_provider = tracer_provider
        self._tracer = telemetry.tracer(tracer_provider)
        self._selected = {name: task.selected for name, task in self._catalog.tasks.items()}
        self._uses = specs.uses(self._catalog)
        self._keys = {(use.task, use.option): use.request.key for use in self._uses}
        self._targets: dict[str, Target] = {}
        self.performer: Performer | None = None
        self._pid = os.getpid()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._warmed: dict[str, str] = {}
        self._frozen_config: dict[str, Any] = freeze(self._catalog.raw)
        self.leases: dict[TicketId, Held] = {}
        self.media_limits = MediaLimits(
            max_bytes=self._catalog.media.max_bytes,
            max_pixels=self._catalog.media.max_pixels,
            max_seconds=self._catalog.media.max_seconds,
            roots=self._catalog.media_roots,
        )
        self.stream_idle_s = self._catalog.memory.stream_idle_s

    def __repr__(self) -> str:
        return f"<ModelManager {self._catalog.path}: {len(self.tasks)} tasks, {self._core!r}>"

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
        return LiveView(
            lambda: {
                name: task if task.selected == self._selected[name] else task.with_selected(self._selected[name])
                for name, task in self._catalog.tasks.items()
            }
        )

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
        return reports.external_api_config(self._catalog, task)

    def _task(self, name: str) -> TaskConfig:
        task = self._catalog.tasks.get(name)
        if task is None and name == "default" and self._catalog.default_task is not None:
            task = self._catalog.tasks[self._catalog.default_task]
        if task is None:
            near = nearest(str(name), list(self._catalog.tasks))
            hint = f"; did you mean {near!r}?" if near else f"; there are {', '.join(self._catalog.tasks)}"
            raise errors.UnknownTask(f"there is no task {name!r} in {self._catalog.path}{hint}")
        return self.tasks[task.task_name]

    # --- the core, made on first use ----------------------------------------------------------------------------------

    @functools.cached_property
    def _devices(self) -> tuple[DeviceInfo, ...]:
        return self._machine.devices

    def _specs(self) -> dict[ModelKey, ModelSpec]:
        return specs.model_specs(self._catalog, self._uses, self._selected, self._devices, self._registry)

    @functools.cached_property
    def _core(self) -> Residency:
        return Residency(
            specs.devices(self._catalog, self._devices), self._specs().values(), specs.settings(self._catalog)
        )

    @functools.cached_property
    def _requests(self) -> dict[ModelKey, ModelRequest]:
        requests: dict[ModelKey, ModelRequest] = {}
        for use in self._uses:
            requests.setdefault(use.request.key, use.request)
        return requests

    def enter(self) -> Performer:
        """Bind to the running loop on the first call; refuse another loop, a forked child, and a closed manager."""
        performer = self.performer
        if performer is not None and performer.loop is asyncio.get_running_loop() and not performer.closed:
            return performer
        if self._closed:
            raise errors.ManagerClosed(f"the manager of {self._catalog.path} has been shut down; make a new one")
        if performer is None:
            return self._begin()
        if os.getpid() != self._pid:
            raise errors.Forked("this manager was started before the process was forked; make one in the child")
        raise errors.WrongLoop(
            "this manager is bound to another event loop; make one for each loop, or use manager.blocking()"
        )

    def _begin(self) -> Performer:
        self._pid = os.getpid()
        spans = Spans(self._tracer_provider, self._requests)
        engines = self._catalog.engines

        def start_timeout_s(framework: str) -> float:
            return engines[framework].start_timeout_s if framework in engines else 600.0

        performer = Performer(self._core, self._registry, self._machine, spans, self._requests, start_timeout_s)
        performer.on_observe.append(LeakWatch(self.leases, self._catalog.memory.lease_warn_s).look)
        performer.start()
        self.performer = performer
        return performer

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
        key = self._keys[task.task_name, name]
        if key not in self._specs_known:
            self._registry.get(self._requests[key].framework)  # raises what keeps this backend from being used
            have = ", ".join(info.id for info in self._devices)
            raise errors.PreflightFailed(
                f"{task.task_name}/{name} is written for devices {config.devices}, and this machine has {have}"
            )
        return Target(
            task=task.task_name,
            option=name,
            key=key,
            kind=task.kind,
            max_wait_s=task.max_wait_s if task.max_wait_s is not None else self._catalog.inference.max_wait_s,
            priority=task.priority,
            attributes=telemetry.attributes(
                task=task.task_name, option=name, model=key, framework=self._requests[key].framework
            ),
        )

    @functools.cached_property
    def _specs_known(self) -> frozenset[ModelKey]:
        return frozenset(self._specs())

    # --- models -------------------------------------------------------------------------------------------------------

    async def get_model(self, task_type: str, *, timeout: float | None = None, priority: int | None = None) -> Model:
        """A handle on the task's model, which is ready when this returns; loads it, and makes room, if need be.

        ``timeout`` bounds queue and load in seconds; default the task's ``max_wait_s``. Raises ``UnknownTask``,
        ``InsufficientMemory``, ``Overloaded`` at the deadline, ``LoadFailed``, ``CoolingDown`` and their like.
        """
        performer = self.enter()
        target = self.target(task_type)
        handle = Model(self, target.task)
        event = self._claim(performer, target, timeout, priority)
        await performer.acquire(event, task=target.task, option=target.option)
        handle.claim(performer, event.ticket)
        telemetry.annotate_current(target.attributes)
        return handle

    async def load_model(self, task_type: str) -> Model:
        """The same as ``get_model``: a loaded model is handed out as it is."""
        return await self.get_model(task_type)

    @staticmethod
    def _claim(
        performer: Performer, target: Target, timeout: float | None, priority: int | None = None, **more: Any
    ) -> Acquire:
        return Acquire(
            ticket=next(performer.ids),
            key=target.key,
            deadline=performer.loop.time() + (target.max_wait_s if timeout is None else timeout),
            priority=target.priority if priority is None else priority,
            claim=True,
            holding=holding(),
            **more,
        )

    def lease(
        self, task_type: str, *, timeout: float | None = None, priority: int | None = None, option: str | None = None
    ) -> Lease:
        """``async with manager.lease(task) as model``: the model can't be evicted meanwhile, and takes one slot.

        ``option`` leases another option than the selected one. Raises as ``get_model`` does, on entry.
        """
        frame = sys._getframe(1)
        return Lease(self, self.target(task_type, option), timeout, priority, (frame.f_code, frame.f_lineno))

    async def unload_model(self, task_type: str, *, force: bool = False) -> None:
        """Unload the task's model: operations at work finish first (``force``: are told to stop), waiters are refused.

        Nothing happens where it isn't loaded. Other tasks that share the model lose it too. Raises ``UnknownTask``,
        ``WouldDeadlock`` where the caller itself holds a lease on it, ``ModelStuck`` for a load that can't be killed.
        """
        performer = self.enter()
        task = self._task(task_type)
        key = self._keys.get((task.task_name, task.selected))
        if key is not None and key in self._specs_known:
            await self._unload(performer, key, get_current(), force=force)

    async def _unload(self, performer: Performer, key: ModelKey, context: Context, *, force: bool = False) -> None:
        self._check_own_lease(key)
        state = self._core.status(key).state
        if state is State.STUCK:
            raise errors.ModelStuck(f"{self._requests[key].label} can't be unloaded: its load is stuck")
        if state in (State.READY, State.DRAINING):
            performer.spans.asked(key, context)
        gone = performer.gone(key)
        performer.post(Retire(key))
        resident = performer.residents.get(key)
        if force and resident is not None:
            text = f"{resident.request.label} was unloaded by force while it answered"
            resident.stop_operations(errors.Unloaded(text))
        if self._core.status(key).state in (State.DISK, State.COOLDOWN):
            gone.cancel()
            return
        await gone

    def _check_own_lease(self, key: ModelKey) -> None:
        if held_lease(self, key) is not None:
            raise errors.WouldDeadlock(
                f"{self._requests[key].label} can't be unloaded by a caller that holds a lease on it; leave that first"
            )

    def get_lru_model(self) -> str | None:
        """The task whose idle model was used longest ago, or ``None`` where none is loaded (and idle, and unpinned)."""
        key = self._core.lru()
        return None if key is None else self._task_of(key)

    def _task_of(self, key: ModelKey) -> str:
        """The task a model belongs to: one that selects it, else any that lists it."""
        tasks = [use.task for use in self._uses if use.request.key == key]
        selecting = [name for name in tasks if self._keys.get((name, self._selected[name])) == key]
        return (selecting or tasks)[0]

    async def evict_lru_model(self) -> str | None:
        """Unload the idle model used longest ago; answers its task, or ``None`` where there is none to evict."""
        performer = self.enter()
        key = self._core.lru()
        if key is None:
            return None
        span = telemetry.start_evict_span(self._tracer, get_current(), victims=[key], reason=Reason.RETIRED.value)
        try:
            await self._unload(performer, key, telemetry.context_of(span))
        except BaseException as error:
            telemetry.end_span(span, error)
            raise
        telemetry.end_span(span)
        return self._task_of(key)

    async def set_selected_model(self, task_type: str, model_name: str) -> None:
        """Select another option of a task.

        If the task's model is resident, the new one is loaded first (beside the old one if both fit, else in its
        place), and then the old one is dropped unless another task selects it. Whatever fails leaves the selection as
        it was. Raises ``UnknownTask``, ``UnknownOption``, and what loading raises.
        """
        performer = self.enter()
        task = self._task(task_type)
        name = task.task_name
        if model_name == self._selected[name]:
            return
        config = task.with_selected(model_name).get_selected_config()
        old = self._keys.get((name, self._selected[name]))
        if old is not None and old != self._keys.get((name, model_name)) and self._selecting(old) == 1:
            self._check_own_lease(old)
        if config.is_external:
            reason = self._catalog.why_unavailable(name, model_name)
            if reason:
                raise errors.MissingDependency(f"{name}/{model_name} can't be used: {reason}")
            self._select(performer, name, model_name)
        else:
            new = self._make_target(task, model_name)
            if old is not None and new.key != old and self._is_resident(old):
                await self._replace(performer, name, new, old)
            else:
                self._select(performer, name, model_name)
        if old is not None and not self._selecting(old) and self._is_resident(old):
            await self._unload(performer, old, get_current())

    async def _replace(self, performer: Performer, task: str, new: Target, old: ModelKey) -> None:
        event = self._claim(performer, new, None, replaces=None if self._selecting(old) > 1 else old)
        await performer.acquire(event, task=task, option=new.option)
        self._select(performer, task, new.option)
        performer.post(Release(event.ticket))

    def _select(self, performer: Performer, task: str, option: str) -> None:
        self._selected[task] = option
        self._targets.clear()
        for spec in self._specs().values():
            performer.post(Reconfigure(spec))

    def _selecting(self, key: ModelKey) -> int:
        """How many tasks select this model."""
        return sum(self._keys.get(item) == key for item in self._selected.items())

    def _is_resident(self, key: ModelKey) -> bool:
        return key in self._core.resident()

    async def warmup_models(self) -> None:
        """Load the selected models that fit, by priority and then in the order of the file; never evicts.

        Does nothing unless ``inference.warmup_on_startup``. What couldn't be loaded is logged and stands in
        ``statistics().warmup``; it is not fatal.
        """
        if not self._catalog.inference.warmup_on_startup:
            return
        performer = self.enter()
        order = sorted(self.tasks.values(), key=lambda task: -task.priority)
        await asyncio.gather(*[self._warm_up(performer, task.task_name) for task in order])

    async def _warm_up(self, performer: Performer, name: str) -> None:
        try:
            if self.is_external_api(name):
                self._warmed[name] = "external"
                return
            target = self.target(name)
            event = self._claim(performer, target, None, background=True)
            await performer.acquire(event, task=name, option=target.option)
            performer.post(Release(event.ticket))
            self._warmed[name] = "loaded"
        except errors.TaskRouterError as error:
            self._warmed[name] = str(error)
            reports.logger.warning("warm-up of %s: %s", name, error)

    # --- what is there ------------------------------------------------------------------------------------------------

    @property
    def loaded_models(self) -> Mapping[str, Any]:
        """Tasks with a loaded model, least recently used first, each with a handle on it."""
        return LiveView(lambda: {task: Model(self, task) for task, _ in self._loaded()})

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

    # --- the end ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> ModelManager:
        self.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def shutdown(self, drain_s: float = DRAIN_S) -> None:
        """Refuse who waits, let operations finish for at most ``drain_s`` seconds, unload everything. Idempotent."""
        performer = self.performer
        if performer is None:
            self._closed = True
            return
        if self._closing is None:
            if performer.loop is not asyncio.get_running_loop():
                self.enter()
            self._closed = performer.closed = True
            self._closing = performer.loop.create_task(self._shut_down(performer, drain_s))
        await asyncio.shield(self._closing)

    async def _shut_down(self, performer: Performer, drain_s: float) -> None:
        performer.post(Shutdown())
        if not await performer.quiet(drain_s):
            for resident in list(performer.residents.values()):
                text = f"{resident.request.label} was still in use {drain_s:g} s after the manager began to shut down"
                performer.lose(resident, errors.ManagerClosed(text))
            await performer.quiet(DRAIN_S)
        await performer.stop()
        await self._registry.close()
        self._machine.close()

    def blocking(self) -> Any:
        """The same manager for synchronous callers: its loop runs in a thread."""
        from taskrouter.manager.blocking import BlockingManager

        return BlockingManager(self)
