"""Anthropic's Messages API: messages, whole and streamed, of whichever model a task has."""

from __future__ import annotations

from collections.abc import AsyncIterator

from taskrouter.http.anthropic_answers import PING, MessageWriter, message_body
from taskrouter.http.anthropic_words import request_of
from taskrouter.http.asked import Asked
from taskrouter.http.exchange import Exchange
from taskrouter.http.failing import Refused
from taskrouter.http.state import State
from taskrouter.http.streaming import awaited, event_of, send_events
from taskrouter.http.words import arguments_of
from taskrouter.manager import Stream
from taskrouter.verbs import ChatChunk, ChatRequest

_HEARTBEAT = event_of(PING[1], PING[0])


async def messages(state: State, exchange: Exchange) -> None:
    """``POST /v1/messages``."""
    body = await exchange.json(state.most_bytes)
    it = state.asked(exchange, body.get("model"))
    request = request_of(body)
    if body.get("stream") is True:
        await _stream(exchange, it, request)
        return
    answer = await it.handle.chat(**arguments_of(request))
    it.answered(answer)
    data = message_body(answer, str(it.named), exchange.id, request.stop)
    await exchange.answer(data, headers=it.headers())


async def _stream(exchange: Exchange, it: Asked, request: ChatRequest) -> None:
    stream = it.handle.stream_chat(**arguments_of(request))
    try:
        first = await awaited(exchange, it, lambda: anext(stream, None), _HEARTBEAT)
        it.began(stream)
        writer = MessageWriter(str(it.named), exchange.id, request.stop)
        await send_events(exchange, it, _events(first, stream, writer, it), b"")
    finally:
        await stream.aclose()


async def _events(first: ChatChunk | None, stream: Stream, writer: MessageWriter, it: Asked) -> AsyncIterator[bytes]:
    name, data = writer.start()
    yield event_of(data, name)
    piece = first
    while piece is not None:
        if piece.usage is not None:
            it.usage = piece.usage
        for name, data in writer.events(piece):
            yield event_of(data, name)
        piece = await anext(stream, None)
    yield b"".join(event_of(data, name) for name, data in writer.end())


async def count_tokens(state: State, exchange: Exchange) -> None:
    """``POST /v1/messages/count_tokens``: refused, for no model says how many tokens a conversation has before it
    answers; a guess would be taken for a count.
    """
    body = await exchange.json(state.most_bytes)
    it = state.asked(exchange, body.get("model"))
    state.manager.target(*it.named).check("chat", state.manager.enter())
    text = f"tokens can't be counted for {it.named} ahead of its answer; each answer says in usage how many it read"
    raise Refused(404, text, code="no_token_count")
