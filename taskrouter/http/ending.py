"""A uvicorn that tells the application that it ends before it waits for what is under way."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn


class Server(uvicorn.Server):
    """Streams without an end of their own would hold the end up; so they are ended first.

    The lifespan is told only when all requests have ended, which is too late for that.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        application: Any = self.config.app
        application.state.taskrouter.end()
        await super().shutdown(sockets)
