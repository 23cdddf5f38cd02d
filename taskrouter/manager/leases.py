"""Leases: what callers hold, and how their calls become operations.

A ``Lease`` is the right to use one model now; a ``Model`` (handles.py) is a handle that takes one for each call. Both
speak the same verbs. Calls inside a lease reuse it, one at a time, also when they go through a handle or a nested lease
of the same model: a context variable carries what the caller holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from opentelemetry.context import get_current

from taskrouter import errors, telemetry
from taskrouter.manager.asking import Verbs
from taskrouter.manager.refusals import fresh
from taskrouter.manager.residents import Operation, Resident
from taskrouter.manager.streams import Channel, Stream
from taskrouter.residency.actions import Grant
from taskrouter.residency.events import Acquire, Release
from taskrouter.types import ModelKey, TicketId
from taskrouter.verbs import Routed

if TYPE_CHECKING:
    from taskrouter.manager.configured import Configured
    from taskrouter.manager.manager import ModelManager
    from taskrouter.manager.performing import Performer
    from taskrouter.manager.targets import Target

_HELD: ContextVar[tuple[weakref.ref[Lease], ...]] = ContextVar("taskrouter_held", default=())
_NOTHING: frozenset[TicketId] = frozenset()


def held_lease(manager: Configured, key: ModelKey) -> Lease | None:
    """The lease on this model that the caller is in, if any."""
    for lease in _held():
        resident, performer = lease.resident, lease._performer
        if resident is None or resident.key != key or lease.manager is not manager or performer is None:
            continue
        # What died meanwhile is no use to anybody; and a context may have been carried into another loop's thread.
        if resident.dead is None and performer.loop is asyncio.get_running_loop():
            return lease
    return None


def held_of_task(manager: ModelManager, target: Target) -> Lease | None:
    """The lease that the caller is in on any option a request to this task may be answered by, the selected first."""
    if not _HELD.get():
        return None
    keys = manager.keys_of(target.task) if target.routed else [target.key]
    return next((lease for key in keys if (lease := held_lease(manager, key)) is not None), None)


def _held() -> Iterator[Lease]:
    """The leases the caller is in, the outermost first."""
    for ref in _HELD.get():
        lease = ref()
        if lease is not None and not lease.left:
            yield lease


def hold(lease: Lease) -> None:
    """The caller is in this lease now. Its context keeps no lease alive: one that is dropped must be collectable."""
    _HELD.set((*_HELD.get(), weakref.ref(lease)))


def let_go(lease: Lease) -> None:
    """The caller has left this lease."""
    held = _HELD.get()
    if held and held[-1]() is lease:
        _HELD.set(held[:-1])
    else:
        _HELD.set(tuple(ref for ref in held if ref() is not lease))


def holding() -> frozenset[TicketId]:
    """The tickets of all leases the caller is in."""
    if not _HELD.get():
        return _NOTHING
    return frozenset([lease.ticket for lease in _held() if lease.ticket is not None])


async def _answer(resident: Resident, verb: str, request: Any) -> Any:
    """One call on the backend; whatever it raises that isn't typed becomes ``CallFailed``."""
    try:
        return await _living(resident).call(verb, request)
    except (errors.TaskRouterError, asyncio.CancelledError):
        raise
    except Exception as error:
        raise errors.CallFailed(f"{resident.request.label} failed to answer {verb}: {error}") from error


def _living(resident: Resident) -> Any:
    if resident.dead is not None:
        raise fresh(resident.dead)
    if resident.model is None:
        raise errors.ModelDied(f"{resident.request.label} was unloaded before it could answer")
    return resident.model


async def run_call(performer: Performer, resident: Resident, verb: str, request: Any, done: Callable[[], None]) -> Any:
    """Run one operation and wait for its answer. Cancelled: it is told to stop; ``done`` is called once it has."""
    operation = Operation(performer.loop.create_future())
    operation.run(resident, _answer(resident, verb, request), performer.spawn_operation, done)
    try:
        return await operation.result
    except asyncio.CancelledError:
        operation.stop()
        raise


