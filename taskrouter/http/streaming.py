"""Answers in pieces over server-sent events, and signs of life while their model loads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import orjson

from taskrouter.http.asked import Asked
from taskrouter.http.exchange import EVENTS, Exchange, Gone

HEARTBEAT_S = 5.0
"""A client hears something at least so often while it waits; proxies close connections that are silent for longer."""
NO_CACHE = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
DONE = b"data: [DONE]\n\n"
_WAITING = b": waiting for the model\n\n"

T = TypeVar("T")


async def awaited(
    exchange: Exchange, asked: Asked, begin: Callable[[], Awaitable[T]], heartbeat: bytes = _WAITING
) -> T:
    """What ``begin`` comes to; while that takes long, the stream is started, and heartbeats are sent: comments, or what
    the API has for it.

    Errors come out as they are: told with their own status as long as nothing was sent.
    """
    task = asyncio.ensure_future(begin())
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=HEARTBEAT_S)
            if done:
                return task.result()
            if not exchange.started:
                await exchange.start(200, EVENTS, (*asked.headers(), *NO_CACHE))
            await exchange.write(heartbeat)
    except BaseException:
        task.cancel()
        await asyncio.wait({task})
        raise


async def send_events(exchange: Exchange, asked: Asked, events: AsyncIterator[bytes], end: bytes = DONE) -> None:
    """Send these events as they come. The headers go with the first."""
    if not exchange.started:
        await exchange.start(200, EVENTS, (*asked.headers(), *NO_CACHE))
    async for event in events:
        await send(exchange, asked, event)
    await exchange.write(end, more=False)


async def send(exchange: Exchange, asked: Asked, piece: bytes) -> None:
    """Send a piece of an answer. Raises ``Gone`` for a client that reads nothing for ``memory.stream_idle_s``: what it
    holds is wanted by others.
    """
    try:
        async with asyncio.timeout(asked.manager.stream_idle_s):
            await exchange.write(piece)
    except TimeoutError:
        exchange.gone = True
        raise Gone from None
    asked.sent()


def event_of(data: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n".encode() if name is not None else b""
    return head + b"data: " + orjson.dumps(data) + b"\n\n"
