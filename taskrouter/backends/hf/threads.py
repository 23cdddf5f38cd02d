"""Daemon threads that an event loop can wait for.

Daemons, because a load or a generation stuck in native code must not keep the process from exiting, as the threads of
the loop's default executor do. But a thread that is inside torch when the interpreter ends takes the process down with
an abort; so at exit what runs is told to stop, and is waited for, for ``EXIT_GRACE_S`` at most.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

EXIT_GRACE_S = 5.0


async def run_in_daemon(name: str, work: Callable[[], T], *, abandoned: Callable[[T], None] | None = None) -> T:
    """Run blocking work in a daemon thread of its own.

    The work can't be interrupted: when the caller is cancelled it goes on alone, and what it comes to is handed to
    ``abandoned``.
    """
    outcome, waiting = _begin(name, work, threading.Event())
    try:
        await asyncio.wait({waiting})
    except asyncio.CancelledError:
        if abandoned is not None:
            _abandon(outcome, abandoned)
        raise
    return _result(outcome)


async def run_stoppable(
    name: str, work: Callable[[], T], stop: threading.Event, *, abandoned: Callable[[T], None]
) -> T:
    """Run blocking work that ends soon after ``stop`` is set, in a daemon thread of its own.

    Cancelled, it sets ``stop``, and raises once the work has really ended: a result that came all the same is handed to
    ``abandoned``. Cancelled once more, it waits no longer (the loop is being closed, and the work may be stuck).
    """
    outcome, waiting = _begin(name, work, stop)
    try:
        await asyncio.wait({waiting})
    except asyncio.CancelledError:
        stop.set()
        try:
            await asyncio.wait({waiting})
        except asyncio.CancelledError:
            _abandon(outcome, abandoned)
            raise
        if outcome.exception() is None:
            await run_in_daemon(f"{name}: dropped", lambda: abandoned(outcome.result()))
        del outcome, waiting  # whoever keeps the cancellation keeps this frame
        raise
    return _result(outcome)


def _begin(name: str, work: Callable[[], T], stop: threading.Event) -> tuple[Future[T], asyncio.Future[T]]:
    outcome: Future[T] = Future()
    threading.Thread(target=_settle, args=(outcome, work, stop), name=name, daemon=True).start()
    waiting = asyncio.wrap_future(outcome)
    waiting.add_done_callback(_seen)
    return outcome, waiting


def _abandon(outcome: Future[T], take: Callable[[T], None]) -> None:
    """Hand over what the work comes to, if it comes to anything."""

    def drop(done: Future[T]) -> None:
        if done.exception() is None:
            take(done.result())

    outcome.add_done_callback(drop)


@dataclass(slots=True, eq=False)
class Job:
    """An operation in a worker's queue: who works on it settles ``outcome``, soon once ``stop`` is set.

    ``work`` is given the job, with those after it in the queue that are of its ``group`` (``None``: always alone), and
    what comes later.
    """

    asked: Any
    work: Callable[[Sequence[Job], Arrivals], None]
    group: Hashable | None
    outcome: Future[Any]
    stop: threading.Event


class Arrivals:
    """What comes for a worker while it works on jobs of one group, up to the first that is of another."""

    def __init__(self, jobs: queue.SimpleQueue[Job | None], early: deque[Job | None], group: Hashable | None) -> None:
        self._jobs = jobs
        self._early = early
        self._group = group

    def waiting(self) -> bool:
        """Whether something has come that may be taken."""
        return self._group is not None and not self._early and not self._jobs.empty()

    def take(self, most: int) -> list[Job]:
        """Up to so many of them, begun: who has gone away meanwhile isn't among them."""
        found: list[Job] = []
        while len(found) < most and self.waiting():
            job = self._jobs.get()
            if job is None or job.group != self._group:
                self._early.append(job)
            elif _begun(job):
                found.append(job)
        return found