def run_stream(
    performer: Performer, resident: Resident, verb: str, request: Any, idle_s: float, done: Callable[[], None]
) -> tuple[Channel, Operation]:
    """Start an operation that answers in pieces."""
    operation = Operation(performer.loop.create_future())
    channel = Channel(operation.result)

    async def pump() -> None:
        label = resident.request.label
        pieces = _living(resident).stream(verb, request)
        try:
            async for piece in pieces:
                await channel.put(piece, idle_s=idle_s, label=label)
        except (errors.TaskRouterError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise errors.CallFailed(f"{label} failed while answering {verb}: {error}") from error
        finally:
            # The lease lasts until the work has stopped, and closing the iterator is how it is told to.
            await pieces.aclose()

    operation.run(resident, pump(), performer.spawn_operation, done)
    return channel, operation


Where: TypeAlias = tuple[CodeType, int] | str
"""The code that took a lease, and its line; or in words who did, where that is no code of this process."""


def told_of(where: Where) -> str:
    """Where a lease was taken, as it is said behind "taken"."""
    return where if isinstance(where, str) else f"at {where[0].co_filename}:{where[1]}"


Held: TypeAlias = "tuple[float, Where, Target]"
"""What is remembered of a lease that is held: since when, taken where, on what. A bare tuple, for its cost."""


class Lease(Verbs):
    """``async with manager.lease(task) as model``: this model can't be evicted meanwhile. The only way to ``raw``.

    Raises what ``get_model`` raises, on entry. A lease collected unreleased is released with a ``ResourceWarning``.
    A lease is one slot: its calls run one at a time, so a stream that is not read to its end keeps the next call
    waiting. Tasks started inside the block hold the lease too, as they inherit its context.
    """

    # Defaults of the class, not assigned by each __init__: taking a lease costs little more than these few lines.
    ticket: TicketId | None = None
    resident: Resident | None = None
    left = False
    _performer: Performer | None = None
    _outer: Lease | None = None
    _turn: asyncio.Lock | None = None
    _active = 0

    def __init__(
        self, manager: ModelManager, target: Target, timeout: float | None, priority: int | None, where: Where
    ) -> None:
        self.manager = manager
        self.where = where
        self._target = target
        self._timeout = timeout
        self._priority = priority

    def __repr__(self) -> str:
        state = "left" if self.left else "held" if self.resident is not None else "not entered"
        return f"<Lease {self._target.task}/{self._target.option} {state}>"

    async def __aenter__(self) -> Lease:
        if self.resident is not None or self.left:
            raise RuntimeError("a lease is entered once; ask the manager for another one")
        target = self._target
        held = _HELD.get()
        outer = held_lease(self.manager, target.key) if held else None
        if outer is not None:
            self._outer = outer
            self._performer = outer._performer
            self.resident = outer.resident
        else:
            performer = self.manager.performer
            if performer is None or performer.closed or performer.loop is not asyncio.get_running_loop():
                performer = self.manager.enter()
            self._performer = performer
            now = performer.time()
            ticket = next(performer.ids)
            event = Acquire(
                ticket,
                target.key,
                now + (target.max_wait_s if self._timeout is None else self._timeout),
                target.priority if self._priority is None else self._priority,
                False,
                None,
                holding() if held else _NOTHING,
            )
            # A ready model is granted in this very step; as a coroutine of its own that would cost half as much again.
            actions = performer.core.handle(event, now=now)
            granted = len(actions) == 1 and type(actions[0]) is Grant
            if granted:
                self.resident = performer.residents[target.key]
                if performer.recorder is not None:
                    performer.recorder.open[ticket] = now, target.task, target.option, event.priority, now
            else:
                self.resident = await performer.wait(event, actions, task=target.task, option=target.option)
                now = performer.time()
            self.ticket = ticket
            # Not the lease itself: it must be collectable while it is held.
            self.manager.leases[ticket] = (now, self.where, target)
            if granted and performer.pipelines is not None:
                self._say_what_comes(performer)
        _HELD.set((*held, weakref.ref(self)))
        if get_current():
            telemetry.annotate_current(target.attributes)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left = True
        held = _HELD.get()
        if len(held) == 1 and held[0]() is self:
            _HELD.set(())
        else:
            let_go(self)
        if self._active:
            return
        # _release, written out: this is the path of every lease on a resident model.
        ticket, performer = self.ticket, self._performer
        if ticket is not None and performer is not None:
            self.ticket = None
            self.manager.leases.pop(ticket, None)
            now = performer.time()
            if performer.recorder is not None:
                performer.recorder.ended(ticket, now)
            actions = performer.core.handle(Release(ticket), now=now)
            if actions:
                performer.perform(actions)

    def __del__(self) -> None:
        if self.ticket is None or self.left or self._performer is None:
            return
        self.manager.leases.pop(self.ticket, None)
        release_from_anywhere(self._performer, self.ticket)
        # Last: where warnings are errors it raises.
        warnings.warn(f"{self!r}, taken {told_of(self.where)}, was never released", ResourceWarning, stacklevel=2)

    def _say_what_comes(self, performer: Performer) -> None:
        # Only now that the ticket is known: whatever goes wrong here mustn't cost the model its slot.
        try:
            if performer.pipelines is not None:
                performer.pipelines.asked(self._target.task)
        except BaseException:
            self._release()
            self.resident = None
            raise

    def _release(self) -> None:
        ticket, self.ticket = self.ticket, None
        if ticket is not None and self._performer is not None:
            self.manager.leases.pop(ticket, None)
            self._performer.release(ticket)

    @property
    def option(self) -> str:
        """The option this lease is of; before it is entered, the one it would be of."""
        return self._target.option

    @property
    def key(self) -> ModelKey:
        """The model this lease is on."""
        return self._target.key

    @property
    def target(self) -> Target:
        """The task, option and model this lease is on; before it is entered, those it would be on."""
        return self._target

    @property
    def routed(self) -> Routed | None:
        """Which option it is of, where the task has several to try."""
        return self._outer.routed if self._outer is not None else None

    @property
    def raw(self) -> Any:
        """The framework's own object. Keep no reference to it beyond the lease: it would keep the memory too."""
        resident, _ = self._inside()
        return _living(resident).raw

    @property
    def info(self) -> Any:
        """Small facts about the loaded model."""
        resident, _ = self._inside()
        return _living(resident).info

    def on_lost(self, tell: Callable[[errors.TaskRouterError], None]) -> Callable[[], object]:
        """Have this told why, when the model dies or is unloaded by force: then there is nothing left to hold.

        The lease is left by whoever entered it, all the same. Answers what ends the telling; idempotent.
        """
        resident, _ = self._inside()
        this = object()
        resident.holders[this] = tell
        if resident.dead is not None:
            tell(fresh(resident.dead))
        return lambda: resident.holders.pop(this, None)

    def _inside(self) -> tuple[Resident, Performer]:
        if self.resident is None or self.left or self._performer is None:
            raise RuntimeError(f"{self!r}: use the model inside its `async with`")
        return self.resident, self._performer

    def _done(self) -> None:
        self._active -= 1
        if self._turn is not None and self._turn.locked():
            self._turn.release()
        if self.left and not self._active:
            self._release()

    async def _my_turn(self) -> None:
        """Operations inside one lease run one at a time: it is one slot."""
        if self._performer is not None and self._performer.loop is not asyncio.get_running_loop():
            self.manager.enter()
        if self._turn is None:
            self._turn = asyncio.Lock()
        await self._turn.acquire()
        if self.left:
            self._turn.release()
            raise RuntimeError(f"{self!r}: it was left while this call waited for its turn")
        self._active += 1

    async def _ask(self, verb: str, request: Any) -> Any:
        resident, performer = self._inside()
        self._target.check(verb, performer)
        if self._outer is not None:
            return await self._outer._ask(verb, request)
        await self._my_turn()
        return await run_call(performer, resident, verb, request, self._done)

    def _stream(self, verb: str, request: Any) -> Stream:
        async def start() -> tuple[Channel, Operation]:
            resident, performer = self._inside()
            self._target.check(verb, performer)
            await self._my_turn()
            return run_stream(performer, resident, verb, request, self.manager.stream_idle_s, self._done)

        return self._outer._stream(verb, request) if self._outer is not None else Stream(start)

    def _media_limits(self) -> Any:
        return self.manager.media_limits


def release_from_anywhere(performer: Performer, ticket: TicketId) -> None:
    """Release from a finalizer: in whatever thread the collector happens to run."""
    # A loop that is closed, or closes just now, has nothing left to release.
    with contextlib.suppress(RuntimeError):
        performer.loop.call_soon_threadsafe(performer.release, ticket)
