"""Answers and streams as Google's Gemini API has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

USAGE = {"promptTokenCount": 13, "candidatesTokenCount": 4, "thoughtsTokenCount": 3, "totalTokenCount": 20}


def response(*parts: dict[str, Any], finish_reason: str | None = "STOP", counted: bool = True) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish_reason is not None:
        candidate["finishReason"] = finish_reason
    found = {"candidates": [candidate], "modelVersion": "gemini-x", "responseId": "r1"}
    return found | ({"usageMetadata": USAGE} if counted else {})


def text(said: str) -> dict[str, Any]:
    return response({"text": said})


def tool(name: str, given: dict[str, Any]) -> dict[str, Any]:
    return response({"functionCall": {"name": name, "args": given}})


def thought(thinking: str, said: str) -> dict[str, Any]:
    return response({"text": thinking, "thought": True}, {"text": said})


def refusal(said: str) -> dict[str, Any]:
    return response({"text": said}, finish_reason="SAFETY")


def blocked() -> dict[str, Any]:
    """What was asked was refused; nothing was written."""
    usage = {"promptTokenCount": 13, "totalTokenCount": 13}
    return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": usage, "modelVersion": "gemini-x"}


def error(status: int, said: str, details: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    names = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
             429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}  # fmt: skip
    inner = {"code": status, "message": said, "status": names.get(status, "UNKNOWN"), "details": list(details)}
    return {"error": inner}


def retry_info(delay: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\r\n\r\n".encode()


def streamed(parts: Sequence[dict[str, Any]], finish_reason: str = "STOP") -> list[dict[str, Any]]:
    early = [response(part, finish_reason=None, counted=False) for part in parts[:-1]]
    return [*early, response(*parts[-1:], finish_reason=finish_reason)]


def streamed_text(pieces: Sequence[str], finish_reason: str = "STOP") -> list[dict[str, Any]]:
    return streamed([{"text": piece} for piece in pieces], finish_reason)


def streamed_thought(thinking: Sequence[str], said: str) -> list[dict[str, Any]]:
    return streamed([*({"text": piece, "thought": True} for piece in thinking), {"text": said}])


def streamed_tools(calls: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, Any]]:
    """Google doesn't stream a call's arguments: each call comes whole."""
    asked = [{"functionCall": {"name": name, "args": json.loads("".join(pieces))}} for name, pieces in calls]
    return streamed([{"text": "I look."}, *asked])


def embeddings(vectors: Sequence[Sequence[float]]) -> dict[str, Any]:
    return {"embeddings": [{"values": list(row)} for row in vectors]}
