"""Calls of one model that are worked on together: each goes on by itself but for what it wants of the module.

A verb is a function that answers at once, or a generator: it yields what it wants of the module, is sent what that
gave, and returns its answer. So a verb reads as if its call were the only one; that several wants are met by one pass
is nobody's business but the runner's, which is given the calls that want something.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from types import GeneratorType
from typing import Any

from taskrouter.backends.hf.calling import Stopped
from taskrouter.backends.hf.failures import call_error, forget_frames, out_of_memory
from taskrouter.backends.hf.storages import give_back
from taskrouter.backends.hf.threads import Job
from taskrouter.errors import TaskRouterError

Steps = Generator[Any, Any, Any]

Runner = Callable[[Sequence["Call"]], None]
"""Meets the wants of calls: each ``goes_on`` with what it wanted, or with anything once nobody waits for it. May raise
at any point; those that still want what they wanted are then tried again, each alone."""


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
        except Exception as error:  # noqa: BLE001  it goes to whoever waits
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
        except Exception as error:  # noqa: BLE001  it goes to whoever waits
            self.fails(error)

    def fails(self, error: Exception) -> None:
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


def work_on(calls: Sequence[Call], run: Runner) -> None:
    """Work on calls until all have ended. What goes wrong for several is tried again for each alone."""
    for call in calls:
        call.begins()
    while waiting := [call for call in calls if call.wants is not None]:
        wanted = [call.wants for call in waiting]
        if len(waiting) > 1 and _failure(waiting, run) is not None:
            for call, want in zip(waiting, wanted, strict=True):
                if call.wants is want:
                    _alone(call, run)
        elif len(waiting) == 1:
            _alone(waiting[0], run)
        assert not any(call.wants is want for call, want in zip(waiting, wanted, strict=True)), "left as it was"


def _alone(call: Call, run: Runner) -> None:
    error = _failure([call], run)
    if error is not None and call.wants is not None:
        call.fails(error)


def _failure(calls: Sequence[Call], run: Runner) -> Exception | None:
    try:
        run(calls)
    except Exception as error:  # noqa: BLE001  one bad call harms no other
        forget_frames(error)
        if out_of_memory(error):
            give_back(collect=True)
        return error
    return None
