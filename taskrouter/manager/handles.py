"""Handles: a task's model, whichever option and copy of it that is at the moment of each call."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskrouter import telemetry
from taskrouter.manager.asking import Verbs
from taskrouter.manager.leases import (
    Lease,
    held_lease,
    held_of_task,
    holding,
    release_from_anywhere,
    run_call,
    run_stream,
)
from taskrouter.manager.residents import Operation, Resident
from taskrouter.manager.routed import Found, Taken, with_route
from taskrouter.manager.streams import Channel, Stream
from taskrouter.residency.events import Acquire
from taskrouter.types import TicketId
from taskrouter.verbs import Routed

if TYPE_CHECKING:
    from taskrouter.config import TaskConfig
    from taskrouter.manager.manager import ModelManager
    from taskrouter.manager.performing import Performer
    from taskrouter.manager.targets import Target


class Model(Verbs):
    """A handle on a task. It never dangles: each call resolves the task again, takes a lease and loads if need be.

    What ``get_model`` returned protects the model from eviction for a while (a claim), until the first call or until
    this handle is collected. ``only`` is the one option it asks; ``timeout`` bounds the queue and the load of each
    call, in seconds.
    """

    __slots__ = (
        "__weakref__", "_claim", "_first", "_manager", "_only", "_priority", "_timeout", "ready_at", "routed", "task",
    )  # fmt: skip

    def __init__(
        self,
        manager: ModelManager,
        task: str,
        *,
        only: str | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> None:
        self._manager = manager
        self.task = task
        self._only = only
        self._timeout = timeout
        self._priority = priority
        self.ready_at: float | None = None
        """When the model of its latest call was ready, by the loop's clock."""
        self.routed: Routed | None = None
        """Which option answered its latest call, where the task has several to try: a tuple can't say it itself."""
        self._claim: weakref.finalize[[Performer, TicketId], Model] | None = None
        self._first: Found | None = None

    def __repr__(self) -> str:
        return f"<Model {self.task} → {self.option}>"

    @property
    def option(self) -> str:
        """The option that is selected for this task now, or the only one that is asked."""
        return self._only or self._manager.tasks[self.task].selected

    def _target(self) -> Target:
        return self._manager.target(self.task, self._only)

    def _config(self) -> TaskConfig:
        """The task as routing is to see it: with one option and no other, where only that is asked."""
        task = self._manager._task(self.task)
        return task if self._only is None else task.with_selected(self._only).model_copy(update={"fallback": ()})

    def _is_routed(self, target: Target) -> bool:
        """Whether routing is to decide: with one option of this machine there is nothing to."""
        if self._only is None:
            return target.routed
        return self._manager._task(self.task).options[self._only].is_external

    def claim(self, performer: Performer, ticket: TicketId) -> None:
        """Hold this claim until the first call, or until the handle is collected."""
        self._claim = weakref.finalize(self, release_from_anywhere, performer, ticket)
        self._claim.atexit = False

    def begin_with(self, found: Found) -> None:
        """Begin the first call with what was found already, if it comes soon: its caller has waited for it."""
        self._first = found

    def _take_first(self, performer: Performer) -> Found | None:
        first, self._first = self._first, None
        return first if first is not None and performer.time() <= first.until else None

    def _end_claim(self, performer: Performer) -> None:
        claim, self._claim = self._claim, None
        alive = claim.detach() if claim is not None else None
        if alive is not None:
            performer.release(alive[2][1])

    async def _acquire(self, verb: str, request: Any) -> tuple[Performer, Resident, Callable[[], None]]:
        performer = self._manager.enter()
        target = self._target()
        target.check(verb, performer, request)
        now = performer.loop.time()
        ticket = next(performer.ids)
        deadline = now + (target.max_wait_s if self._timeout is None else self._timeout)
        priority = target.priority if self._priority is None else self._priority
        event = Acquire(ticket, target.key, deadline, priority, False, None, holding())
        resident = await performer.acquire(event, task=target.task, option=target.option, verb=verb, request=request)
        self.ready_at = performer.time()
        self._end_claim(performer)
        telemetry.annotate_current(target.attributes)
        return performer, resident, lambda: performer.release(ticket)

    async def _ask(self, verb: str, request: Any) -> Any:
        target = self._target()
        lease = self._held(target)
        if lease is not None:
            return await lease._ask(verb, request)
        if self._is_routed(target):
            return await self._ask_routed(verb, request)
        performer, resident, done = await self._acquire(verb, request)
        return await run_call(performer, resident, verb, request, done)

    async def _ask_routed(self, verb: str, request: Any) -> Any:
        performer = self._manager.enter()

        async def work(taken: Taken) -> Any:
            self._end_claim(performer)
            self.ready_at = performer.time()
            answer = await run_call(performer, taken.resident, verb, request, lambda: taken.release(performer))
            self.routed = taken.routed
            return with_route(answer, taken.routed)

        first = self._take_first(performer)
        return await self._manager.router.run(
            self._config(), verb, request, work, timeout=self._timeout, priority=self._priority, first=first,
            holding=holding(),
        )  # fmt: skip

    async def _start_routed(self, verb: str, request: Any) -> tuple[Channel, Operation]:
        performer, router = self._manager.enter(), self._manager.router
        idle_s = self._manager.stream_idle_s

        async def work(taken: Taken) -> tuple[Channel, Operation]:
            self._end_claim(performer)
            self.ready_at = performer.time()
            done = lambda: taken.release(performer)  # noqa: E731
            channel, operation = run_stream(performer, taken.resident, verb, request, idle_s, done)
            try:
                await router.first_piece(taken, channel, operation)
            except BaseException:
                operation.stop()
                raise
            return channel, operation

        first = self._take_first(performer)
        found: tuple[Channel, Operation] = await router.run(
            self._config(), verb, request, work, timeout=self._timeout, priority=self._priority, first=first,
            holding=holding(),
        )  # fmt: skip
        return found

    def _held(self, target: Target) -> Lease | None:
        """The lease that the caller is in, on what this handle may ask."""
        if self._only is not None:
            return held_lease(self._manager, target.key)
        return held_of_task(self._manager, target)

    def _stream(self, verb: str, request: Any) -> Stream:
        lease = self._held(self._target())
        if lease is not None:
            return lease._stream(verb, request)

        async def start() -> tuple[Channel, Operation]:
            if self._is_routed(self._target()):
                return await self._start_routed(verb, request)
            performer, resident, done = await self._acquire(verb, request)
            return run_stream(performer, resident, verb, request, self._manager.stream_idle_s, done)

        return Stream(start)

    def _media_limits(self) -> Any:
        return self._manager.media_limits
