"""A model's process as the manager sees it: it is asked, it answers, it dies or hangs, and it is ended.

What it is asked is a method of ``host.Host``. Every call ends in one answer, which comes once the work has stopped, or
in the end of the process.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

from taskrouter.backends.engines.supervisor import Process, ended, last_words
from taskrouter.backends.hf.isolated.line import Line
from taskrouter.backends.hf.isolated.wire import Garbled, Message, Packed, pack
from taskrouter.backends.hf.threads import run_in_daemon
from taskrouter.errors import BadInput, CallFailed, ModelDied, TaskRouterError
from taskrouter.media.limits import MediaLimits
from taskrouter.types import ModelRequest

LOOKS = 4
"""It is hung when so many looks in a row, spread over hang_timeout_s, are not answered."""
DEATH_BOUND_S = 2.0
"""The socket closes before the end of the process behind it is known; so long is waited for that."""
OUTPUT_BOUND_S = 1.0


class Traced(Exception):
    """Where an error came from, in the other process: the cause of its copy in this one."""


@dataclass(frozen=True, slots=True)
class _Over:
    """The end of a stream."""


class _Call:
    """One call under way. ``done`` is settled when the process says that its work has ended."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        self.done: asyncio.Future[Any] = loop.create_future()
        self.pieces: asyncio.Queue[Any] = asyncio.Queue()
        self.told: asyncio.TimerHandle | None = None
        """Told to stop; then this kills the process, should it not obey."""
        self.done.add_done_callback(self._over)

    def _over(self, done: asyncio.Future[Any]) -> None:
        self.pieces.put_nowait(_Over())
        if self.told is not None:
            self.told.cancel()
        if not done.cancelled():
            done.exception()  # it may be that nobody waits for it any more


