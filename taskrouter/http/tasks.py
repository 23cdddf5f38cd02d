"""The task API: ``POST /v1/tasks/{task}``, every verb of every kind, answered in the library's own terms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson

from taskrouter.http.asked import Asked
from taskrouter.http.encoding import chunk_of, encoded, is_large, usage_of
from taskrouter.http.exchange import JSON, Exchange, plain
from taskrouter.http.leases import asked_inside
from taskrouter.http.state import State
from taskrouter.http.streaming import awaited, event_of, send_events
from taskrouter.http.task_input import Call, call_of
from taskrouter.manager import Stream
from taskrouter.verbs import ChatChunk


async def task(state: State, exchange: Exchange, task: str) -> None:
    """``POST /v1/tasks/{task}``, or ``/v1/tasks/{task}/{option}``; inside a lease where the request names one."""
    held = exchange.lease
    if held is None:
        await _answer(state, exchange, state.asked(exchange, task))
        return
    with held.inside():
        await _answer(state, exchange, asked_inside(exchange, held, task))


async def _answer(state: State, exchange: Exchange, it: Asked) -> None:
    manager, target = state.manager, it.target
    verbs = manager.enter().verbs.get(target.key)
    reading = call_of(
        exchange, target.kind, verbs, most_each=manager.media_limits.max_bytes, most=state.most_bytes
    )  # fmt: skip
    async with reading as call:
        # How long it waits counts from here: a slow upload is no wait.
        it.begun = asyncio.get_running_loop().time()
        if call.stream:
            await _stream(exchange, it, call)
            return
        answer = await getattr(it.handle, call.verb)(**call.arguments)
        it.answered(answer)
    body = _body(it, call.verb, answer)
    del call
    data = await asyncio.to_thread(_written, body) if is_large(answer) else _written(body)
    await exchange.answer_bytes(data, JSON, 200, it.headers())


def _body(it: Asked, verb: str, answer: Any) -> dict[str, Any]:
    return {"task": it.named.task, "option": it.option, "verb": verb, "result": answer}


def _written(body: dict[str, Any]) -> bytes:
    answer = body["result"]
    usage = usage_of(answer)
    whole = {**body, "result": encoded(answer), **({} if usage is None else {"usage": usage})}
    return orjson.dumps(whole, default=plain)


async def _stream(exchange: Exchange, it: Asked, call: Call) -> None:
    stream = it.handle.stream_chat(**call.arguments)
    try:
        first = await awaited(exchange, it, lambda: anext(stream, None))
        it.began(stream)
        await send_events(exchange, it, _events(first, stream, it))
    finally:
        await stream.aclose()


async def _events(first: ChatChunk | None, stream: Stream, it: Asked) -> AsyncIterator[bytes]:
    if first is None:
        return
    yield _event(first, it)
    async for piece in stream:
        yield _event(piece, it)


def _event(piece: ChatChunk, it: Asked) -> bytes:
    """One event, and what it says of the usage noted."""
    if piece.usage is not None:
        it.usage = piece.usage
    return event_of(chunk_of(piece))
