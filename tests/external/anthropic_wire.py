"""Answers and streams as Anthropic's messages API has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

USAGE = {"input_tokens": 11, "cache_read_input_tokens": 2, "output_tokens": 7}


def message(*blocks: dict[str, Any], stop_reason: str = "end_turn") -> dict[str, Any]:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": list(blocks),
        "stop_reason": stop_reason, "stop_sequence": None, "usage": USAGE,
    }  # fmt: skip


def text(said: str) -> dict[str, Any]:
    return message({"type": "text", "text": said})


def tool(name: str, given: dict[str, Any]) -> dict[str, Any]:
    return message({"type": "tool_use", "id": "toolu_1", "name": name, "input": given}, stop_reason="tool_use")


def thought(thinking: str, said: str) -> dict[str, Any]:
    return message(
        {"type": "thinking", "thinking": thinking, "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "aGlkZGVu"},
        {"type": "text", "text": said},
    )


def refusal(said: str) -> dict[str, Any]:
    return message({"type": "text", "text": said}, stop_reason="refusal")


def error(status: int, said: str) -> dict[str, Any]:
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
             413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error"}  # fmt: skip
    return {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": said}, "request_id": "req_1"}


def event(data: dict[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


def start() -> dict[str, Any]:
    begun = message()
    return {"type": "message_start", "message": {**begun, "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}}


def block(index: int, begin: dict[str, Any], deltas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": begin},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def end(stop_reason: str = "end_turn") -> list[dict[str, Any]]:
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return [{"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7}}, {"type": "message_stop"}]


def text_block(index: int, pieces: Sequence[str]) -> list[dict[str, Any]]:
    return block(index, {"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces])


def streamed_text(pieces: Sequence[str], stop_reason: str = "end_turn") -> list[dict[str, Any]]:
    return [start(), *text_block(0, pieces), *end(stop_reason)]


def streamed_thought(thinking: Sequence[str], said: str) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"type": "thinking_delta", "thinking": piece} for piece in thinking]
    deltas.append({"type": "signature_delta", "signature": "c2ln"})
    begin = {"type": "thinking", "thinking": "", "signature": ""}
    return [start(), *block(0, begin, deltas), *text_block(1, [said]), *end()]


def streamed_tools(calls: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, Any]]:
    events = [start(), *text_block(0, ["I look."])]
    for place, (name, pieces) in enumerate(calls, 1):
        begin = {"type": "tool_use", "id": f"toolu_{place}", "name": name, "input": {}}
        events += block(place, begin, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces])
    return [*events, *end("tool_use")]
