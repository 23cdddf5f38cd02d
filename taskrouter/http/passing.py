"""Requests that an engine answers, passed through: the body parsed once, the answer's bytes handed on as they come."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import orjson

from taskrouter.backends.engines.model import EngineModel
from taskrouter.errors import BadInput
from taskrouter.http.asked import Asked
from taskrouter.http.exchange import EVENTS, JSON, Exchange
from taskrouter.http.streaming import NO_CACHE, awaited, send
from taskrouter.http.words import wants_stream
from taskrouter.manager import Lease
from taskrouter.verbs import Usage

_PROMPT, _COMPLETION = (re.compile(rb'"%s_tokens":\s*(\d{1,12})' % name) for name in (b"prompt", b"completion"))
_LONGEST_USAGE = 4000
"""Bytes from where the usage begins to the end of an answer, at most."""


def may_pass(asked: Asked) -> bool:
    """Whether one option of this machine answers, which an engine serves: there is nothing to decide or translate."""
    target = asked.target
    if asked.named.option is None and target.routed:
        return False
    config = asked.manager.catalog.tasks[target.task].options[target.option]
    return config.framework in ("vllm", "sglang", "command")


async def pass_on(
    exchange: Exchange, asked: Asked, path: str, body: Mapping[str, Any], request: Any, verb: str
) -> None:
    """Answer with what the engine answers. ``request`` is the same as a call of ours, for what the model is known to
    lack.
    """
    manager, (task, option) = asked.manager, asked.named
    asked.target.check(verb, manager.enter(), request)
    lease = manager.lease(task, option=option, timeout=asked.timeout_s, priority=asked.priority)
    if wants_stream(body):
        await _pass_stream(exchange, asked, lease, path, body)
        return
    async with lease:
        asked.ready = asyncio.get_running_loop().time()
        data = await _model(lease).passed_whole(path, lambda name: _renamed(body, name))
    # The model is free by now, however long the client takes to read.
    asked.usage = usage_in(data)
    await exchange.answer_bytes(data, JSON, 200, asked.headers())


async def _pass_stream(exchange: Exchange, asked: Asked, lease: Lease, path: str, body: Mapping[str, Any]) -> None:
    # Whatever was entered is left again, also by who went away just then.
    async with AsyncExitStack() as entered:

        async def begin() -> AsyncIterator[bytes]:
            await entered.enter_async_context(lease)
            asked.ready = asyncio.get_running_loop().time()
            opening = _model(lease).passed(path, lambda name: _renamed(body, name))
            return await entered.enter_async_context(opening)

        chunks = await awaited(exchange, asked, begin)
        if not exchange.started:
            await exchange.start(200, EVENTS, (*asked.headers(), *NO_CACHE))
        end = End()
        try:
            async for chunk in chunks:
                await send(exchange, asked, chunk)
                end.take(chunk)
        finally:
            asked.usage = usage_in(end.data)
        await exchange.write(b"", more=False)


def _model(lease: Lease) -> EngineModel:
    assert lease.resident is not None
    model = lease.resident.model
    if lease.resident.dead is not None or not isinstance(model, EngineModel):
        # The lease's own way of saying it.
        _ = lease.info
        raise TypeError(f"{lease!r} is of no engine")
    return model


class End:
    """The end of an answer as its pieces go by; what stands there may have come in several."""

    def __init__(self) -> None:
        self.data = b""

    def take(self, piece: bytes) -> None:
        self.data = (self.data + piece)[-_LONGEST_USAGE:]


def usage_in(data: bytes) -> Usage | None:
    """The tokens that an engine's bytes tell of, found without parsing them: inside a text quotes are escaped."""
    place = data.rfind(b'"usage":')
    if place < 0:
        return None
    read = _PROMPT.search(data, place, place + _LONGEST_USAGE)
    written = _COMPLETION.search(data, place, place + _LONGEST_USAGE)
    if read is None and written is None:
        return None
    return Usage(0 if read is None else int(read[1]), 0 if written is None else int(written[1]))


def _renamed(body: Mapping[str, Any], name: str) -> bytes:
    try:
        return orjson.dumps({**body, "model": name})
    except orjson.JSONEncodeError as error:
        raise BadInput(f"the body can't be passed on: {error}") from error
