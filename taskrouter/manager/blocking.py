"""The manager for synchronous callers: its event loop runs in a thread of its own, and everything runs there."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from taskrouter.manager.asking import Verbs
from taskrouter.manager.handles import Model
from taskrouter.manager.leases import Lease, hold, let_go
from taskrouter.manager.loop_thread import LoopThread
from taskrouter.manager.streams import Stream

if TYPE_CHECKING:
    from taskrouter.manager.manager import ModelManager

_END = object()
Run: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Any]


class BlockingManager(LoopThread):
    """``with manager.blocking() as manager: manager.get_model(task).chat(…)``. Safe to use from any number of threads.

    Everything that is awaited on a ``ModelManager`` blocks here; the rest is the same.
    """

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        super().__init__("blocking manager")
        try:
            self._run(self._bind())
        except BaseException:
            self._end()
            raise

    def __repr__(self) -> str:
        return f"<blocking {self._manager!r}>"

    async def _bind(self) -> None:
        self._manager.enter()

    def __getattr__(self, name: str) -> Any:
        found = self._on_loop(getattr, self._manager, name)
        if asyncio.iscoroutinefunction(found):
            return functools.partial(self._wait, found)
        return functools.partial(self._on_loop, found) if callable(found) else found

    def _wait(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any) -> Any:
        answer = self._run(function(*args, **kwargs))
        return BlockingModel(self._run, answer) if isinstance(answer, Model) else answer

    @property
    def loaded_models(self) -> dict[str, BlockingModel]:
        """Tasks with a loaded model now, least recently used first, each with a handle on it."""
        loaded = self._on_loop(lambda: dict(self._manager.loaded_models))
        return {task: BlockingModel(self._run, model) for task, model in loaded.items()}

    def lease(self, task_type: str, **how: Any) -> AbstractContextManager[BlockingModel]:
        """``with manager.lease(task) as model``."""
        lease = self._on_loop(self._manager.lease, task_type, **how)
        frame = sys._getframe(1)
        lease.where = (frame.f_code, frame.f_lineno)
        return self._leased(lease)

    @contextmanager
    def _leased(self, lease: Lease) -> Iterator[BlockingModel]:
        self._run(lease.__aenter__())
        # Each call is a task of its own that starts from this thread's context: there it reads what the caller holds.
        hold(lease)
        try:
            yield BlockingModel(self._run, lease)
        finally:
            let_go(lease)
            self._run(lease.__aexit__(None, None, None))

    @contextmanager
    def pipeline(self, tasks: Sequence[str]) -> Iterator[None]:
        """``with manager.pipeline([task, …])``: these tasks are coming, in this order, from this thread."""
        pipeline = self._on_loop(self._manager.pipeline, tasks)
        pipeline.enter()
        try:
            self._on_loop(pipeline.tell)
            yield
        finally:
            pipeline.leave()
            self._on_loop(pipeline.end)

    def shutdown(self, **how: Any) -> None:
        """Drain, unload everything and end the thread. Idempotent."""
        with self._ending:
            if not self._ended:
                try:
                    self._run(self._manager.shutdown(**how))
                finally:
                    self._end()

    def __enter__(self) -> BlockingManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


class BlockingModel:
    """A handle, or a lease's model, whose verbs block; streams are plain iterators."""

    def __init__(self, run: Run, model: Verbs) -> None:
        self._run = run
        self._model = model

    def __repr__(self) -> str:
        return f"<blocking {self._model!r}>"

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        if not asyncio.iscoroutinefunction(found):
            return found
        return lambda *args, **kwargs: self._run(found(*args, **kwargs))

    def stream_chat(self, *args: Any, **kwargs: Any) -> BlockingStream:
        """Pieces of the answer; leaving or dropping the iterator early stops the model."""
        return self._stream(self._model.stream_chat, *args, **kwargs)

    def stream_request(self, *args: Any, **kwargs: Any) -> BlockingStream:
        """The events of an answer of the model's own server, the same way."""
        return self._stream(self._model.stream_request, *args, **kwargs)

    def _stream(self, start: Callable[..., Stream], *args: Any, **kwargs: Any) -> BlockingStream:
        async def make() -> Stream:
            return start(*args, **kwargs)

        return BlockingStream(self._run, self._run(make()))


class BlockingStream:
    """``for chunk in model.stream_chat(…)``; as a context manager it has stopped the model when the block is left."""

    def __init__(self, run: Run, stream: Stream) -> None:
        self._run = run
        self._stream = stream

    def __iter__(self) -> BlockingStream:
        return self

    def __next__(self) -> Any:
        async def following() -> Any:
            return await anext(self._stream, _END)

        chunk = self._run(following())
        if chunk is _END:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Stop the model and end the lease; returns once the work has stopped. Idempotent."""
        self._run(self._stream.aclose())

    def __enter__(self) -> BlockingStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
