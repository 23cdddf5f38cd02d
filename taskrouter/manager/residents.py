"""What the manager holds of a loaded model, and the operations that run on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from taskrouter.backends.base import Backend, LoadedModel
from taskrouter.errors import CallFailed, TaskRouterError
from taskrouter.manager.refusals import fresh
from taskrouter.types import ModelKey, ModelRequest

Spawn = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]


class Resident:
    """A loaded model, its backend, and the operations at work. ``model`` is dropped when it is unloaded."""

    __slots__ = (
        "__weakref__", "backend", "dead", "generation", "holders", "key", "model", "operations", "request", "watcher",
    )  # fmt: skip

    def __init__(self, request: ModelRequest, generation: int, backend: Backend, model: LoadedModel) -> None:
        self.key: ModelKey = request.key
        self.request = request
        self.generation = generation
        self.backend = backend
        self.model: LoadedModel | None = model
        self.operations: set[Operation] = set()
        self.holders: dict[object, Callable[[TaskRouterError], None]] = {}
        """Who holds it without working on it, and wants to hear when operations are told to stop."""
        self.watcher: asyncio.Task[Any] | None = None
        self.dead: TaskRouterError | None = None

    def __repr__(self) -> str:
        return f"<Resident {self.request.label} life {self.generation}, {len(self.operations)} operations>"

    def stop_operations(self, error: TaskRouterError) -> None:
        """Tell all operations to stop; their callers get the error at once, each a copy of its own. So do holders."""
        for operation in list(self.operations):
            operation.stop(fresh(error))
        for tell in list(self.holders.values()):
            tell(fresh(error))


class Operation:
    """One call at work. It outlives its caller: the lease ends when the work has really stopped, not before."""

    __slots__ = ("result", "task")

    def __init__(self, result: asyncio.Future[Any]) -> None:
        self.result = result
        self.task: asyncio.Task[Any] | None = None

    def run(self, resident: Resident, work: Coroutine[Any, Any, Any], spawn: Spawn, done: Callable[[], None]) -> None:
        """Start the work in the manager's own task group; ``done`` is called once it has stopped, however it ended."""
        resident.operations.add(self)
        task = self.task = spawn(work)
        label = resident.request.label

        def finished(task: asyncio.Task[Any]) -> None:
            resident.operations.discard(self)
            self.task = None
            try:
                self._settle(task, label)
            finally:
                done()

        task.add_done_callback(finished)

    def _settle(self, task: asyncio.Task[Any], label: str) -> None:
        error: BaseException | None = None if task.cancelled() else task.exception()
        if self.result.done():
            return
        if task.cancelled():
            # Not by its caller, whose result would be cancelled already: a caller nobody cancelled must not look so.
            self.result.set_exception(CallFailed(f"{label}: the call was cancelled, and not by its caller"))
        elif error is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(task.result())

    def stop(self, error: TaskRouterError | None = None) -> None:
        """Tell the work to stop. Who waits for its result gets the error, or nothing where they went away."""
        if error is None:
            self.result.cancel()
        elif not self.result.done():
            self.result.set_exception(error)
        if self.task is not None:
            self.task.cancel()
