"""Answers of ours as messages of Anthropic's Messages API, whole and as events. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from taskrouter.http.failing import Refused
from taskrouter.verbs import ChatAnswer, ChatChunk, Usage

Event = tuple[str, dict[str, Any]]
"""A server-sent event: its name and its data."""

PING: Event = ("ping", {"type": "ping"})
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def message_body(answer: ChatAnswer, model: str, request_id: str, stops: Sequence[str] = ()) -> dict[str, Any]:
    """A chat answer as a message. Raises ``Refused`` for a call of a tool that nobody could carry out."""
    blocks: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
    for number, call in enumerate(answer.tool_calls):
        function = call.get("function") or {}
        given = _input(function.get("arguments"))
        if given is not None:
            name = str(function.get("name", ""))
            blocks.append({"type": "tool_use", "id": _id(call, request_id, number), "name": name, "input": given})
        elif answer.finish_reason != "length":  # of an answer that was cut, the call that was cut is left out
            raise Refused(502, f"the model called {function.get('name')!r:.80} with what is no JSON object",
                          code="bad_tool_call")  # fmt: skip
    called = any(block["type"] == "tool_use" for block in blocks)
    reason, sequence = _stopped(answer.finish_reason, answer.raw, called, stops)
    head = _message(model, request_id)
    return {
        **head, "content": blocks, "stop_reason": reason, "stop_sequence": sequence, "usage": usage_body(answer.usage)
    }  # fmt: skip


def usage_body(usage: Usage | None) -> dict[str, int]:
    """Tokens read and written; both 0 where the model doesn't count them, since the API has numbers there."""
    read, written = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (0, 0)
    return {"input_tokens": read, "output_tokens": written}


def _message(model: str, request_id: str) -> dict[str, Any]:
    return {"id": f"msg_{request_id}", "type": "message", "role": "assistant", "model": model}


def _id(call: Mapping[str, Any], request_id: str, number: int) -> str:
    return str(call.get("id") or f"toolu_{request_id}-{number}")


def _input(arguments: Any) -> dict[str, Any] | None:
    """A call's arguments, read; ``None`` for what is no object."""
    try:
        found = arguments if isinstance(arguments, Mapping) else orjson.loads(arguments or "{}")
    except (orjson.JSONDecodeError, TypeError):
        return None
    return dict(found) if isinstance(found, Mapping) else None


def _stopped(reason: str, raw: Mapping[str, Any], called: bool, stops: Sequence[str]) -> tuple[str, str | None]:
    """Why an answer ended, and at which of the caller's sequences, where its model's server says that."""
    if called and reason == "stop":
        return "tool_use", None
    if reason == "stop":
        choices = raw.get("choices")
        choice = choices[0] if isinstance(choices, Sequence) and choices else raw
        # As vLLM, SGLang and Anthropic say it.
        for name in ("stop_reason", "matched_stop", "stop_sequence"):
            if isinstance(choice, Mapping) and choice.get(name) in stops and isinstance(choice[name], str):
                return "stop_sequence", choice[name]
    return _STOP_REASONS.get(reason, "end_turn"), None


class MessageWriter:
    """Pieces of a chat answer as events. ``start`` first, then ``events`` of each piece, ``end`` last."""

    def __init__(self, model: str, request_id: str, stops: Sequence[str] = ()) -> None:
        self._model = model
        self._request_id = request_id
        self._stops = stops
        self._place = -1
        self._open: str | int | None = None
        """The block that is being written: ``text``, or the number of a call."""
        self._calls: set[int] = set()
        self._last = ChatChunk("", "stop")

    def start(self) -> Event:
        message = {**_message(self._model, self._request_id), "content": [], "stop_reason": None,
                   "stop_sequence": None, "usage": usage_body(None)}  # fmt: skip
        return "message_start", {"type": "message_start", "message": message}

    def events(self, piece: ChatChunk) -> Iterator[Event]:
        if piece.text:
            if self._open != "text":
                yield from self._begin("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": piece.text})
        for call in piece.tool_calls:
            yield from self._call(call)
        if piece.finish_reason is not None:
            self._last = piece
        elif not piece.text and not piece.tool_calls:
            yield PING  # it thinks: what it thinks wasn't asked for, but that it does is a sign of life

    def end(self) -> Iterator[Event]:
        """Why it ended, and what it took."""
        yield from self._stop()
        last = self._last
        reason, sequence = _stopped(last.finish_reason or "stop", last.raw, bool(self._calls), self._stops)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        yield "message_delta", {"type": "message_delta", "delta": delta, "usage": usage_body(last.usage)}
        yield "message_stop", {"type": "message_stop"}

    def _call(self, call: Mapping[str, Any]) -> Iterator[Event]:
        number = call.get("index")
        number = number if isinstance(number, int) else len(self._calls)
        function = call.get("function") or {}
        if number not in self._calls:
            self._calls.add(number)
            block = {"type": "tool_use", "id": _id(call, self._request_id, number),
                     "name": str(function.get("name", "")), "input": {}}  # fmt: skip
            yield from self._begin(number, block)
        elif self._open != number:
            raise Refused(502, "the model's server streamed several calls at once, which can't be told in this API",
                          code="bad_tool_call")  # fmt: skip
        if function.get("arguments"):
            yield self._delta({"type": "input_json_delta", "partial_json": str(function["arguments"])})

    def _begin(self, what: str | int, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._stop()
        self._open = what
        self._place += 1
        event = {"type": "content_block_start", "index": self._place, "content_block": block}
        yield "content_block_start", event

    def _delta(self, delta: dict[str, Any]) -> Event:
        return "content_block_delta", {"type": "content_block_delta", "index": self._place, "delta": delta}

    def _stop(self) -> Iterator[Event]:
        if self._open is not None:
            self._open = None
            yield "content_block_stop", {"type": "content_block_stop", "index": self._place}
