"""What writes spend, and the books in memory until it is written.

1. A record stands in memory from the moment it is made, and leaves memory in the moment its transaction commits.
   ``_committing`` is held over that moment and over each read, so every record is counted once: never twice, never not.
2. One writes at a time (``_work``): the caller itself, where the file is open and free (a commit without a sync takes
   microseconds, a thread ten times as long to wake), else a thread, whose next transaction is all that came meanwhile.
3. What can't be written stays in memory, counts there, and goes with the next record. Nobody's call fails for it.
4. No lock is held while the writer waits for another process.

``_changed`` guards what is in memory; it is taken inside ``_committing``, never around it, and both inside ``_work``.
The first two are re-entrant: the collector may end a forgotten ledger within them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from taskrouter.spend import file
from taskrouter.spend.books import Books, Sums, Use, add, rows_of
from taskrouter.spend.file import (
    ADD,
    Damaged,
    NewerSchema,
    Opened,
    Reader,
    damaged,
    identity,
    open_to_write,
    result_code,
)

logger = logging.getLogger("taskrouter")

CHECKPOINT_EVERY = 500
"""Commits. A checkpoint is what syncs to the disk: some milliseconds, after the callers have their answer."""
SLOW_S, SLOW_FOR_S = 0.005, 60.0
"""A commit that took so long in its caller: for a while all are the thread's, so no event loop waits for a disk."""
EXIT_WAIT_S = 10.0
"""How long a process that ends waits for records whose callers were cancelled."""

