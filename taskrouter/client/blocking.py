"""The client for synchronous callers: Celery workers, scripts, notebooks."""

from __future__ import annotations

import asyncio
import atexit
import functools
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from taskrouter.client.handles import RemoteModel
from taskrouter.client.inside import hold, let_go
from taskrouter.manager.blocking import BlockingModel
from taskrouter.manager.loop_thread import LoopThread

if TYPE_CHECKING:
    from taskrouter.client.client import Client


class BlockingClient(LoopThread):
    """``connect(url).blocking()``: everything that is awaited on a ``Client`` blocks here; the rest is the same.

    Safe to use from any number of threads. Make it in the process that uses it: a forked one's calls raise ``Forked``.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        super().__init__("blocking client")
        # Left open, its connections would be complained of when the interpreter ends.
        atexit.register(self.close)

    def __repr__(self) -> str:
        return f"<blocking {self._client!r}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._client, name)
        return functools.partial(self._wait, found) if asyncio.iscoroutinefunction(found) else found

    def _wait(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any) -> Any:
        answer = self._run(function(*args, **kwargs))
        return BlockingModel(self._run, answer) if isinstance(answer, RemoteModel) else answer

    def handle(self, task: str, **how: Any) -> BlockingModel:
        """A handle whose verbs block; streams are plain iterators."""
        return BlockingModel(self._run, self._client.handle(task, **how))

    @contextmanager
    def lease(self, task: str, **how: Any) -> Iterator[BlockingModel]:
        """``with client.lease(task) as model``."""
        lease = self._client.lease(task, **how)
        self._run(lease.take())
        # Each call is a task of its own that starts from this thread's context: there it reads what the caller holds.
        hold(lease)
        try:
            yield BlockingModel(self._run, lease)
        finally:
            let_go(lease)
            self._run(lease.leave())

    @contextmanager
    def pipeline(self, tasks: Sequence[str]) -> Iterator[None]:
        """``with client.pipeline([task, …])``: these tasks are coming, in this order, from this thread."""
        pipeline = self._client.pipeline(tasks)
        self._run(pipeline.begin())
        pipeline.enter()
        try:
            yield
        finally:
            pipeline.leave()
            self._run(pipeline.end())

    def close(self) -> None:
        """Close the connections and end the thread. Idempotent."""
        atexit.unregister(self.close)
        with self._ending:
            if not self._ended and self._is_of_this_process():
                try:
                    self._run(self._client.close())
                finally:
                    self._end()

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
