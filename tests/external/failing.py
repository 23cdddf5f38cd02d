"""Asking a provider for what fails."""

from __future__ import annotations

from typing import Any

import pytest

from taskrouter import errors
from taskrouter.backends.external.base import Connection

from .subjects import Subject
from .wire import Reply, serving


async def ask(subject: Subject, connection: Connection, way: str, timeout_s: float = 10.0) -> Any:
    if way == "call":
        return await subject.ask(connection, timeout_s=timeout_s)
    return await subject.pieces(connection, timeout_s=timeout_s)


async def failure(subject: Subject, reply: Reply, way: str = "call", timeout_s: float = 10.0) -> errors.TaskRouterError:
    """The error that a reply becomes; the server was asked once."""
    async with serving() as wire, subject.connected(wire) as connection:
        wire.script(reply)
        with pytest.raises(errors.TaskRouterError) as caught:
            await ask(subject, connection, way, timeout_s)
        assert len(wire.requests) == 1
    assert "the option 'far'" in str(caught.value)
    return caught.value
