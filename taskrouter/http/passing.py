"""Requests that an engine answers, passed through: the body parsed once, the answer's bytes handed on as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

from taskrouter.backends.engines.model import EngineModel
from taskrouter.http.asked import Asked
from taskrouter.http.exchange import EVENTS, JSON, Exchange
from taskrouter.http.streaming import NO_CACHE, awaited
from taskrouter.manager import Lease


def may_pass(asked: Asked) -> bool:
    """Whether one option of this machine answers, which an engine serves: there is nothing to decide or translate."""
    manager, (task, option) = asked.manager, asked.named
    target = manager.target(task, option)
    if option is None and target.routed:
        return False
    config = manager.tasks[task].options[target.option]
    return config.framework in ("vllm", "sglang", "command")


async def pass_on(
    exchange: Exchange, asked: Asked, path: str, body: Mapping[str, Any], request: Any, verb: str
) -> None:
    """Answer with what the engine answers. ``request`` is the same as a call of ours, for what the model is known to
    lack.
    """
    manager, (task, option) = asked.manager, asked.named
    manager.target(task, option).check(verb, manager.enter(), request)
    lease = manager.lease(task, option=option, timeout=asked.timeout_s, priority=asked.priority)
    if body.get("stream") is True:
        await _pass_stream(exchange, asked, lease, path, body)
        return
    async with lease:
        asked.ready = asyncio.get_running_loop().time()
        data = await _model(lease).passed_whole(path, lambda name: _renamed(body, name))
        await exchange.answer_bytes(data, JSON, 200, asked.headers())


async def _pass_stream(exchange: Exchange, asked: Asked, lease: Lease, path: str, body: Mapping[str, Any]) -> None:
    await awaited(exchange, asked, lease.__aenter__)
    try:
        asked.ready = asyncio.get_running_loop().time()
        opening = _model(lease).passed(path, lambda name: _renamed(body, name))
        response = await awaited(exchange, asked, opening.__aenter__)
        try:
            if not exchange.started:
                await exchange.start(200, EVENTS, (*asked.headers(), *NO_CACHE))
            async for chunk in response.content.iter_any():
                await exchange.write(chunk)
            await exchange.write(b"", more=False)
        except BaseException as error:
            if not await opening.__aexit__(type(error), error, error.__traceback__):
                raise
        else:
            await opening.__aexit__(None, None, None)
    finally:
        await lease.__aexit__(None, None, None)


def _model(lease: Lease) -> EngineModel:
    assert lease.resident is not None
    model = lease.resident.model
    if lease.resident.dead is not None or not isinstance(model, EngineModel):
        # The lease's own way of saying it.
        _ = lease.info
        raise TypeError(f"{lease!r} is of no engine")
    return model


def _renamed(body: Mapping[str, Any], name: str) -> bytes:
    return orjson.dumps({**body, "model": name})
