"""What bounds the calls to an external option: turns, first come first served, waited for until a deadline."""

from __future__ import annotations

import asyncio
from collections import deque

from taskrouter.errors import ManagerClosed, Overloaded

ALPHA = 0.2
CALL_PRIOR_S = 1.0


class Turns:
    """``most`` turns of one option. Its calls' average length says how long a queue will take."""

    def __init__(self, who: str, most: float) -> None:
        self._who, self._most = who, most
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._call_s = CALL_PRIOR_S
        self._closed = False

    def __repr__(self) -> str:
        return f"<Turns {self._who} {self._taken}/{self._most}, {len(self._waiting)} waiting>"

    def allow(self, most: float) -> None:
        """So many turns from now on (infinity: nothing bounds it any more). Nobody who has one loses it."""
        self._most = most
        self._serve()

    @property
    def free(self) -> bool:
        """Whether a turn can be had at once."""
        return self._taken < self._most

    @property
    def expected_s(self) -> float:
        """Seconds until somebody who comes now would have a turn."""
        return 0.0 if self.free else (len(self._waiting) + 1) * self._call_s / self._most

    async def take(self, until: float) -> None:
        """Wait for a turn. Raises ``Overloaded`` at ``until`` (loop time), ``ManagerClosed`` where all is ending."""
        if self._closed:
            raise _closed(self._who)
        if self.free:
            self._taken += 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout_at(until):
                await future
        except TimeoutError as error:
            self._lost(future)
            raise Overloaded(
                f"{self._who}: all of its {self._most} turns were taken until the deadline (max_concurrency)"
            ) from error
        except BaseException:
            self._lost(future)
            raise

    def release(self, call_s: float | None = None) -> None:
        """Hand a turn on. ``call_s`` is how long it was held."""
        if call_s is not None:
            self._call_s += ALPHA * (call_s - self._call_s)
        self._taken -= 1
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self.free:
            future = self._waiting.popleft()
            if not future.done():
                self._taken += 1
                future.set_result(None)

    def close(self) -> None:
        """Refuse who waits."""
        self._closed = True
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(_closed(self._who))

    def _lost(self, future: asyncio.Future[None]) -> None:
        """Its waiter went away: with a turn that it was given in the same moment, too."""
        if future in self._waiting:
            self._waiting.remove(future)
        elif future.done() and not future.cancelled() and future.exception() is None:
            self.release()


def _closed(who: str) -> ManagerClosed:
    return ManagerClosed(f"{who} wasn't asked: the manager was shut down")
