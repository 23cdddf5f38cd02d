"""``GET /admin/events``: what happens, as server-sent events.

Each reader has a bounded buffer: whoever reads too slowly loses the oldest events, and is told how many. The streams
end when the server begins to end, so that they hold nothing up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from taskrouter.http.exchange import EVENTS, Exchange, Gone
from taskrouter.http.failing import Refused
from taskrouter.http.streaming import HEARTBEAT_S, NO_CACHE, event_of
from taskrouter.manager import Happened

if TYPE_CHECKING:
    from taskrouter.http.state import State

KEPT = 256
"""Events that wait for one reader."""
MOST_READERS = 64
SLOWEST_S = 60.0
"""A reader that takes nothing for so long is gone."""
LAST_S = 1.0
"""How long a reader may take for what is left, once all ends."""
_HEARTBEAT = b": nothing happened\n\n"


class Reader:
    """One listener's buffer."""

    def __init__(self) -> None:
        self.lost = 0
        self.ended = False
        self.bound: asyncio.Timeout | None = None
        """Of the write that is under way."""
        self._waits: deque[bytes] = deque()
        self._news = asyncio.Event()

    def put(self, event: bytes) -> None:
        if len(self._waits) >= KEPT:
            self._waits.popleft()
            self.lost += 1
        self._waits.append(event)
        self._news.set()

    def end(self) -> None:
        """What waits is still sent, within a bound."""
        self.ended = True
        self._news.set()
        if self.bound is not None:
            self.bound.reschedule(asyncio.get_running_loop().time() + LAST_S)

    async def read(self, heartbeat_s: float) -> bytes:
        """What has happened since the last time, or a heartbeat; nothing at the end."""
        try:
            async with asyncio.timeout(heartbeat_s):
                await self._news.wait()
        except TimeoutError:
            return _HEARTBEAT
        lost, self.lost = self.lost, 0
        found = [event_of({"event": "lost", "count": lost}, "lost")] if lost else []
        found += self._waits
        self._waits.clear()
        if not self.ended:
            self._news.clear()
        return b"".join(found)


class Events:
    """Everybody who listens to one server."""

    def __init__(self) -> None:
        self._readers: set[Reader] = set()
        self._ended = False

    def __len__(self) -> int:
        return len(self._readers)

    def happened(self, happened: Happened) -> None:
        """Tell all readers."""
        if self._readers:
            self.tell(happened.what, at=happened.at, **happened.facts)
        if happened.what == "shutting_down":
            self.end()

    def tell(self, what: str, **facts: Any) -> None:
        """The same for what the manager doesn't know of."""
        if self._readers:
            event = event_of({"event": what, **facts}, what)
            for reader in self._readers:
                reader.put(event)

    def end(self) -> None:
        """End all streams, now and later. To be called on their loop; idempotent."""
        self._ended = True
        for reader in self._readers:
            reader.end()

    @contextlib.contextmanager
    def reader(self) -> Iterator[Reader]:
        """Listen. Raises ``Refused`` where too many do."""
        if len(self._readers) >= MOST_READERS:
            raise Refused(
                429, f"{MOST_READERS} clients read the events, the most there may be", code="too_many_readers"
            )
        reader = Reader()
        self._readers.add(reader)
        if self._ended:
            reader.end()
        try:
            yield reader
        finally:
            self._readers.discard(reader)


async def events(state: State, exchange: Exchange) -> None:
    """``GET /admin/events``."""
    with state.events.reader() as reader:
        exchange.watch()
        await exchange.start(200, EVENTS, NO_CACHE)
        await exchange.write(b": listening\n\n")
        while data := await reader.read(HEARTBEAT_S):
            await _send(exchange, reader, data)
        exchange.unwatch()
        await exchange.write(b"", more=False)


async def _send(exchange: Exchange, reader: Reader, data: bytes) -> None:
    """Send it within the bound. Raises ``Gone``."""
    try:
        async with asyncio.timeout(LAST_S if reader.ended else SLOWEST_S) as reader.bound:
            await exchange.write(data)
    except TimeoutError:
        raise Gone from None
    finally:
        reader.bound = None
