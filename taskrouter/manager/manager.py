"""``ModelManager``: a task-keyed manager of models that do not all fit.

The names, constructors and return shapes of the task-keyed managers that came before it are kept; what is new stands
beside them. Nothing is loaded, and no device looked at, before the first call that needs it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from taskrouter import errors, telemetry
from taskrouter.manager import reports
from taskrouter.manager.asking import check_bounds
from taskrouter.manager.explaining import decided, told
from taskrouter.manager.handles import Model
from taskrouter.manager.leases import Lease, Where, holding
from taskrouter.manager.performing import Performer
from taskrouter.manager.pipelines import Pipeline
from taskrouter.manager.reloading import Reloading
from taskrouter.manager.routed import Found, Taken, order_of
from taskrouter.manager.routed_lease import RoutedLease
from taskrouter.manager.targets import Target
from taskrouter.manager.views import LiveView
from taskrouter.residency.events import Release, Shutdown

DRAIN_S = 30.0


class ModelManager(Reloading):
    """Resolves a task to its selected option, makes room on the device, loads, and hands out leases.

    Bound to the event loop of its first await: from another one it raises ``WrongLoop``, in a forked child ``Forked``.
    Raises ``ConfigError`` (a ``ValueError``) for a bad file, ``ConfigNotFound`` (a ``FileNotFoundError``) for a missing
    one. ``registry``, ``machine``, ``tracer_provider``, ``environ`` and ``spend`` are for embedding and for tests.
    """

    # --- models -------------------------------------------------------------------------------------------------------

    async def get_model(self, task_type: str, *, timeout: float | None = None, priority: int | None = None) -> Model:
        """A handle on the task's model, which is ready when this returns; loads it, and makes room, if need be.

        ``timeout`` bounds queue and load in seconds; default the task's ``max_wait_s``. Raises ``UnknownTask``,
        ``InsufficientMemory``, ``Overloaded`` at the deadline, ``LoadFailed``, ``CoolingDown`` and their like.
        """
        performer = self.enter()
        check_bounds(timeout, priority)
        target = self.target(task_type)
        handle = Model(self, target.task)
        if target.routed:
            taken = await self._take(target.task, timeout, priority)
            if taken.ticket is not None:
                handle.claim(performer, taken.ticket)
            selected = self._selected[target.task]
            handle.begin_with(Found(selected, taken.routed, performer.time() + self._catalog.memory.claim_s))
            return handle
        event = self._claim(performer, target, timeout, priority)
        await performer.acquire(event, task=target.task, option=target.option)
        handle.claim(performer, event.ticket)
        telemetry.annotate_current(target.attributes)
        return handle

    def handle(
        self,
        task_type: str,
        *,
        option: str | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> Model:
        """The same handle, with nothing loaded yet: its first call does that.

        ``option`` is the only one to ask; ``timeout`` and ``priority`` are those of each of its calls. Raises
        ``UnknownTask``, ``UnknownOption``, ``BadInput``.
        """
        check_bounds(timeout, priority)
        target = self.target(task_type, option)
        return Model(self, target.task, only=option, timeout=timeout, priority=priority)

    async def _take(self, task: str, timeout: float | None, priority: int | None) -> Taken:
        """An option that is ready, with a claim on it where it is a local one."""

        async def work(taken: Taken) -> Taken:
            return taken

        taken: Taken = await self.router.run(
            self._task(task), None, None, work, timeout=timeout, priority=priority, claim=True, holding=holding()
        )
        return taken

    async def load_model(self, task_type: str) -> Model:
        """The same as ``get_model``: a loaded model is handed out as it is."""
        return await self.get_model(task_type)

    @property
    def loaded_models(self) -> Mapping[str, Any]:
        """Tasks with a loaded model, least recently used first, each with a handle on it."""
        return LiveView(lambda: {task: Model(self, task) for task, _ in self._loaded()})

    def lease(
        self, task_type: str, *, timeout: float | None = None, priority: int | None = None, option: str | None = None
    ) -> Lease:
        """``async with manager.lease(task) as model``: the model can't be evicted meanwhile, and takes one slot.

        ``option`` leases another option than the selected one. Raises as ``get_model`` does, on entry.
        """
        if timeout is not None or priority is not None:
            check_bounds(timeout, priority)
        frame = sys._getframe(1)
        known = self._targets.get(task_type) if option is None else None
        target = known if known is not None else self.target(task_type, option)
        if target.routed:
            return self._routed_lease(target, option, timeout, priority, (frame.f_code, frame.f_lineno))
        return Lease(self, target, timeout, priority, (frame.f_code, frame.f_lineno))

    def _routed_lease(
        self, target: Target, option: str | None, timeout: float | None, priority: int | None, where: Where
    ) -> Lease:
        task = self._task(target.task)
        if option is not None:
            if not task.options[option].is_external:
                return Lease(self, target, timeout, priority, where)
            task = task.with_selected(option).model_copy(update={"fallback": ()})
        return RoutedLease(self, task, target, timeout, priority, where, only=option is not None)

    def pipeline(self, tasks: Sequence[str]) -> Pipeline:
        """``async with manager.pipeline([task, …])``: these tasks are coming, in this order, from whoever is inside.

        While no request waits, the models that are needed next are loaded ahead, into free memory or in place of those
        needed later, and they are kept. Raises ``UnknownTask``, ``BadInput`` for what is no list of names.
        """
        performer = self.enter()
        if isinstance(tasks, str) or not isinstance(tasks, Iterable):
            raise errors.BadInput(f"pipeline() takes a list of tasks, such as ['{tasks}'], not {type(tasks).__name__}")
        names = [self._task(task).task_name for task in tasks]
        if performer.pipelines is None:
            performer.pipelines = self._pipelines(performer)
        return performer.pipelines.begin(names)

    def explain(self, task_type: str) -> str:
        """How the task's latest requests were answered, and what was decided for its models, the newest first.

        Raises ``UnknownTask``.
        """
        task = self._task(task_type)
        order = ", then ".join(order_of(task))
        lines = [f"{task.task_name} asks {order}; when_cold: {task.when_cold}"]
        latest = self.router.latest.get(task.task_name, ()) if self.performer is not None else ()
        routed = bool(task.fallback) or task.get_selected_config().is_external
        lines += [told(at, ended) for at, ended in latest] or ["no request was routed yet"] * routed
        if self.performer is not None:
            keys = {self._keys.get((task.task_name, name)) for name in task.options}
            lines += decided(self._core, keys & self._specs_known, self.performer.time())
        return "\n".join(lines)

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
        self._stop_listening()
        performer.post(Shutdown())
        outside = performer.loop.create_task(self.router.externals.close(drain_s))
        if not await performer.quiet(drain_s):
            for resident in list(performer.residents.values()):
                text = f"{resident.request.label} was still in use {drain_s:g} s after the manager began to shut down"
                performer.lose(resident, errors.ManagerClosed(text))
            await performer.quiet(DRAIN_S)
        await outside
        await performer.stop()
        if performer.recorder is not None:
            await performer.recorder.close()
        await self._registry.close()
        self._machine.close()

    def blocking(self) -> Any:
        """The same manager for synchronous callers: its loop runs in a thread."""
        from taskrouter.manager.blocking import BlockingManager

        return BlockingManager(self)
