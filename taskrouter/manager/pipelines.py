"""Tasks that are asked in a known order: what comes next is told to the core, which loads it ahead and keeps it.

Pipelines stand in the file (``pipelines:``; whoever asks for one of their tasks is taken to go on), or are named by
their caller (``async with manager.pipeline([...])``; only what is asked inside counts).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar, Token
from math import inf
from types import TracebackType

from taskrouter.residency.events import Hint
from taskrouter.types import ModelKey

PATIENCE_S = 300.0
"""How long what comes next in a pipeline of the file is expected after a step of it was asked."""

_RUN: ContextVar[Pipeline | None] = ContextVar("_RUN", default=None)
"""The pipeline that the caller is in."""


def current() -> Pipeline | None:
    """The pipeline that the caller is in, the innermost."""
    return _RUN.get()


@contextmanager
def inside(run: Pipeline | None) -> Iterator[None]:
    """What is asked in this block counts for this pipeline, or for none, whatever the caller's context says."""
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)


class Pipelines:
    """The pipelines of one manager. ``key_of`` is the model a task asks for now, ``None`` for an external one."""

    def __init__(
        self,
        declared: Mapping[str, Sequence[str]],
        key_of: Callable[[str], ModelKey | None],
        post: Callable[[Hint], None],
        time: Callable[[], float],
    ) -> None:
        self._after: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        self._key_of = key_of
        self._post = post
        self._time = time
        self._numbers = itertools.count(1)
        self._told: dict[str, tuple[tuple[str, ...], float]] = {}
        self.declare(declared)

    def declare(self, declared: Mapping[str, Sequence[str]]) -> None:
        """These stand in the file now; what was said for one of the file's before is taken back."""
        for name in {name for known in self._after.values() for name, _ in known}:
            if _source(name) in self._told:
                self.tell(_source(name), (), 0.0)
        self._after = behind(declared)

    def __repr__(self) -> str:
        return f"<Pipelines after {', '.join(self._after) or 'nothing'}>"

    def asked(self, task: str) -> None:
        """Somebody asked for a task: what comes after it in its pipelines will be needed soon."""
        run = _RUN.get()
        if run is not None and run.pipelines is self:
            run.asked(task)
        for name, rest in self._after.get(task, ()):
            self.tell(_source(name), rest, self._time() + PATIENCE_S)

    def tell(self, source: str, tasks: Iterable[str], until: float) -> None:
        """These tasks come next, says this source."""
        named = tuple(tasks)
        if named:
            self._told[source] = named, until
        else:
            self._told.pop(source, None)
        keys = dict.fromkeys(key for task in named if (key := self._key_of(task)) is not None)
        self._post(Hint(source, tuple(keys), until))

    def selected(self) -> None:
        """A task asks for another model now: say again what was said, in models."""
        for source, (tasks, until) in list(self._told.items()):
            self.tell(source, tasks, until)

    def begin(self, tasks: Sequence[str]) -> Pipeline:
        return Pipeline(self, f"pipeline #{next(self._numbers)}", tuple(tasks))


def behind(declared: Mapping[str, Sequence[str]]) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """For each task of a pipeline the steps behind its first place, by the pipeline's name."""
    after: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for name, steps in declared.items():
        for task in dict.fromkeys(steps):
            after.setdefault(task, []).append((name, tuple(steps[steps.index(task) + 1 :])))
    return after


def _source(name: str) -> str:
    return f"pipeline {name}"


class Pipeline:
    """``async with manager.pipeline([task, …])``: these tasks are coming, in this order, from whoever is inside."""

    def __init__(self, pipelines: Pipelines, source: str, tasks: tuple[str, ...]) -> None:
        self.pipelines = pipelines
        self._source = source
        self._left = tasks
        self._current: str | None = None
        self._token: Token[Pipeline | None] | None = None
        self._entered = self._ended = False
        self._outer: Pipeline | None = None

    def __repr__(self) -> str:
        return f"<Pipeline {' → '.join(self._left) or 'at its end'}>"

    async def __aenter__(self) -> Pipeline:
        self.enter()
        self.tell()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        self.end()

    def enter(self) -> None:
        """The caller, in its own context, is inside now. Raises ``RuntimeError`` for who enters twice."""
        if self._entered:
            raise RuntimeError("a pipeline is entered once; ask the manager for another one")
        self._entered = True
        self._outer = _lasting(_RUN.get())
        self._token = _RUN.set(self)

    def leave(self) -> None:
        """The caller has left. In another context than it entered in (a generator's), that one is gone anyway."""
        token, self._token = self._token, None  # it would keep what was around this one
        if token is not None:
            with suppress(ValueError):
                _RUN.reset(token)

    def inside(self) -> AbstractContextManager[None]:
        """What is asked in this block counts, too: for whoever is in another context than the one that entered.

        Any number of such blocks may be open at once, also after the end: then they say nothing.
        """
        return inside(self)

    def tell(self) -> None:
        """Say what is left, on the manager's loop."""
        self.pipelines.tell(self._source, self._left, inf)

    def end(self) -> None:
        """Nothing more is coming, on the manager's loop."""
        self._left = ()
        self._ended = True
        self._outer = _lasting(self._outer)
        self.pipelines.tell(self._source, (), 0.0)

    @property
    def depth(self) -> int:
        """How many that last are inside each other here, this one the innermost."""
        return sum(1 for _ in self._chain())

    def _chain(self) -> Iterator[Pipeline]:
        """This one and those around it that last, from the inside out."""
        run: Pipeline | None = self
        while run is not None:
            yield run
            run._outer = _lasting(run._outer)
            run = run._outer

    def asked(self, task: str) -> None:
        """Go on behind the next step that is this task. The step it is at, and tasks of none, say nothing new.

        A step may take several tickets: ``get_model`` and then a call, a retry. Of a pipeline inside another one both
        go on.
        """
        for run in self._chain():
            run._go_on(task)

    def _go_on(self, task: str) -> None:
        if task != self._current and task in self._left:
            self._current = task
            self._left = self._left[self._left.index(task) + 1 :]
            self.tell()


def _lasting(run: Pipeline | None) -> Pipeline | None:
    """The first that hasn't ended, from here outwards: one that has is kept by none that is inside of it."""
    while run is not None and run._ended:
        run = run._outer
    return run
