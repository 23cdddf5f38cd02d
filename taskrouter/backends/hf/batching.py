"""Calls of one model that are worked on together: each goes on by itself but for what it wants of the module.

A verb is a function that answers at once, or a generator: it yields what it wants of the module, is sent what that
gave, and returns its answer. So a verb reads as if its call were the only one; that several wants are met by one pass
is nobody's business but the runner's, which is given the calls that want something.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from types import GeneratorType
from typing import Any

from taskrouter.backends.hf.calling import Stopped
from taskrouter.backends.hf.failures import call_error, forget_frames, out_of_memory
from taskrouter.backends.hf.storages import give_back
from taskrouter.backends.hf.threads import Arrivals, Job
from taskrouter.errors import TaskRouterError

Steps = Generator[Any, Any, Any]

Others = Callable[[], bool]
"""Whether others have come that could be worked on, too."""

Runner = Callable[[Sequence["Call"], Others], None]
"""Meets wants of calls, those of some of them at least: each ``goes_on`` with what it wanted. It ``sweeps`` as often as
it can, and lets others in soon. May raise at any point; those that still want what they wanted are then tried again,
each alone."""

GATHER_S = 0.05
"""Seconds that a call's input may wait for the inputs of others to be read."""


class Call:
    """One call on its way: ``wants`` is what it waits for, ``None`` once it has ended."""

    __slots__ = ("_begin", "_job", "_label", "_steps", "wants")

    def __init__(self, job: Job, label: str, begin: Callable[[], Any]) -> None:
        self.wants: Any = None
        self._job = job
        self._label = label
        self._begin: Callable[[], Any] | None = begin
        self._steps: Steps | None = None

    @property
    def stopped(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._job.stop.is_set()

    def begins(self) -> None:
        """Work until it wants something, or has ended."""
        begin, self._begin = self._begin, None
        assert begin is not None
        if self.stopped:
            self.fails(Stopped())
            return
        try:
            made = begin()
        except BaseException as error:  # noqa: BLE001  native code raises what it likes: it goes to whoever waits
            self.fails(error)
            return
        if isinstance(made, GeneratorType):
            self._steps = made
            self.goes_on(None)
        else:
            self._job.outcome.set_result(made)

    def goes_on(self, given: Any) -> None:
        """Work on with what was wanted, until it wants something else, or has ended."""
        assert self._steps is not None
        self.wants = None
        if self.stopped:
            self.fails(Stopped())
            return
        try:
            self.wants = self._steps.send(given)
        except StopIteration as end:
            self._steps = None
            self._job.outcome.set_result(end.value)
        except BaseException as error:  # noqa: BLE001  native code raises what it likes: it goes to whoever waits
            self.fails(error)

    def fails(self, error: BaseException) -> None:
        """End it: whoever waits sees the error, typed."""
        self.wants = None
        if self._steps is not None:
            self._steps.close()
            self._steps = None
        if isinstance(error, TaskRouterError):
            forget_frames(error, note=False)
            self._job.outcome.set_exception(error)
            return
        failure = call_error(error, self._label)
        failure.__cause__ = error
        self._job.outcome.set_exception(failure)
        if out_of_memory(error):
            give_back(collect=True)


def sweep(calls: Iterable[Call]) -> None:
    """End those that nobody waits for any more."""
    for call in calls:
        if call.wants is not None and call.stopped:
            call.goes_on(None)


def work_on(jobs: Sequence[Job], arrivals: Arrivals, begun: Callable[[Job], Call], run: Runner, most: int) -> None:
    """Work on jobs, and on those that come meanwhile, until there are none. ``most`` of them are under way at a time.

    What goes wrong for several is tried again for each alone.
    """
    coming = deque(begun(job) for job in jobs)
    calls: list[Call] = []
    while True:
        coming.extend(begun(job) for job in arrivals.take(most - len(calls) - len(coming)))
        _begin(coming, calls)
        calls = [call for call in calls if call.wants is not None]
        if calls:
            _round(calls, run, functools.partial(_others, coming, arrivals, most - len(calls)))
        elif not coming:
            return


def _others(coming: Collection[Call], arrivals: Arrivals, room: int) -> bool:
    return bool(coming) or (room > 0 and arrivals.waiting())


def _begin(coming: deque[Call], calls: list[Call]) -> None:
    """Begin one at least, and others as long as that is quick: the first of them waits for the rest."""
    until = time.monotonic() + GATHER_S
    while coming:
        call = coming.popleft()
        call.begins()
        calls.append(call)
        sweep(calls)
        if time.monotonic() > until:
            return


def _round(calls: Sequence[Call], run: Runner, others: Others) -> None:
    wanted = [call.wants for call in calls]
    if len(calls) > 1 and _failure(calls, run, others) is None:
        return
    for call, want in zip(calls, wanted, strict=True):
        if call.wants is want:
            error = _failure([call], run, others)
            if error is not None and call.wants is not None:
                call.fails(error)


def _failure(calls: Sequence[Call], run: Runner, others: Others) -> BaseException | None:
    try:
        run(calls, others)
    except BaseException as error:  # noqa: BLE001  one bad call harms no other, whatever native code raises
        forget_frames(error)
        if out_of_memory(error):
            give_back(collect=True)
        return error
    return None
