"""The manager for synchronous callers: its event loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from taskrouter.errors import ManagerClosed
from taskrouter.manager.leases import Lease, Model

if TYPE_CHECKING:
    from taskrouter.manager.manager import ModelManager

T = TypeVar("T")


class BlockingManager:
    """``with manager.blocking() as manager: manager.get_model(task).chat(…)``. Safe to use from any number of threads.

    Everything that is awaited on a ``ModelManager`` blocks here; the rest is the same.
    """

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="taskrouter-loop", daemon=True)
        self._thread.start()
        try:
            self._run(self._bind())
        except BaseException:
            self._end()
            raise

    async def _bind(self) -> None:
        self._manager.enter()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise ManagerClosed("this blocking manager has been shut down; make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C in the caller's thread gives the call up, as cancelling does on the loop.
            future.cancel()
            raise

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._manager, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = self._run(found(*args, **kwargs))
            return BlockingModel(self._run, answer) if isinstance(answer, Model) else answer

        return call

    @contextmanager
    def lease(self, task_type: str, **how: Any) -> Iterator[BlockingModel]:
        """``with manager.lease(task) as model``."""
        lease = self._manager.lease(task_type, **how)
        self._run(lease.__aenter__())
        try:
            yield BlockingModel(self._run, lease)
        finally:
            self._run(lease.__aexit__(None, None, None))

    def shutdown(self, **how: Any) -> None:
        """Drain, unload everything and end the thread. Idempotent."""
        if not self._loop.is_closed():
            try:
                self._run(self._manager.shutdown(**how))
            finally:
                self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> BlockingManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


class BlockingModel:
    """A handle, or a lease's model, whose verbs block; streams are plain iterators."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], model: Model | Lease) -> None:
        self._run = run
        self._model = model

    def __repr__(self) -> str:
        return f"<blocking {self._model!r}>"

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        if not asyncio.iscoroutinefunction(found):
            return found
        return lambda *args, **kwargs: self._run(found(*args, **kwargs))

    def stream_chat(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Pieces of the answer; leaving the iterator early stops the model."""
        stream = self._model.stream_chat(*args, **kwargs)

        async def following() -> Any:
            return await anext(stream, None)

        try:
            while (piece := self._run(following())) is not None:
                yield piece
        finally:
            self._run(stream.aclose())
