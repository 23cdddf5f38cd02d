"""What lasts as long as the request that asked for it stays open: leases and pipelines.

Each has an id, by which other requests of the same key say that they belong to it. It can't be guessed, and stands in
no log and no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Generic, NoReturn, TypeVar

from taskrouter.errors import TaskRouterError
from taskrouter.http import streaming
from taskrouter.http.exchange import Exchange
from taskrouter.http.keys import Caller
from taskrouter.manager.refusals import fresh

_ID_BYTES = 24
_STILL = b": still held\n\n"


class Lasting:
    """Something of one caller's. It ends with its connection, or in an error, which its client is told."""

    def __init__(self, caller: Caller) -> None:
        self.id = secrets.token_urlsafe(_ID_BYTES)
        self.caller = caller
        self.error: TaskRouterError | None = None
        self._ended = asyncio.Event()

    def end(self, error: TaskRouterError) -> None:
        """End it now. Only the first error counts."""
        if self.error is None:
            self.error = error
            self._ended.set()

    def retire(self, error: TaskRouterError) -> None:
        """End it, as nothing lasts any longer here."""
        self.end(error)

    async def last(self, exchange: Exchange, told: Mapping[str, Any]) -> NoReturn:
        """Tell its client that it is there, then show signs of life. Raises what it ended in, at the latest then."""
        if self.error is None:
            await exchange.write(streaming.event_of(told))
        while self.error is None:
            try:
                async with asyncio.timeout(streaming.HEARTBEAT_S):
                    await self._ended.wait()
            except TimeoutError:
                await exchange.write(_STILL)
        raise self.error


L = TypeVar("L", bound=Lasting)


class Lastings(Generic[L]):
    """All of one kind that one server keeps: as many as it has connections for."""

    def __init__(self) -> None:
        self._known: dict[str, L] = {}
        self._over: TaskRouterError | None = None

    def __iter__(self) -> Iterator[L]:
        return iter(self._known.values())

    def find(self, name: str, caller: Caller) -> L | None:
        """The one of this id, for the key that it belongs to: to others it is as if it weren't there."""
        found = self._known.get(name)
        return found if found is not None and found.caller is caller else None

    @contextlib.contextmanager
    def kept(self, it: L) -> Iterator[L]:
        """It can be found while this block lasts."""
        self._known[it.id] = it
        if self._over is not None:
            it.retire(fresh(self._over))
        try:
            yield it
        finally:
            del self._known[it.id]

    def end(self, error: TaskRouterError) -> None:
        """End all of them, those to come as well: they must not hold up the server's own end. Idempotent."""
        self._over = error
        for it in list(self._known.values()):
            it.retire(fresh(error))
