"""The OpenAI API: chat completions, completions, embeddings."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import AsyncIterator, Mapping
from types import NoneType
from typing import Any

from taskrouter.backends.engines.openai import CHAT, COMPLETIONS, EMBEDDINGS
from taskrouter.backends.engines.outside import check_passed
from taskrouter.errors import BadInput
from taskrouter.http.asked import Asked
from taskrouter.http.exchange import Exchange
from taskrouter.http.passing import may_pass, pass_on
from taskrouter.http.state import State
from taskrouter.http.streaming import awaited, event_of, send_events
from taskrouter.http.words import (
    ChunkWriter,
    arguments_of,
    chat_body,
    chat_of,
    extra_of,
    sampling_of,
    usage_body,
    wants_stream,
    wants_usage,
)
from taskrouter.manager import Stream
from taskrouter.verbs import ChatChunk, ChatRequest, EmbedRequest, GenerateRequest

_OF_COMPLETION = frozenset(
    {"model", "prompt", "max_tokens", "temperature", "top_p", "stop", "seed", "stream", "stream_options", "suffix"}
)
_OF_EMBEDDING = frozenset({"model", "input", "encoding_format"})
_MOST_PROMPTS = 64
_TEXT = (str, NoneType)
"""What holds no media."""


async def chat_completions(state: State, exchange: Exchange) -> None:
    """``POST /v1/chat/completions``."""
    body = await exchange.json(state.most_bytes)
    it = state.asked(exchange, body.get("model"))
    if _passes(it, body):
        await pass_on(exchange, it, CHAT, body, ChatRequest(tuple(body["messages"]), extra=_tools(body)), "chat")
        return
    request = chat_of(body)
    if wants_stream(body):
        await _stream_chat(exchange, it, request, usage=wants_usage(body))
        return
    answer = await it.handle.chat(**arguments_of(request))
    it.answered(answer)
    await exchange.answer(chat_body(answer, str(it.named), exchange.id), headers=it.headers())


async def _stream_chat(exchange: Exchange, it: Asked, request: ChatRequest, *, usage: bool) -> None:
    stream = it.handle.stream_chat(**arguments_of(request))
    try:
        first = await awaited(exchange, it, lambda: anext(stream, None))
        it.began(stream)
        writer = ChunkWriter(str(it.named), exchange.id, usage=usage)
        await send_events(exchange, it, _chunks(first, stream, writer, it))
    finally:
        await stream.aclose()


async def _chunks(first: ChatChunk | None, stream: Stream, writer: ChunkWriter, it: Asked) -> AsyncIterator[bytes]:
    if first is None:
        return
    for data in writer.chunks(first):
        yield event_of(data)
    async for piece in stream:
        for data in writer.chunks(piece):
            yield event_of(data)
        if piece.usage is not None:
            it.usage = piece.usage


def _passes(it: Asked, body: Mapping[str, Any]) -> bool:
    """Whether an engine can be given the body as it is: nothing in it has to be read here first.

    Raises ``BadInput`` for one that an engine is to answer, with something to fetch beside its messages' parts.
    """
    if not may_pass(it):
        return False
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise BadInput("messages must be a list of messages, each with a role and a content")
    # Media are read here, under media's limits, and URLs are fetched here or not at all.
    check_passed({**body, "messages": []})
    return not any(isinstance(each, dict) and not isinstance(each.get("content"), _TEXT) for each in messages)


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in ("tools", "tool_choice") if name in body}


async def completions(state: State, exchange: Exchange) -> None:
    """``POST /v1/completions``."""
    body = await exchange.json(state.most_bytes)
    it = state.asked(exchange, body.get("model"))
    prompt = body.get("prompt")
    if may_pass(it):
        text = prompt if isinstance(prompt, str) else ""
        check_passed(body)
        await pass_on(exchange, it, COMPLETIONS, body, GenerateRequest(text), "generate")
        return
    prompts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if not prompts or len(prompts) > _MOST_PROMPTS or not all(isinstance(each, str) and each for each in prompts):
        raise BadInput(f"prompt must be a text that isn't empty, or a list of 1 to {_MOST_PROMPTS} of them")
    how = {**sampling_of(body), "extra": extra_of(body, _OF_COMPLETION)}
    head = {"id": f"cmpl-{exchange.id}", "object": "text_completion", "created": int(time.time()),
            "model": str(it.named)}  # fmt: skip

    async def answers() -> list[Any]:
        found = []
        for each in prompts:
            found.append(await it.handle.generate(each, **how))
            it.answered(found[-1])
        return found

    if wants_stream(body):
        given = await awaited(exchange, it, answers)
        events = [{**head, "choices": [choice]} for choice in _choices(given)]
        if wants_usage(body):
            events.append({**head, "choices": [], "usage": _sum(given)})
        await send_events(exchange, it, _each(events))
        return
    given = await answers()
    await exchange.answer({**head, "choices": _choices(given), "usage": _sum(given)}, headers=it.headers())


def _choices(answers: list[Any]) -> list[dict[str, Any]]:
    return [
        {"index": place, "text": each.text, "logprobs": None, "finish_reason": each.finish_reason}
        for place, each in enumerate(answers)
    ]


async def _each(events: list[dict[str, Any]]) -> AsyncIterator[bytes]:
    for event in events:
        yield event_of(event)


def _sum(answers: list[Any]) -> dict[str, int] | None:
    bodies = [usage_body(each.usage) for each in answers if each.usage is not None]
    return {name: sum(body[name] for body in bodies if body) for name in bodies[0]} if bodies and bodies[0] else None


async def embeddings(state: State, exchange: Exchange) -> None:
    """``POST /v1/embeddings``: of texts, as lists of floats or as base64 of little-endian float32."""
    body = await exchange.json(state.most_bytes)
    it = state.asked(exchange, body.get("model"))
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(each, str) for each in texts):
        raise BadInput("input must be a text, or a list of texts; tokens aren't taken")
    if may_pass(it):
        check_passed(body)
        await pass_on(exchange, it, EMBEDDINGS, body, EmbedRequest(tuple(texts)), "embed")
        return
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise BadInput(f"encoding_format is {form!r:.40}; it must be float or base64")
    answer = await it.handle.embed(texts, extra=extra_of(body, _OF_EMBEDDING))
    it.answered(answer)
    rows = [
        {"object": "embedding", "index": place, "embedding": list(vector) if form == "float" else _packed(vector)}
        for place, vector in enumerate(answer.vectors)
    ]
    usage = usage_body(answer.usage) or {"prompt_tokens": 0, "total_tokens": 0}
    usage.pop("completion_tokens", None)
    data = {"object": "list", "data": rows, "model": str(it.named), "usage": usage}
    await exchange.answer(data, headers=it.headers())


def _packed(vector: Any) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
