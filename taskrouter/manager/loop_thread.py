"""An event loop in a thread of its own, for synchronous callers: what is awaited there blocks here."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from taskrouter.errors import Forked, ManagerClosed

T = TypeVar("T")


class LoopThread:
    """The thread and its loop. Safe to use from any number of threads; ``what`` names it in messages."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        self._ending = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="taskrouter-loop", daemon=True)
        self._thread.start()

    def _is_of_this_process(self) -> bool:
        return os.getpid() == self._process

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()
            # Leaving the runner cancels what is left, so that no thread waits for an answer for ever.

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError(f"a {self._what} can't be called from its own event loop: it would wait for itself")
        if not self._is_of_this_process():
            # Threads don't come along when a process is forked: nobody would ever answer.
            work.close()
            raise Forked(f"this {self._what} was made before this process was forked; make one in the child")
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:  # the loop is closed
            work.close()
            raise ManagerClosed(f"this {self._what} has been shut down; make a new one") from error
        try:
            return future.result()
        except BaseException:
            # Ctrl-C in the caller's thread gives the call up, as cancelling does on the loop.
            future.cancel()
            raise

    def _on_loop(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Do what needs no waiting where nothing changes meanwhile; once the loop is gone, nothing changes at all."""

        async def call() -> T:
            return work(*args, **kwargs)

        return work(*args, **kwargs) if self._ended else self._run(call())

    def _end(self) -> None:
        self._ended = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
