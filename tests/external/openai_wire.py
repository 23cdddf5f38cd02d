"""Answers and streams as OpenAI's chat completions API has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

USAGE = {"prompt_tokens": 13, "completion_tokens": 7, "total_tokens": 20}
DONE = b"data: [DONE]\n\n"


def completion(message: dict[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-x", "usage": USAGE,
        "choices": [{
            "index": 0, "finish_reason": finish_reason, "logprobs": None,
            "message": {"role": "assistant", "content": None, "refusal": None, **message},
        }],
    }  # fmt: skip


def text(said: str) -> dict[str, Any]:
    return completion({"content": said})


def tool(name: str, given: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(given)}
    return completion({"tool_calls": [{"id": "call_1", "type": "function", "function": function}]}, "tool_calls")


def thought(thinking: str, said: str) -> dict[str, Any]:
    return completion({"content": said, "reasoning_content": thinking})


def refusal(said: str) -> dict[str, Any]:
    return completion({"refusal": said})


def error(status: int, said: str, code: str | None = None) -> dict[str, Any]:
    kinds = {400: "invalid_request_error", 401: "invalid_request_error", 429: "tokens", 500: "server_error"}
    return {"error": {"message": said, "type": kinds.get(status, "api_error"), "param": None, "code": code}}


def event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}],
    }  # fmt: skip


def usage() -> dict[str, Any]:
    return {**chunk({}), "choices": [], "usage": USAGE}


def streamed(deltas: Sequence[dict[str, Any]], finish_reason: str = "stop") -> list[dict[str, Any]]:
    begin = chunk({"role": "assistant", "content": "", "refusal": None})
    return [begin, *(chunk(delta) for delta in deltas), chunk({}, finish_reason), usage()]


def streamed_text(pieces: Sequence[str], finish_reason: str = "stop") -> list[dict[str, Any]]:
    return streamed([{"content": piece} for piece in pieces], finish_reason)


def streamed_refusal(pieces: Sequence[str]) -> list[dict[str, Any]]:
    return streamed([{"refusal": piece} for piece in pieces])


def streamed_thought(thinking: Sequence[str], said: str) -> list[dict[str, Any]]:
    return streamed([*({"reasoning_content": piece} for piece in thinking), {"content": said}])


def streamed_tools(calls: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"content": "I look."}]
    for place, (name, pieces) in enumerate(calls):
        begin = {"name": name, "arguments": ""}
        deltas.append({"tool_calls": [{"index": place, "id": f"call_{place}", "type": "function", "function": begin}]})
        deltas += [{"tool_calls": [{"index": place, "function": {"arguments": piece}}]} for piece in pieces]
    return streamed(deltas, "tool_calls")


def embeddings(vectors: Sequence[Sequence[float]]) -> dict[str, Any]:
    rows = [{"object": "embedding", "index": place, "embedding": list(row)} for place, row in enumerate(vectors)]
    return {"object": "list", "data": rows, "model": "embed-x", "usage": {"prompt_tokens": 4, "total_tokens": 4}}


def generated(said: str) -> dict[str, Any]:
    choice = {"index": 0, "text": said, "finish_reason": "length", "logprobs": None}
    return {"id": "c-1", "object": "text_completion", "created": 1, "model": "x", "choices": [choice], "usage": USAGE}