class ModelProcess:
    """The parent's side of one child."""

    def __init__(self, request: ModelRequest, process: Process, end: socket.socket, limits: MediaLimits) -> None:
        self._loop = asyncio.get_running_loop()
        self._label = request.label
        self._bound_s = request.hang_timeout_s
        self._limits = limits
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._heard_of = 0
        self._dead: asyncio.Future[ModelDied] = self._loop.create_future()
        """Why nothing can be asked of it any more."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self.process = process
        self._line = Line(request.label, end, self._loop, self._heard, self._hung_up)
        process.exited.add_done_callback(self._exited)

    async def order(self, what: str, *about: Any) -> Any:
        """Have something done. Cancelled, it waits no longer: whoever cancels goes on to end the process."""
        call = await self._begin(what, about)
        await asyncio.wait({call.done})
        return call.done.result()

    async def ask(self, what: str, *about: Any) -> Any:
        """The answer to a call. Cancelled, it ends when the process says that the work has stopped."""
        call = await self._begin(what, about)
        await self._ended(call)
        return call.done.result()

    async def stream(self, what: str, *about: Any) -> AsyncIterator[Any]:
        """An answer in pieces. Closed or cancelled, it ends when the process says that the work has stopped."""
        call = await self._begin(what, about)
        try:
            while not isinstance(piece := await call.pieces.get(), _Over):
                yield piece
        finally:
            if not call.done.done():
                self._tell_to_stop(call)
                await self._ended(call)
        call.done.result()

    async def wait_dead(self) -> ModelDied:
        """The error, once the process has ended, or hasn't answered a look for ``hang_timeout_s``: then it is killed.

        Looks are counted, not seconds: a machine that slept through the timeout has not found its model hung.
        """
        interval, silent = max(self._bound_s / LOOKS, 0.05), 0
        while silent < LOOKS and not self._dead.done():
            before = self._heard_of
            self._line.send(Message("ping"))
            await asyncio.wait({self._dead}, timeout=interval)
            self.process.note()
            silent = 0 if self._heard_of != before else silent + 1
        if not self._dead.done():
            self._give_up(
                f"has been silent for {self._bound_s:g} s (engines.transformers.hang_timeout_s) and is given up"
            )
        return self._dead.result()

    async def end(self) -> None:
        """Kill the process and hang up. Idempotent."""
        await self.process.kill()
        await self.hang_up()

    async def hang_up(self) -> None:
        """Give the socket and its threads back. Idempotent."""
        self._lose(self._death())
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._line.close()
        await run_in_daemon(f"hang up on {self._label}", self._line.join)

    async def _begin(self, what: str, about: tuple[Any, ...]) -> _Call:
        """Send a call. What its request holds open is read first, in a thread, which may take as long as it takes."""
        self._check_alive()
        call = _Call(next(self._numbers), self._loop)
        limits = next((own for each in about if isinstance(own := getattr(each, "limits", None), MediaLimits)), None)
        work = functools.partial(pack, Message(what, call.number, about), limits or self._limits)
        try:
            packed = await run_in_daemon(f"to {self._label}", work, abandoned=Packed.close)
        except TaskRouterError:
            raise
        except Exception as error:
            text = f"what {self._label} was asked can't be sent to its process: {type(error).__name__}: {error}"
            raise BadInput(f"{text}. Give paths, bytes, images or arrays, or write isolation: in_process.") from error
        try:
            self._check_alive()
        except ModelDied:
            packed.close()
            raise
        self._calls[call.number] = call
        self._line.send(packed)
        return call

    def _check_alive(self) -> None:
        if self._dead.done():
            raise _fresh(self._dead.result())

    async def _ended(self, call: _Call) -> None:
        """Wait until the work has ended; every cancellation meanwhile only tells it to stop, and is raised then."""
        cancelled: asyncio.CancelledError | None = None
        while not call.done.done():
            try:
                await asyncio.wait({call.done})
            except asyncio.CancelledError as error:
                cancelled = error
                self._tell_to_stop(call)
        if cancelled is not None:
            raise cancelled

    def _tell_to_stop(self, call: _Call) -> None:
        if call.told is None and not call.done.done():
            self._line.send(Message("stop", call.number))
            call.told = self._loop.call_later(self._bound_s, self._disobeyed)

    def _disobeyed(self) -> None:
        self._give_up(f"was told to stop a call, and hadn't after {self._bound_s:g} s, so it was killed")

    def _heard(self, message: Message) -> None:
        self._heard_of += 1
        call, body = self._calls.get(message.number), message.body
        if call is None:
            return  # the answer to a look, or the rest of a stream that can't be read
        if message.what == "piece" and not isinstance(body, Garbled):
            call.pieces.put_nowait(body)
            return
        del self._calls[message.number]
        if isinstance(body, Garbled):
            self._line.send(Message("stop", message.number))  # there may be more to come, for nobody
            call.done.set_exception(CallFailed(f"{self._label}: what its process said can't be read: {body.error}"))
        elif message.what == "answer":
            call.done.set_result(body)
        elif message.what == "stopped":
            call.done.set_exception(CallFailed(f"{self._label}: its process gave the call up, and nobody told it to"))
        else:
            error, trace = body
            error.__cause__ = Traced(f"in the model's process:\n{trace}") if trace else None
            call.done.set_exception(error)

    def _give_up(self, why: str) -> None:
        """It lives, and is of no use any more: kill it, and tell everybody."""
        self._lose(
            ModelDied(f"{self._label}: its process {why}; the next request starts it again. {last_words(self.process)}")
        )
        self._later(self.process.kill())

    def _hung_up(self) -> None:
        """Nothing more will come from it; that its process has ended is known in a moment, and how."""
        if not self.process.exited.done():
            self._later(self._see_it_end())

    async def _see_it_end(self) -> None:
        await asyncio.wait({self.process.exited}, timeout=DEATH_BOUND_S)
        await self.process.kill()

    def _exited(self, _: asyncio.Future[int]) -> None:
        self._later(self._bury())

    async def _bury(self) -> None:
        """Its last words may still be on their way."""
        await asyncio.to_thread(self.process.output.join, OUTPUT_BOUND_S)
        self._lose(self._death())

    def _lose(self, error: ModelDied) -> None:
        """Nothing more can be asked of it: whoever watches hears it first, so that the next request starts it again."""
        if not self._dead.done():
            self._dead.set_result(error)
        while self._calls:
            _, call = self._calls.popitem()
            call.done.set_exception(_fresh(self._dead.result()))

    def _later(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _death(self) -> ModelDied:
        how = ended(self.process.exited.result()) if self.process.exited.done() else "was ended"
        return ModelDied(
            f"{self._label}: its process {how}; the next request starts it again. {last_words(self.process)}"
        )


def _fresh(error: ModelDied) -> ModelDied:
    """A copy for each who gets it: what is raised twice grows two tracebacks."""
    return ModelDied(str(error))
