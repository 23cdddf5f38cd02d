"""What people change while everything runs: what is loaded, which option is selected."""

from __future__ import annotations

import asyncio

from opentelemetry.context import Context, get_current

from taskrouter import errors, telemetry
from taskrouter.config import Catalog, parse_catalog
from taskrouter.config.writing import selected_can_be_written, write_selected
from taskrouter.manager.asking import check_bounds
from taskrouter.manager.binding import Bound
from taskrouter.manager.leases import held_lease
from taskrouter.manager.performing import Performer
from taskrouter.manager.targets import Target
from taskrouter.residency import State
from taskrouter.residency.events import ClearCooldown, Pin, Reason, Reconfigure, Release, Retire
from taskrouter.types import ModelKey


class Changing(Bound):
    """Loading, pinning, unloading, evicting, selecting."""

    async def load_option(self, task_type: str, option: str | None = None, *, timeout: float | None = None) -> None:
        """Have an option's model loaded (``None``: the selected one's), and return when it is ready.

        Unlike ``load_model`` it keeps no claim on it, and never asks another option instead. ``timeout`` is that of
        ``get_model``. Raises what that raises, ``UnknownOption``, and ``BadInput`` for an external option.
        """
        check_bounds(timeout, None)
        performer, target = self.enter(), self.local_target(task_type, option)
        event = self._claim(performer, target, timeout)
        await performer.acquire(event, task=target.task, option=target.option)
        performer.release(event.ticket)

    def local_target(self, task_type: str, option: str | None = None) -> Target:
        """The same as ``target``, of a model of this machine. Raises ``BadInput`` for an external option."""
        target = self.target(task_type, option)
        if self._catalog.tasks[target.task].options[target.option].is_external:
            raise errors.BadInput(f"{target.task}/{target.option} is an external API: it has no model here")
        return target

    async def pin_model(self, task_type: str, pinned: bool = True, option: str | None = None) -> None:
        """Keep the model of the task's selected option (or of this one) from being evicted, or no longer.

        It holds for every option that is the same model, loaded or not, until the process ends or what the file says
        of it is changed. Raises ``UnknownTask``, ``UnknownOption``, ``BadInput`` for an external option.
        """
        performer = self.enter()
        key = self.local_target(task_type, option).key
        self._pins[key] = pinned, self._specs_written()[key].pinned
        performer.post(Pin(key, pinned))

    async def unload_model(self, task_type: str, *, force: bool = False, option: str | None = None) -> None:
        """Unload the task's model: operations at work finish first (``force``: are told to stop), waiters are refused.

        ``option`` unloads another one's than the selected one's. Nothing happens where it isn't loaded. Other tasks
        that share the model lose it too. Raises ``UnknownTask``, ``UnknownOption``, ``WouldDeadlock`` where the caller
        itself holds a lease on it, ``ModelStuck`` for a load that can't be killed.
        """
        performer = self.enter()
        task = self._task(task_type)
        if option is not None:
            task = task.with_selected(option)
        key = self._keys.get((task.task_name, task.selected))
        if key is not None and key in self._specs_known:
            await self._unload(performer, key, get_current(), force=force)

    async def _unload(self, performer: Performer, key: ModelKey, context: Context, *, force: bool = False) -> None:
        self._check_own_lease(key)
        state = self._core.status(key).state
        if state is State.STUCK:
            raise errors.ModelStuck(f"{self._requests[key].label} can't be unloaded: its load is stuck")
        if state in (State.READY, State.DRAINING, State.HOST):
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

    async def clear_cooldown(self, task_type: str) -> None:
        """Forget the failures of the task's model, so that the next request tries it again at once."""
        performer = self.enter()
        task = self._task(task_type)
        self.router.forget(task)
        if not task.get_selected_config().is_external:
            performer.post(ClearCooldown(self.target(task_type).key))

    async def set_selected_model(self, task_type: str, model_name: str, *, persist: bool = False) -> None:
        """Select another option of a task; ``persist``: in the file as well, of which nothing else changes.

        If the task's model is resident, the new one is loaded first (beside the old one if both fit, else in its
        place), and then the old one is dropped unless another task selects it. Whatever fails leaves the selection as
        it was. Raises ``UnknownTask``, ``UnknownOption``, and what loading raises; with ``persist`` also ``BadInput``,
        ``ConfigError`` or ``OSError`` where the file can't hold it, or can't be written.
        """
        performer = self.enter()
        task = self._task(task_type)
        name = task.task_name
        task.with_selected(model_name)  # raises for an option that isn't there
        if persist:
            await asyncio.to_thread(selected_can_be_written, self.config_path, name, model_name, check=self._parse)
        before = self._selected[name]
        if model_name == before:
            if persist:
                await self._persist(name, model_name)
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
        if persist:
            try:
                await self._persist(name, model_name)
            except BaseException:
                self._select(performer, name, before)
                raise
        if old is not None and old in self._specs_known and not self._selecting(old) and self._is_there(old):
            await self._unload(performer, old, get_current())

    async def _persist(self, task: str, option: str) -> None:
        await asyncio.to_thread(write_selected, self.config_path, task, option, check=self._parse)
        self._written[task] = option

    def _parse(self, data: bytes) -> Catalog:
        """What a file with this content would say. Raises ``ConfigError``."""
        return parse_catalog(
            data, file=self._catalog.path, base_dir=self._catalog.base_dir, frameworks=self._registry.frameworks(),
            environ=self._environ,
        )  # fmt: skip

    async def _replace(self, performer: Performer, task: str, new: Target, old: ModelKey) -> None:
        # With an arrival it is no request of its own to who records those.
        replaces = None if self._selecting(old) > 1 else old
        event = self._claim(performer, new, None, replaces=replaces, arrival=performer.time())
        await performer.acquire(event, task=task, option=new.option)
        self._select(performer, task, new.option)
        performer.post(Release(event.ticket))

    def _select(self, performer: Performer, task: str, option: str) -> None:
        known = self._catalog.tasks.get(task)
        if known is None or option not in known.options:
            raise errors.UnknownOption(f"{task}/{option} is no longer configured: the file was reloaded meanwhile")
        self._selected[task] = option
        self._watchers.tell("selected", task=task, option=option)
        self._targets.clear()
        for spec in self._specs().values():
            performer.post(Reconfigure(spec))
        if performer.pipelines is not None:
            performer.pipelines.selected()
