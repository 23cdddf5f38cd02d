"""An answer that stays open for as long as what was asked for lasts: read in a task of its own, to hear how it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taskrouter.client.events import Events
from taskrouter.errors import ServerUnreachable, TaskRouterError

if TYPE_CHECKING:
    from taskrouter.client.transport import Transport


class Opened:
    """The connection is what holds: closing it lets go. ``what`` names it in messages."""

    def __init__(self, transport: Transport, what: str) -> None:
        self._transport = transport
        self._what = what
        self.lost: TaskRouterError | None = None
        """Why it ended, where the server ended it or the connection broke."""
        self._first: asyncio.Future[Mapping[str, Any]] | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        return self._reading is not None and not self._reading.done()

    async def begin(
        self, path: str, body: Mapping[str, Any], *, timeout: float | None = None, headers: Mapping[str, str]
    ) -> Mapping[str, Any]:
        """Ask, and wait for the first event. Raises what is refused; then, and when cancelled, the connection is closed
        by the time this ends.
        """
        loop = asyncio.get_running_loop()
        first: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        self._first = first
        self._reading = loop.create_task(self._read(path, body, timeout, headers), name=self._what)
        try:
            return await first
        except BaseException:
            if not first.cancelled():
                first.exception()  # seen: whoever was cancelled just then isn't told
            await self.close()
            raise

    async def _read(
        self, path: str, body: Mapping[str, Any], timeout: float | None, headers: Mapping[str, str]
    ) -> None:
        first = self._first
        assert first is not None
        where = self._transport.url
        try:
            async with self._transport.opened(path, body, timeout, headers) as response:
                events = Events(where)
                async for chunk in response.content.iter_any():
                    for event in events.take(chunk):
                        if not first.done():
                            first.set_result(event)
            raise ServerUnreachable(f"{where} broke off {self._what}")
        except TaskRouterError as error:
            self.lost = error
            if not first.done():
                first.set_exception(error)
        except BaseException as error:
            # Whatever it was, whoever waits for the first event mustn't wait for ever.
            broken = ServerUnreachable(f"{self._what} at {where} ended before it was left: {error!r}")
            broken.__cause__ = error
            if isinstance(error, Exception):
                self.lost = broken
            if not first.done():
                first.set_exception(broken)
            if not isinstance(error, Exception):
                raise

    async def ended(self, within_s: float) -> None:
        """Wait until it has ended, for so many seconds at most."""
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=within_s)

    async def close(self) -> None:
        """Close the connection; returns once it is closed. Idempotent."""
        reading = self._reading
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})

    def drop(self) -> None:
        """The same from a finalizer, in whatever thread the collector happens to run."""
        if self._reading is not None:
            # A loop that is closed, or closes just now, has no connection left.
            with contextlib.suppress(RuntimeError):
                self._reading.get_loop().call_soon_threadsafe(self._reading.cancel)
