"""A uvicorn that tells the application that it ends before it waits for what is under way."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

TELLING_S = 1.0
"""Clients whose requests are cut off are given so many seconds to hear of it."""


class Server(uvicorn.Server):
    """Streams without an end of their own would hold the end up; so they are ended first.

    The lifespan is told only when all requests have ended, which is too late for that.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end it; uvicorn would raise them again at its end, before anything else is closed."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are another thread's
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        application: Any = self.config.app
        application.state.taskrouter.end()
        await super().shutdown(sockets)
        # Those whose time was over are cancelled, and tell their clients so; uvicorn itself doesn't wait for that.
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=TELLING_S)