_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL)
Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Writer:
    """The books in memory, the connections, and the thread that moves one to the other."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.set_aside: Path | None = None
        self.commits = 0
        self._path, self._clock = path, clock
        self._changed = threading.Condition()
        self._committing = threading.RLock()
        self._work = threading.Lock()
        self._due = False  # a checkpoint is
        self._slow_until = 0.0
        self._incoming: Books = {}
        self._writing: Books = {}  # changed by who holds _work: being written, or failed to be
        self._waiters: list[Waiter] = []
        self._closers: list[Waiter] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        self._opened: Opened | None = None
        self._reader = Reader(path)
        self._seen: dict[str, tuple[str, float]] = {}  # by provider: the day, and its pico-dollars as last known
        self._warned_writing = self._warned_reading = False
        self._newer = False

    # --- callers ------------------------------------------------------------------------------------------------------

    def take(self, place: tuple[str, str], use: Use, sums: Sums, waiter: Waiter) -> bool:
        """Count it; whether the waiter will be told."""
        with self._changed:
            add(self._incoming, place, use, sums)
            if not self._started():
                return False
        if self._at_once():
            return False
        with self._changed:
            # The thread may have taken the record meanwhile: then it tells this waiter after its next, empty round. Or
            # it was told to end, wrote the record, and is gone.
            if self._thread is None and not (self._incoming or self._writing):
                return False
            if not self._started():
                return False
            self._waiters.append(waiter)
            self._changed.notify()
        return True

    def close(self, waiter: Waiter) -> bool:
        """Ask the thread to end; whether there is one, which will tell the waiter."""
        with self._changed:
            if self._thread is not None or ((self._incoming or self._writing) and self._started()):
                self._closing = True
                self._closers.append(waiter)
                self._changed.notify()
                return True
        self._close_reader()
        return False

    def end(self, pid: int) -> None:
        """Close, at exit or from the collector, in any thread of the process that made this."""
        if os.getpid() != pid:
            return
        with self._changed:
            thread, self._closing = self._thread, self._thread is not None
            self._changed.notify()
        if thread is None:
            self._close_reader()
        elif thread is not threading.current_thread():
            thread.join(EXIT_WAIT_S)

    def spent(self, day: str, provider: str) -> float:
        """Pico-dollars: those of the file and those in memory."""
        with self._committing:
            try:
                pico = 0 if self._newer else self._reader.spent(day, provider)
                self._seen[provider] = (day, pico)
            except (Damaged, NewerSchema, sqlite3.Error, OSError) as error:
                if not damaged(error):  # who sets it aside says so
                    self._cannot_read(error)
                pico = self._seen_of(day, provider)
            with self._changed:
                for books in (self._writing, self._incoming):
                    for sums in books.get((day, provider), {}).values():
                        pico += sums.pico
        return pico

    def all_rows(self) -> list[tuple[str | int, ...]]:
        with contextlib.closing(Reader(self._path)) as reader:
            try:
                if not self._newer:
                    reader.open()
            except (Damaged, NewerSchema, sqlite3.Error, OSError) as error:
                self._cannot_read(error)
            with self._committing:
                try:
                    reader.snapshot()
                except sqlite3.Error as error:  # what would be read later may hold what is in memory now
                    self._cannot_read(error)
                    reader.close()
                with self._changed:
                    rows = rows_of(self._writing) + rows_of(self._incoming)
            try:
                return rows + reader.all_rows()
            except sqlite3.Error as error:
                self._cannot_read(error)
                return rows

    def uncommitted(self) -> int:
        with self._changed:
            return sum(
                sums.requests for b in (self._writing, self._incoming) for uses in b.values() for sums in uses.values()
            )

    def _seen_of(self, day: str, provider: str) -> float:
        seen_day, pico = self._seen.get(provider, (day, 0))
        return pico if seen_day == day else 0

    def _started(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="taskrouter-spend", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads, or the interpreter is ending
                self._cannot_write(error)
                return False
            self._thread = thread
        return True

    def _cannot_read(self, error: Exception) -> None:
        if isinstance(error, NewerSchema):
            self._leave_alone(error)
        elif not self._warned_reading:
            self._warned_reading = True
            logger.warning("spend in %s can't be read, and counts as far as it is known: %s", self._path, error)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._incoming or self._waiters or self._due or self._closing):
                    self._changed.wait()
            with self._work:
                if self._round():
                    return

    def _round(self) -> bool:
        """Write what there is; whether that was the last time."""
        with self._changed:
            self._collect()
            waiters, self._waiters = self._waiters, []
            closing = self._closing
        if self._writing and not self._newer:
            self._write()
        _tell(waiters)
        if not closing:
            self._checkpoint()
            return False
        self._close_connection()
        self._close_reader()
        with self._changed:
            if self._incoming or self._waiters:
                return False
            self._thread, self._closing = None, False
            closers, self._closers = self._closers, []
        _tell(closers)
        return True

    def _collect(self) -> None:
        for place, uses in self._incoming.items():
            for use, sums in uses.items():
                add(self._writing, place, use, sums)
        self._incoming = {}

    def _at_once(self) -> bool:
        """Commit here and now, if that can be done without waiting for anybody; else it is the thread's."""
        begun = time.monotonic()
        if self._opened is None or self._newer or begun < self._slow_until or not self._work.acquire(blocking=False):
            return False
        try:
            opened = self._opened
            if opened is None or self._closing:
                return False
            with self._changed:
                self._collect()
            try:
                done = self._transact(opened)
            except Exception:  # noqa: BLE001 - the thread meets it too, and says so
                with contextlib.suppress(sqlite3.Error):
                    opened.connection.rollback()
                done = False
        finally:
            self._work.release()
        ended = time.monotonic()
        if ended - begun > SLOW_S:
            self._slow_until = ended + SLOW_FOR_S
        if done and self.commits % CHECKPOINT_EVERY == 0:
            with self._changed:
                self._due = True
                self._changed.notify()
        return done

    def _write(self) -> None:
        try:
            # Twice where the file was found damaged, or was replaced by another process in the middle.
            if not (self._commit() or self._commit()):
                raise sqlite3.OperationalError("it was damaged or replaced twice in a row")
        except NewerSchema as error:
            self._leave_alone(error)
            self._close_connection()
        except Exception as error:  # noqa: BLE001 - whatever it is, callers wait for this thread, and rule 3 holds
            self._cannot_write(error)
            self._give_up(error)

    def _commit(self) -> bool:
        """One transaction of all that is to be written; whether it is in the file that stands at the path now."""
        try:
            if self._opened is None or self._replaced(self._opened):
                self._close_connection()
                self._opened = open_to_write(self._path, now=self._clock())
                self.set_aside = self._opened.set_aside or self.set_aside
            self._opened.connection.execute(f"PRAGMA busy_timeout={file.BUSY_TIMEOUT_S * 1000:.0f}")
            try:
                return self._transact(self._opened)
            finally:
                # Callers that commit by themselves must not wait.
                self._opened.connection.execute("PRAGMA busy_timeout=0")
        except sqlite3.Error as error:
            if not damaged(error):
                raise
            self._close_connection()
            return False

    def _transact(self, opened: Opened) -> bool:
        """The transaction itself; ``False`` where the file was replaced meanwhile. Raises ``sqlite3.Error``."""
        rows, connection = rows_of(self._writing), opened.connection
        if len(rows) > 1:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(ADD, rows)
        with self._committing:
            # One statement is a transaction by itself.
            connection.execute("COMMIT") if len(rows) > 1 else connection.executemany(ADD, rows)
            if self._replaced(opened):
                return False  # what we wrote to has been set aside, and is out of the books
            for (day, provider), uses in self._writing.items():
                written = sum(sums.pico for sums in uses.values())
                self._seen[provider] = (day, self._seen_of(day, provider) + written)
            with self._changed:
                self._writing = {}
        self.commits += 1
        self._warned_writing = False
        return True

    def _replaced(self, opened: Opened) -> bool:
        try:
            return opened.identity != identity(self._path)
        except OSError:  # nobody can tell; what is committed must not be written a second time for it
            return False

    def _checkpoint(self) -> None:
        due, self._due = self._due or self.commits % CHECKPOINT_EVERY == 0, False
        if self._opened is not None and due:
            with contextlib.suppress(sqlite3.Error):  # the next transaction meets it too, and says so
                self._opened.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _cannot_write(self, error: Exception) -> None:
        if not self._warned_writing:
            self._warned_writing = True
            logger.warning("spend can't be written to %s, and is kept in memory until it can: %s", self._path, error)

    def _leave_alone(self, error: NewerSchema) -> None:
        if not self._newer:
            self._newer = True
            logger.warning("spend is kept in memory only, as %s can't be used: %s", self._path, error)

    def _close_reader(self) -> None:
        with self._committing:
            self._reader.close()

    def _give_up(self, error: Exception) -> None:
        """Leave the transaction; keep the connection where it isn't to blame, as opening one checks the whole file."""
        if self._opened is not None and result_code(error) in _PASSING:
            with contextlib.suppress(sqlite3.Error):
                self._opened.connection.rollback()
                return
        self._close_connection()

    def _close_connection(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.connection.close()  # rolls back


def _tell(waiters: list[Waiter]) -> None:
    """One wake-up for each loop, however many wait there."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for loop, future in waiters:
        loops.setdefault(loop, []).append(future)
    for loop, futures in loops.items():
        with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_done, futures)


def _done(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
