"""Performs what the core decides, and tells it how that ended. The only code that awaits backends.

Every preflight, load, unload and kill runs in a task of its own that belongs to the manager, under an empty context,
and ends in exactly one event, whatever is raised.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Mapping
from typing import Any

from taskrouter import errors
from taskrouter.backends.base import START_TIMED_OUT
from taskrouter.backends.registry import Registry
from taskrouter.manager.machine import Machine
from taskrouter.manager.posting import STOP_BOUND_S, Posting
from taskrouter.manager.refusals import fresh
from taskrouter.manager.repositories import reads
from taskrouter.manager.residents import Resident
from taskrouter.manager.spans import Spans
from taskrouter.residency import Residency, State
from taskrouter.residency.actions import CancelLoad, Kill, Load, Preflight, Unload
from taskrouter.residency.events import (
    Died,
    Event,
    GiveUp,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadStuck,
    Observed,
    Preflighted,
    PreflightFailed,
    Reclaimed,
    Unloaded,
)
from taskrouter.types import Charges, Footprint, ModelKey, ModelRequest

logger = logging.getLogger("taskrouter")

UNLOAD_BOUND_S = 10.0
"""How long an unload may take to be seen free; what is missing then is residue."""
OBSERVE_EVERY_S = 1.0


class Performer(Posting):
    """The acting half of the manager, bound to one event loop."""

    def __init__(
        self,
        core: Residency,
        registry: Registry,
        machine: Machine,
        spans: Spans,
        requests: Mapping[ModelKey, ModelRequest],
        start_timeout_s: Callable[[str], float],
    ) -> None:
        super().__init__(core, spans, requests)
        self.registry = registry
        self.machine = machine
        self.start_timeout_s = start_timeout_s
        self.on_observe: list[Callable[[float], None]] = []
        self.removing: set[str] = set()
        """Repositories whose files are being deleted: nothing is loaded from them."""
        self.preflights: dict[ModelKey, asyncio.Task[Any]] = {}
        self._loads: dict[ModelKey, asyncio.Task[Any]] = {}
        self._told_to_stop: set[ModelKey] = set()
        self._gone: dict[ModelKey, list[asyncio.Future[None]]] = {}
        self._residue: set[ModelKey] = set()
        self._unloading: set[ModelKey] = set()
        self._moved: asyncio.Future[None] | None = None
        self._perform.update(
            {
                Preflight: self._start_preflight,
                Load: self._start_load,
                CancelLoad: self._cancel_load,
                Unload: self._start_unload,
                Kill: self._start_unload,
            }
        )

    def start(self) -> None:
        """Begin to look at the devices."""
        self.spawn(self._observe_for_ever(), name="taskrouter-observe")

    # --- preflight ----------------------------------------------------------------------------------------------------

    def _start_preflight(self, action: Preflight) -> None:
        self.preflights[action.key] = self.spawn(self._preflight(action), name=f"preflight {action.key}")

    async def _preflight(self, action: Preflight) -> None:
        event: Event = PreflightFailed(action.key, action.generation, errors.ManagerClosed("the manager was stopped"))
        try:
            need, load_s, slots = await self._check(self.requests[action.key])
            await self.observe()
            self._refuse_unable(action.key)
            self._refuse_removed(self.requests[action.key])
            event = Preflighted(action.key, action.generation, need, load_s, slots)
        except Exception as error:  # noqa: BLE001  (every action ends in an event)
            event = PreflightFailed(action.key, action.generation, error)
        finally:
            self.preflights.pop(action.key, None)
            self.post(event)

    def _refuse_removed(self, request: ModelRequest) -> None:
        """Whatever was found of files that are being deleted is no longer so."""
        repo = next((repo for repo in self.removing if reads(request, repo)), None)
        if repo is not None:
            raise errors.FilesBeingRemoved(
                f"{request.label} can't be loaded: the files of {repo} are being deleted by request. Ask again when "
                "that is done: they are fetched anew.",
                retry_after_s=1.0,
            )

    def _refuse_unable(self, key: ModelKey) -> None:
        """Tell those who want to ask what the model can't do, before anything is loaded for them."""
        for ticket in self.waiting_for(key):
            waiter = self._waiters[ticket]
            error = self.unable(key, waiter.verb, waiter.request)
            if error is not None and not waiter.future.done():
                del self._waiters[ticket]
                waiter.future.set_exception(error)
                self.post(GiveUp(ticket))

    async def _check(self, request: ModelRequest) -> tuple[Footprint | None, float | None, int | None]:
        """Check that a model can be loaded; answers its best known footprint, measured before estimated, how long its
        loads took, and how many operations it works on at a time.
        """
        self._refuse_removed(request)
        found = await self.registry.get(request.framework).preflight(request)
        self.known[request.key] = found
        if found.verbs:
            self.verbs[request.key] = found.verbs
        await self.machine.take(self.core.placements(request.key))
        known = await self.machine.remembered(request.key)
        return (found.need, None, found.slots) if known is None else (known.need, known.load_s, found.slots)

    async def observe(self) -> None:
        """Look at the devices and tell the core; a reading that fails keeps the last one."""
        charged = {device: self.core.books(device).charged for device in self.core.devices()}
        readings = await asyncio.to_thread(self.machine.look, charged)
        if readings:
            self.post(Observed(readings))

    # --- load ---------------------------------------------------------------------------------------------------------

    def _start_load(self, action: Load) -> None:
        request = self.requests[action.key]
        backend = self.registry.get(request.framework)
        load = self._loads[action.key] = self.loop.create_task(
            backend.load(request, action.devices, action.charges),
            name=f"load {action.key}",
            context=contextvars.Context(),
        )
        self.spans.loading(action, request, self.waiting_for(action.key))
        self.spawn(self._see_load(action, load), name=f"see load {action.key}")

    def _cancel_load(self, action: CancelLoad) -> None:
        self._told_to_stop.add(action.key)
        self._loads[action.key].cancel()

    async def _see_load(self, action: Load, load: asyncio.Task[Any]) -> None:
        key, generation = action.key, action.generation
        request = self.requests[key]
        bound = self.start_timeout_s(request.framework)
        timed_out = False
        try:
            await asyncio.wait({load}, timeout=bound)
            told = key in self._told_to_stop  # and hasn't stopped for so long: once more would only give it up
            if not load.done() and not told and self.registry.get(request.framework).traits(request).cancellable:
                timed_out = True
                load.cancel(START_TIMED_OUT)
                await asyncio.wait({load}, timeout=STOP_BOUND_S)
            if not load.done():
                logger.error("%s: its load has been stuck for %.0f s and can't be killed", request.label, bound)
                self.post(LoadStuck(key, generation))
                self._moved_out(key, errors.ModelStuck(f"{request.label} can't be unloaded: its load is stuck"))
                await asyncio.wait({load})
        finally:
            del self._loads[key]
            if not load.done():
                # The supervisor itself is being cancelled: nobody will see how this load ends.
                load.cancel()
                self.post(LoadCancelled(key, generation))
        told_to_stop = key in self._told_to_stop
        self._told_to_stop.discard(key)
        if load.cancelled() and told_to_stop and not timed_out:
            self.spans.loaded(key, asyncio.CancelledError(), None)
            self.post(LoadCancelled(key, generation))
        elif (failure := self._failure(request, load, bound if timed_out else None)) is not None:
            logger.warning("load of %s failed: %s", request.label, failure)
            self.spans.loaded(key, failure, None)
            self.post(LoadFailed(key, generation, failure, isinstance(failure, errors.OutOfMemory)))
        else:
            event = self._moved_in(request, generation, load)
            self.post(event)
            if event.measured is not None:
                self.spawn(self.machine.remember(key, event.measured, self.core.status(key).load_s))
        if self.core.status(key).state not in (State.DRAINING, State.UNLOADING):
            # It isn't there, or somebody asked for it again after it was to go.
            self._moved_out(key)
        self._something_moved()

    @staticmethod
    def _failure(request: ModelRequest, load: asyncio.Task[Any], timed_out: float | None) -> Exception | None:
        """What a load that is over failed with, if it did."""
        if load.cancelled():
            if timed_out is None:
                return errors.LoadFailed(f"{request.label}: its backend gave the load up without being told to")
            text = f"was not ready {timed_out:.0f} s after its start; raise engines.*.start_timeout_s"
            return errors.LoadFailed(f"{request.label} {text}")
        error = load.exception()
        if error is None or isinstance(error, Exception):
            return error
        return errors.LoadFailed(f"{request.label}: {error!r}")

    def _moved_in(self, request: ModelRequest, generation: int, load: asyncio.Task[Any]) -> Loaded:
        model = load.result()
        resident = Resident(request, generation, self.registry.get(request.framework), model)
        self.residents[request.key] = resident
        measured: Footprint | None = None
        try:
            if model.verbs:
                self.verbs[request.key] = model.verbs
            measured = model.measured
        except Exception:
            logger.exception("%s: its backend can't say what it measured; the books keep the estimate", request.label)
        resident.watcher = self.spawn(self._watch(resident), name=f"watch {request.key}")
        self.spans.loaded(request.key, None, measured)
        return Loaded(request.key, generation, measured)

    async def _watch(self, resident: Resident) -> None:
        assert resident.model is not None, "a model is watched from the moment it is loaded"
        try:
            error = await resident.model.wait_dead()
        except Exception as broken:  # noqa: BLE001  (a model that can't be watched is as good as dead)
            error = broken
        if not isinstance(error, errors.TaskRouterError):
            died = errors.ModelDied(f"{resident.request.label} died: {error}")
            died.__cause__ = error
            error = died
        resident.watcher = None
        logger.error("%s died: %s", resident.request.label, error)
        self.lose(resident, error)

    def lose(self, resident: Resident, error: errors.TaskRouterError) -> None:
        """Give a model up, whatever it is doing: its callers get the error, and what is left of it is cleared away."""
        if resident.dead is not None:
            return
        resident.dead = error
        resident.stop_operations(error)
        self.post(Died(resident.key, resident.generation, error))

    # --- unload -------------------------------------------------------------------------------------------------------

    def _start_unload(self, action: Unload | Kill) -> None:
        resident = self.residents.pop(action.key)
        self._unloading.add(action.key)
        if isinstance(action, Unload):
            self.spans.unloading(action, resident.request)
        self.spawn(self._unload(action, resident), name=f"unload {action.key}")

    async def _unload(self, action: Unload | Kill, resident: Resident) -> None:
        residue: Charges = action.charges
        try:
            residue = await self._clear(resident)
        except Exception:
            logger.exception("%s: unloading it went wrong; its bytes stay charged", resident.request.label)
        finally:
            if residue:
                logger.warning("%s left %s behind: something still refers to it", resident.request.label, dict(residue))
                self._residue.add(action.key)
            self.spans.unloaded(action.key, action.charges, residue)
            self.post(Unloaded(action.key, action.generation, residue))
            self._unloading.discard(action.key)
            self._moved_out(action.key)

    async def _clear(self, resident: Resident) -> Charges:
        watcher, resident.watcher = resident.watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait({watcher})
            del watcher
        resident.stop_operations(resident.dead or errors.Unloaded(f"{resident.request.label} was unloaded"))
        working = {operation.task for operation in resident.operations if operation.task is not None}
        if working:
            await asyncio.wait(working, timeout=UNLOAD_BOUND_S)
        model, resident.model = resident.model, None
        assert model is not None, "a resident is unloaded once"
        async with asyncio.timeout(3 * UNLOAD_BOUND_S):
            return await resident.backend.unload(model, timeout_s=UNLOAD_BOUND_S)

    def gone(self, key: ModelKey) -> asyncio.Future[None]:
        """A future that is done when this model has been unloaded."""
        future: asyncio.Future[None] = self.loop.create_future()
        self._gone.setdefault(key, []).append(future)
        return future

    def _moved_out(self, key: ModelKey, error: errors.TaskRouterError | None = None) -> None:
        """Tell who waits for this model to be gone that it is, or that it will not be."""
        for future in self._gone.pop(key, ()):
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(fresh(error))
        self._something_moved()

    async def quiet(self, timeout_s: float) -> bool:
        """Wait until nothing is loaded, loading or unloading; ``False`` where that takes longer."""
        end = self.loop.time() + timeout_s
        while self.residents or self._loads or self._unloading:
            left = end - self.loop.time()
            if left <= 0:
                return False
            self._moved = self.loop.create_future()
            await asyncio.wait({self._moved}, timeout=left)
        return True

    def _something_moved(self) -> None:
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)

    # --- observing ----------------------------------------------------------------------------------------------------

    async def _observe_for_ever(self) -> None:
        while True:
            await asyncio.sleep(OBSERVE_EVERY_S)
            try:
                if self.residents or self._waiters or self._loads:
                    await self.observe()
                await self._look_for_residue()
                for look in self.on_observe:
                    look(self.loop.time())
            except Exception:
                logger.exception("observing the devices went wrong; the last reading stays")

    async def _look_for_residue(self) -> None:
        for key in list(self._residue):
            left = await self.registry.get(self.requests[key].framework).residue(key)
            if dict(left) != dict(self.core.status(key).residue):
                self.post(Reclaimed(key, left))
            if not left:
                self._residue.discard(key)
                logger.info("what %s left behind is free now", self.requests[key].label)
