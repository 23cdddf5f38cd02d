"""Answers in pieces: a channel between the operation that makes them and the caller that reads them.

The operation belongs to the manager and the channel holds few pieces, so a slow reader slows the model down, and one
that has gone away ends it: by closing the stream, by dropping it, or by not reading for ``stream_idle_s``.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from taskrouter.errors import ReaderGone
from taskrouter.manager.residents import Operation
from taskrouter.verbs import Routed

HIGH_WATER = 16
"""Pieces that wait for the reader before the operation has to."""


class Channel:
    """Pieces on their way. Ends when the operation's result is known."""

    __slots__ = ("_pieces", "_reader", "_result", "_writer", "routed")

    def __init__(self, result: asyncio.Future[Any]) -> None:
        self._result = result
        self._pieces: deque[Any] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self.routed: Routed | None = None
        result.add_done_callback(self._ended)

    def _ended(self, result: asyncio.Future[Any]) -> None:
        if not result.cancelled():
            result.exception()  # seen: a reader that has gone away is no reason for a complaint
        _wake(self._reader)

    async def put(self, piece: Any, *, idle_s: float, label: str) -> None:
        """Hand over a piece; wait while the reader is far behind. Raises ``ReaderGone`` when nobody reads."""
        self._pieces.append(piece)
        _wake(self._reader)
        if len(self._pieces) < HIGH_WATER:
            if len(self._pieces) > 1:
                # Pieces that came in one packet are handed over without waiting for anything: let others have a turn.
                await asyncio.sleep(0)
            return
        self._writer = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(idle_s):
                await self._writer
        except TimeoutError:
            raise ReaderGone(
                f"{label}: the stream was ended because nobody read from it for {idle_s:g} s (memory.stream_idle_s)"
            ) from None
        finally:
            self._writer = None

    async def begun(self) -> bool:
        """Wait for the first piece, and leave it where it is; ``False`` at the end. Raises the operation's error."""
        while not self._pieces:
            if self._result.done():
                if not self._result.cancelled():
                    self._result.result()
                return False
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return True

    async def get(self) -> Any:
        """The next piece. Raises ``StopAsyncIteration`` at the end, or the operation's error."""
        if not await self.begun():
            raise StopAsyncIteration
        piece = self._pieces.popleft()
        _wake(self._writer)
        return piece


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)


class Stream:
    """``async with model.stream_chat(…) as chunks: async for chunk in chunks``; a plain ``async for`` works too.

    The lease is taken when reading begins, and ends with the end of the answer, an error, ``aclose``, or collection.
    """

    __slots__ = ("__weakref__", "_channel", "_closed", "_finalizer", "_operation", "_start")

    def __init__(self, start: Callable[[], Awaitable[tuple[Channel, Operation]]]) -> None:
        self._start = start
        self._channel: Channel | None = None
        self._operation: Operation | None = None
        self._finalizer: weakref.finalize[[asyncio.AbstractEventLoop, Operation], Stream] | None = None
        self._closed = False

    @property
    def routed(self) -> Routed | None:
        """Which option answers, once the answer has begun, where the task has several to try."""
        return self._channel.routed if self._channel is not None else None

    def __aiter__(self) -> Stream:
        return self

    async def _begin(self) -> Channel:
        if self._channel is None:
            self._channel, self._operation = await self._start()
            loop = asyncio.get_running_loop()
            self._finalizer = weakref.finalize(self, _stop_from_anywhere, loop, self._operation)
            self._finalizer.atexit = False
            if self._closed:
                # Closed by somebody else while this reader waited for the model.
                self._stop()
        return self._channel

    async def __anext__(self) -> Any:
        if self._closed:
            raise StopAsyncIteration
        try:
            return await (await self._begin()).get()
        except BaseException:
            # The end, an error, or the reader was cancelled: nothing more will be read.
            self._stop()
            raise

    async def __aenter__(self) -> Stream:
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    async def aclose(self) -> None:
        """Stop the model and end the lease. Idempotent; returns once the work has stopped."""
        self._stop()
        task = self._operation.task if self._operation is not None else None
        if task is not None:
            await asyncio.wait({task})

    def _stop(self) -> None:
        self._closed = True
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._operation is not None:
            self._operation.stop()


def _stop_from_anywhere(loop: asyncio.AbstractEventLoop, operation: Operation) -> None:
    # A loop that is closed, or closes just now, has nothing left to stop.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(operation.stop)