class Worker:
    """One daemon thread that runs a model's operations in the order they came.

    It waits for nothing but the first of them: those of one group that have come meanwhile, or come while it works, are
    worked on together. So nobody waits for others to come, and nobody is overtaken.

    It keeps no reference to an operation or its result once that has ended, so that nothing of a model stays alive
    here.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def result(self, outcome: Future[T], stop: threading.Event) -> T:
        """What was queued comes to.

        Cancelled: one that hasn't begun is dropped; for one that has, ``stop`` is set, and the cancellation is raised
        once the work has ended.
        """
        await self.finished(outcome, stop)
        return _result(outcome)

    def submit(self, work: Callable[[], T], stop: threading.Event) -> Future[T]:
        """Queue ``work``, which is done alone; the future is settled by the worker's thread."""
        return self.put(None, lambda jobs, _: jobs[0].outcome.set_result(work()), None, stop)

    def put(
        self, asked: Any, work: Callable[[Sequence[Job], Arrivals], None], group: Hashable | None, stop: threading.Event
    ) -> Future[Any]:
        """Queue what may be worked on together with others; the future is settled by the worker's thread."""
        outcome: Future[Any] = Future()
        self._jobs.put(Job(asked, work, group, outcome, stop))
        return outcome

    async def finished(self, outcome: Future[T], stop: threading.Event) -> None:
        """Wait until the work has really ended; every cancellation meanwhile only sets ``stop``, and is raised then."""
        waiting = asyncio.wrap_future(outcome)
        waiting.add_done_callback(_seen)
        cancelled: asyncio.CancelledError | None = None
        while not waiting.done():
            try:
                await asyncio.wait({waiting})
            except asyncio.CancelledError as error:
                cancelled = error
                stop.set()
                if outcome.cancel():
                    break
        if cancelled is not None:
            raise cancelled

    def rested(self) -> Future[None]:
        """Settled once what is queued by now has run, and nothing of it is held here.

        An operation itself is settled while it still has hold of the module, if only for a moment.
        """
        if self._closed:  # nothing is taken from the queue any more
            rested: Future[None] = Future()
            rested.set_result(None)
            return rested
        return self.submit(lambda: None, threading.Event())

    def close(self) -> None:
        """End the thread once what is queued has run."""
        self._closed = True
        self._jobs.put(None)

    def _serve(self) -> None:
        early: deque[Job | None] = deque()  # what was taken from the queue, and doesn't go with the one before it
        while (job := early.popleft() if early else self._jobs.get()) is not None:
            if _begun(job):
                _work(job, Arrivals(self._jobs, early, job.group))
            del job


_running: dict[Future[Any], threading.Event] = {}


def _settle(outcome: Future[T], work: Callable[[], T], stop: threading.Event) -> None:
    _running[outcome] = stop
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001  whatever ended the work is the caller's to see
        outcome.set_exception(error)
    else:
        outcome.set_result(result)
    finally:
        del _running[outcome]


def _begun(job: Job) -> bool:
    """Whether the job may be worked on: its caller is still there."""
    if not job.outcome.set_running_or_notify_cancel():
        return False
    _running[job.outcome] = job.stop
    job.outcome.add_done_callback(lambda outcome: _running.pop(outcome, None))
    return True


def _work(job: Job, arrivals: Arrivals) -> None:
    try:
        job.work([job], arrivals)
    except BaseException as error:  # noqa: BLE001  whatever ended the work is the caller's to see
        if not job.outcome.done():
            job.outcome.set_exception(error)


@atexit.register
def _stop_at_exit() -> None:
    busy = dict(_running)
    for stop in busy.values():
        stop.set()
    wait(busy, timeout=EXIT_GRACE_S)


def _seen(waiting: asyncio.Future[Any]) -> None:
    # The error is taken from the other future; asyncio would report this one's as never retrieved.
    if not waiting.cancelled():
        waiting.exception()


def _result(outcome: Future[T]) -> T:
    try:
        return outcome.result()
    finally:
        # An exception's traceback holds this frame, and the frame would hold the future that holds the exception.
        del outcome
