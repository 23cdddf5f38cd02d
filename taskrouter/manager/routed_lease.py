"""A lease on a task with several options, or on an external one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from taskrouter.manager.leases import Lease, Where, held_lease, held_of_task, hold, holding, run_call, run_stream
from taskrouter.manager.residents import Operation
from taskrouter.manager.routed import Taken, with_route
from taskrouter.manager.streams import Channel, Stream
from taskrouter.verbs import Routed

if TYPE_CHECKING:
    from taskrouter.config import TaskConfig
    from taskrouter.manager.manager import ModelManager
    from taskrouter.manager.targets import Target


class RoutedLease(Lease):
    """The same on a task with several options, or an external one: which it is of is settled when it is entered.

    An external option takes no slot of the core, but a turn of its ``max_concurrency``. A lease is of one option: what
    fails inside isn't asked elsewhere, though budgets, limits and retries hold for each call.
    """

    _taken: Taken | None = None

    def __init__(
        self,
        manager: ModelManager,
        task: TaskConfig,
        target: Target,
        timeout: float | None,
        priority: int | None,
        where: Where,
        *,
        only: bool = False,
    ) -> None:
        super().__init__(manager, target, timeout, priority, where)
        self._task = task
        self._only = only

    async def __aenter__(self) -> Lease:
        if self.resident is not None or self.left:
            raise RuntimeError("a lease is entered once; ask the manager for another one")
        manager = self.manager
        performer = self._performer = manager.enter()
        # Who names an option wants that one, whatever lease on another they are in.
        outer = held_lease(manager, self._target.key) if self._only else held_of_task(manager, self._target)
        if outer is not None:
            self._outer, self.resident, self._target = outer, outer.resident, outer._target
        else:

            async def work(taken: Taken) -> Taken:
                return taken

            taken: Taken = await manager.router.run(
                self._task, None, None, work, timeout=self._timeout, priority=self._priority, holding=holding()
            )
            self._taken, self.resident, self.ticket, self._target = taken, taken.resident, taken.ticket, taken.target
            if taken.ticket is not None:
                manager.leases[taken.ticket] = (performer.time(), self.where, taken.target)
        hold(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, value, trace)
        if not self._active:
            self._release()

    def _release(self) -> None:
        super()._release()
        taken, self._taken = self._taken, None
        if taken is not None and taken.turns is not None and self._performer is not None:
            taken.release(self._performer)

    def __del__(self) -> None:
        taken, self._taken = self._taken, None
        if taken is not None and taken.turns is not None and self._performer is not None:
            # A loop that is closed has nobody who waits for the turn.
            with contextlib.suppress(RuntimeError):
                self._performer.loop.call_soon_threadsafe(taken.turns.release)
        super().__del__()

    @property
    def routed(self) -> Routed | None:
        return self._taken.routed if self._taken is not None else super().routed

    async def _ask(self, verb: str, request: Any) -> Any:
        taken = self._taken
        if taken is None or taken.ticket is not None:
            answer = await super()._ask(verb, request)
            return with_route(answer, taken.routed) if taken is not None else answer
        _, performer = self._inside()
        await self._my_turn()
        done = _once(self._done)

        async def work(again: Taken) -> Any:
            return with_route(await run_call(performer, again.resident, verb, request, lambda: None), taken.routed)

        try:
            return await self.manager.router.run(self._alone(taken), verb, request, work, inside=taken)
        finally:
            done()

    def _stream(self, verb: str, request: Any) -> Stream:
        taken = self._taken
        if taken is None or taken.ticket is not None:
            return super()._stream(verb, request)

        async def start() -> tuple[Channel, Operation]:
            _, performer = self._inside()
            await self._my_turn()
            done = _once(self._done)
            router, idle_s = self.manager.router, self.manager.stream_idle_s

            async def work(again: Taken) -> tuple[Channel, Operation]:
                begun: tuple[Channel, Operation] = run_stream(
                    performer, again.resident, verb, request, idle_s, lambda: None
                )
                try:
                    await router.first_piece(again, *begun)
                except BaseException:
                    begun[1].stop()
                    raise
                return begun

            try:
                found: tuple[Channel, Operation] = await router.run(
                    self._alone(taken), verb, request, work, inside=taken
                )
            except BaseException:
                done()
                raise
            # Done once the work has really stopped.
            task = found[1].task
            if task is None:
                done()
            else:
                task.add_done_callback(lambda _: done())
            return found

        return Stream(start)

    def _alone(self, taken: Taken) -> TaskConfig:
        """The task with this option only."""
        return self._task.with_selected(taken.target.option).model_copy(update={"fallback": ()})


def _once(call: Callable[[], None]) -> Callable[[], None]:
    """The same, that does nothing when it is called again."""
    left = [call]
    return lambda: left.pop()() if left else None
