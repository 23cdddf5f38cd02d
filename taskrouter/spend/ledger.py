"""What calls to external providers cost: recorded as they end, asked before they begin."""

from __future__ import annotations

import asyncio
import math
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from taskrouter.spend.books import PICO, Spent, Sums, merged
from taskrouter.spend.file import default_path
from taskrouter.spend.writer import Writer

MOST_USD = 1e4
"""More than one call can cost: who says so has mistaken the unit."""
MOST_TOKENS = 10**12


class SpendLedger:
    """Spend by day, provider, task, option and model, shared by all processes that use the same file.

    Nothing is opened before the first call, and only ``record`` creates the file. Any thread and any event loop may
    call; a forked child makes a ledger of its own. After a power cut the last transactions may be missing (WAL,
    synchronous=NORMAL); the death of the process loses none.
    """

    def __init__(self, path: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path if path is not None else default_path()
        self._clock = clock
        self._writer = Writer(self.path, clock)
        # The writer's thread knows the writer only, so a forgotten ledger is collected, and ended, also at exit.
        weakref.finalize(self, self._writer.end, os.getpid())

    def __repr__(self) -> str:
        return f"<SpendLedger {self.path}: {self.commits} commits, {self._writer.uncommitted()} requests in memory>"

    @property
    def set_aside(self) -> Path | None:
        """Where the damaged file is that this ledger found; ``None`` if it found none."""
        return self._writer.set_aside

    @property
    def commits(self) -> int:
        """Transactions so far."""
        return self._writer.commits

    async def record(
        self, *, provider: str, task: str, option: str, model_id: str, input_tokens: int, output_tokens: int, usd: float
    ) -> None:
        """Count one request on today's account; returns once that is committed. ``usd`` is dollars.

        A failure to write doesn't raise: it is logged once, until one succeeds, and the spend counts in memory and is
        written with the next record. Another process's transaction is waited for up to 5 s. Cancelling the caller
        loses nothing. Raises ``ValueError`` for tokens or dollars that are negative, no number or absurd; nothing is
        counted then.
        """
        if not (math.isfinite(usd) and 0 <= usd <= MOST_USD):
            raise ValueError(f"usd is {usd!r}; a call to {provider} costs from 0 to {MOST_USD:,.0f} dollars")
        for tokens in (input_tokens, output_tokens):
            if not 0 <= tokens <= MOST_TOKENS:
                raise ValueError(f"{tokens!r} tokens; a call to {provider} takes from 0 to {MOST_TOKENS}")
        sums = Sums(1, int(input_tokens), int(output_tokens), round(usd * PICO))
        use = (_text(task), _text(option), _text(model_id))
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if self._writer.take((day_of(self._clock()), _text(provider)), use, sums, (loop, future)):
            await future

    def spent_today(self, provider: str) -> float:
        """Dollars this provider took today (UTC), over all processes, with what isn't committed here yet.

        Takes microseconds and never raises: where the file can't be read, what is known of it counts.
        """
        return self._writer.spent(day_of(self._clock()), _text(provider)) / PICO

    def report(self, *, since_day: str | None = None) -> list[Spent]:
        """All spend from that day ('YYYY-MM-DD') on, by day (newest first), then by dollars (most first).

        Blocks: it reads the file, so call it in a thread. Where the file can't be read it is what is in memory, with a
        warning; ``read_spent`` raises there.
        """
        return merged(self._writer.all_rows(), since_day=since_day)

    async def close(self) -> None:
        """Write what is in memory, and close the file. Idempotent; a later call opens it again.

        What can't be written stays in memory, as in ``record``. Cancelling the caller doesn't stop it.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if self._writer.close((loop, future)):
            await future


def day_of(now: float) -> str:
    """The UTC day of a Unix time."""
    return time.strftime("%Y-%m-%d", time.gmtime(now))


def _text(name: str) -> str:
    """A name as SQLite can hold it: a lone surrogate would fail the transaction of everybody."""
    return name if name.isascii() else name.encode("utf-8", "replace").decode()
