"""The task API: ``POST /v1/tasks/{task}``, every verb of every kind, answered in the library's own terms."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson

from taskrouter.backends.base import Call
from taskrouter.backends.calls import written
from taskrouter.http.asked import Asked
from taskrouter.http.encoding import chunk_of, encoded, is_large, usage_of
from taskrouter.http.exchange import JSON, Exchange, plain
from taskrouter.http.leases import asked_inside
from taskrouter.http.own_server import check_path
from taskrouter.http.passing import usage_in
from taskrouter.http.state import State
from taskrouter.http.streaming import awaited, event_of, send_events
from taskrouter.http.task_input import Can, TaskCall, call_of
from taskrouter.manager import Stream
from taskrouter.verbs import ChatChunk

_NOTHING = object()


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
    # A kind says all that its tasks can be asked.
    own = it.own_verbs() if target.kind is None else {}
    can = Can(target.kind, manager.enter().verbs.get(target.key), own, manager.media_limits)
    async with call_of(exchange, can, most=state.most_bytes) as call:
        # How long it waits counts from here: a slow upload is no wait.
        it.begun = asyncio.get_running_loop().time()
        if call.verb == "request":
            check_path(it, call.arguments["path"])
        if call.stream:
            await _stream(exchange, it, call)
            return
        answer = await getattr(it.handle, call.method)(**call.arguments)
        it.answered(answer)
    body = {"task": it.named.task, "option": it.option, "verb": call.verb}
    own_call = call.own
    del call
    if own_call is not None:
        data = await asyncio.to_thread(_written_own, body, own_call, answer)
    elif body["verb"] == "request":
        data = await asyncio.to_thread(_as_it_is, {**body, "result": answer})
        it.usage = usage_in(data)
    else:
        data = await asyncio.to_thread(_written, body, answer) if is_large(answer) else _written(body, answer)
    await exchange.answer_bytes(data, JSON, 200, it.headers())


def _written(body: dict[str, Any], answer: Any) -> bytes:
    usage = usage_of(answer)
    whole = {**body, "result": encoded(answer), **({} if usage is None else {"usage": usage})}
    return orjson.dumps(whole, default=plain)


def _written_own(body: dict[str, Any], own: Call, answer: Any) -> bytes:
    return orjson.dumps({**body, "result": orjson.Fragment(written(body["verb"], own, answer))})


def _as_it_is(data: Any) -> bytes:
    """What a model's own server said: its JSON may hold numbers and letters that are strange to others."""
    try:
        return orjson.dumps(data)
    except orjson.JSONEncodeError:
        return json.dumps(data).encode()


async def _stream(exchange: Exchange, it: Asked, call: TaskCall) -> None:
    stream = getattr(it.handle, call.method)(**call.arguments)
    event = _said if call.verb == "request" else _piece
    try:
        first = await awaited(exchange, it, lambda: anext(stream, _NOTHING))
        it.began(stream)
        await send_events(exchange, it, _events(first, stream, it, event))
    finally:
        await stream.aclose()


async def _events(first: Any, stream: Stream, it: Asked, event: Callable[[Any, Asked], bytes]) -> AsyncIterator[bytes]:
    if first is _NOTHING:
        return
    yield event(first, it)
    async for piece in stream:
        yield event(piece, it)


def _piece(piece: ChatChunk, it: Asked) -> bytes:
    """One event, and what it says of the usage noted."""
    if piece.usage is not None:
        it.usage = piece.usage
    return event_of(chunk_of(piece))


def _said(data: Any, it: Asked) -> bytes:
    """The same, of what a model's own server said."""
    event = b"data: " + _as_it_is(data) + b"\n\n"
    it.usage = usage_in(event) or it.usage
    return event
