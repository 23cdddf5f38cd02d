"""``telemetry.record_trace``: a line for each request when it has ended, and for each decision, to be rehearsed.

What happens is put into a bounded list; once a second, and at the end, a thread writes what came together, in one
write of whole lines to the end of the file, so that several processes can share one. Whatever goes wrong there is
logged once, counted in ``lost``, and harms no request. Names and times are recorded, never what was asked or answered.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from taskrouter.errors import TaskRouterError
from taskrouter.residency import Residency
from taskrouter.residency.decisions import Decided
from taskrouter.residency.events import Acquire
from taskrouter.types import ModelKey, TicketId

logger = logging.getLogger("taskrouter")

MOST = 100_000
"""Lines that may wait to be written; what comes beyond is lost, and counted."""


class Recorder:
    """One manager's recording. ``tasks_of`` names the tasks that list a model. Bound to the running event loop."""

    def __init__(self, path: str, core: Residency, tasks_of: Callable[[ModelKey], Iterable[str]]) -> None:
        self.path = path
        self.lost = 0
        self._core = core
        self._tasks_of = tasks_of
        self._loop = asyncio.get_running_loop()
        self._skew = time.time() - self._loop.time()
        self.open: dict[TicketId, tuple[float, str, str, int, float]] = {}
        """Of leases that are held: when they were asked for, task, option, priority, and when they were granted.

        Flat tuples, here and in what waits to be written: the garbage collector doesn't look at those.
        """
        self._rows: list[Any] = []
        self._names: dict[tuple[str, str, int], str] = {}
        self._decided = core.decided
        self._writing: asyncio.Future[None] | None = None
        self._torn = False
        self._complained = False

    def __repr__(self) -> str:
        return f"<Recorder {self.path}: {len(self._rows)} lines to be written, {self.lost} lost>"

    # --- what happens -------------------------------------------------------------------------------------------------

    def began(self, event: Acquire, arrival: float, now: float, task: str, option: str) -> None:
        """A lease was granted, to somebody who came at ``arrival``; a claim is none."""
        if not event.claim:
            self.open[event.ticket] = arrival, task, option, event.priority, now

    def ended(self, ticket: TicketId, now: float) -> None:
        """A lease has ended."""
        lease = self.open.pop(ticket, None)
        if lease is not None:
            if len(self._rows) < MOST:
                self._rows.append((*lease, now))
            else:
                self.lost += 1

    def unanswered(self, arrival: float, task: str, option: str, priority: int, error: BaseException) -> None:
        """A request ended without a lease: it was refused, or its caller gave up."""
        outcome = "refused" if isinstance(error, TaskRouterError) else "gave_up"
        self._add((arrival, task, option, priority, outcome))

    def watch(self) -> None:
        """Take over what the core has decided meanwhile."""
        count = self._core.decided
        if count != self._decided:
            records = self._core.decided_since(self._decided)
            self.lost += count - self._decided - len(records)
            self._decided = count
            for record in records:
                self._add(record)

    def _add(self, row: Any) -> None:
        if len(self._rows) < MOST:
            self._rows.append(row)
        else:
            self.lost += 1

    # --- writing ------------------------------------------------------------------------------------------------------

    def write_to(self, path: str) -> None:
        """Go on in this file, also with what wasn't written yet."""
        if path != self.path:
            self.path = path
            self._torn = self._complained = False

    def look(self, now: float) -> None:
        """Write what came together, unless that of the last time is still being written."""
        if self._rows and (self._writing is None or self._writing.done()):
            rows, self._rows = self._rows, []
            self._writing = self._loop.run_in_executor(None, self._write, self.path, rows)

    async def close(self) -> None:
        """Write the rest."""
        if self._writing is not None:
            await self._writing
        rows, self._rows = self._rows, []
        if rows:
            await self._loop.run_in_executor(None, self._write, self.path, rows)

    def _write(self, path: str, rows: list[Any]) -> None:
        text = "".join([self._line(row) for row in rows])
        data = (("\n" if self._torn else "") + text).encode("utf-8", "backslashreplace")
        try:
            # Not blocking: a pipe that nobody reads is an error, too.
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
            try:
                written = os.write(file, data)
            finally:
                os.close(file)
            self._torn = written < len(data) and (written > 0 or self._torn)
            if written < len(data):
                self.lost += data[written:].count(b"\n")
                raise OSError(f"only {written} of {len(data)} bytes could be written")
        except OSError as error:
            if not isinstance(error.args[0], str):
                self.lost += len(rows)
            if not self._complained:
                self._complained = True
                logger.warning("the trace %s can't be written, and what is lost is only counted: %s", path, error)

    def _line(self, row: Any) -> str:
        if isinstance(row, Decided):
            keys = [row.key, *(victim.key for victim in row.victims)]
            tasks = dict.fromkeys(task for key in keys for task in self._tasks_of(key))
            decided = {"label": row.label, "rule": row.rule.name.lower(), "tasks": list(tasks), "text": str(row)}
            return json.dumps({"at": round(row.at + self._skew, 6), "decided": decided}, ensure_ascii=False) + "\n"
        arrival, task, option, priority, granted, *ends = row
        # Written out: json.dumps for each would cost several times as much, beside the loop that serves.
        who = self._who(task, option, priority)
        if not ends:
            return f'{{"at": {arrival + self._skew:.6f}, {who}, "outcome": "{granted}"}}\n'
        times = f'"waited_s": {granted - arrival:.6f}, "hold_s": {ends[0] - granted:.6f}'
        return f'{{"at": {arrival + self._skew:.6f}, {who}, {times}, "outcome": "answered"}}\n'

    def _who(self, task: str, option: str, priority: int) -> str:
        known = self._names.get((task, option, priority))
        if known is None:
            names = {"task": task, "option": option, "priority": priority}
            known = json.dumps(names, ensure_ascii=False)[1:-1]
            self._names[task, option, priority] = known
        return known
