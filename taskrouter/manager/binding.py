"""A manager's event loop: bound on the first await, and what is started there."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from typing import Any

from taskrouter import errors
from taskrouter.manager.externals import Externals
from taskrouter.manager.leaks import LeakWatch
from taskrouter.manager.leases import holding
from taskrouter.manager.performing import Performer
from taskrouter.manager.pipelines import Pipelines
from taskrouter.manager.questions import Questions
from taskrouter.manager.recording import Recorder
from taskrouter.manager.resting import Resting
from taskrouter.manager.routed import Router
from taskrouter.manager.spans import Spans
from taskrouter.manager.targets import Target
from taskrouter.manager.watching import Watcher, Watchers
from taskrouter.residency.events import Acquire
from taskrouter.types import ModelKey


class Bound(Questions):
    """What acts for a manager on its loop."""

    def enter(self) -> Performer:
        """Bind to the running loop on the first call; refuse another loop, a forked child, and a closed manager."""
        performer = self.performer
        if performer is not None and performer.loop is asyncio.get_running_loop() and not performer.closed:
            return performer
        if self._closed:
            raise errors.ManagerClosed(f"the manager of {self._catalog.path} has been shut down; make a new one")
        if performer is None:
            return self._begin()
        if os.getpid() != self._pid:
            raise errors.Forked("this manager was started before the process was forked; make one in the child")
        raise errors.WrongLoop(
            "this manager is bound to another event loop; make one for each loop, or use manager.blocking()"
        )

    def _begin(self) -> Performer:
        self._pid = os.getpid()
        spans = Spans(self._tracer_provider, self._requests)

        def start_timeout_s(framework: str) -> float:
            engines = self._catalog.engines
            return engines[framework].start_timeout_s if framework in engines else 600.0

        performer = Resting(self._core, self._registry, self._machine, spans, self._requests, start_timeout_s)
        performer.on_observe.append(LeakWatch(self.leases, lambda: self._catalog.memory.lease_warn_s).look)
        performer.on_observe.append(spans.look)
        performer.watchers = self._watchers
        performer.start()
        self.performer = performer
        self._record(performer)
        if self._catalog.pipelines:
            performer.pipelines = self._pipelines(performer)
        self.router = Router(self, performer, Externals(self._catalog, self._registry, self._spend))
        return performer

    router: Router
    """Set on the first await."""

    @functools.cached_property
    def _watchers(self) -> Watchers:
        return Watchers(self._requests, self._tasks_with)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Have this called with everything that ``Happened`` to models, on the manager's loop; answers what ends that.

        It must be quick, and what it raises is logged.
        """
        return self._watchers.add(watcher)

    def _pipelines(self, performer: Performer) -> Pipelines:
        def key_of(task: str) -> ModelKey | None:
            known = self._catalog.tasks.get(task)
            key = self._keys.get((task, self._selected[task])) if known is not None else None
            return key if key in self._specs_known else None

        return Pipelines(self._catalog.pipelines, key_of, performer.post, performer.time)

    def _record(self, performer: Performer) -> None:
        """Record where the file says so, from now on."""
        path, recorder = self._catalog.trace_file, performer.recorder
        if path is None and recorder is not None:
            performer.recorder = None
            performer.on_observe.remove(recorder.look)
            performer.spawn(recorder.close(), name="the end of a trace")
        elif path is not None and recorder is not None:
            recorder.write_to(path)
        elif path is not None:
            performer.recorder = Recorder(path, self._core, self._tasks_with)
            performer.on_observe.append(performer.recorder.look)

    @staticmethod
    def _claim(
        performer: Performer, target: Target, timeout: float | None, priority: int | None = None, **more: Any
    ) -> Acquire:
        return Acquire(
            ticket=next(performer.ids),
            key=target.key,
            deadline=performer.loop.time() + (target.max_wait_s if timeout is None else timeout),
            priority=target.priority if priority is None else priority,
            claim=True,
            holding=holding(),
            **more,
        )
