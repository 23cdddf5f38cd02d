"""The OpenAI API's words and ours, on the server's side: bodies to calls, answers and pieces to bodies."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from taskrouter.errors import BadInput
from taskrouter.manager.asking import chat_request
from taskrouter.verbs import ChatAnswer, ChatChunk, ChatRequest, Usage

_OF_CHAT = frozenset(
    {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "stream"}
    | {"stream_options"}
)
_IDLE = frozenset({"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"})
"""Fields that only say something to OpenAI's own service."""
_NEUTRAL: Mapping[str, Any] = {
    "n": 1, "presence_penalty": 0, "frequency_penalty": 0, "logprobs": False, "top_logprobs": 0, "logit_bias": {},
    "parallel_tool_calls": True, "tools": [], "best_of": 1, "echo": False, "response_format": {"type": "text"},
    "modalities": ["text"],
}  # fmt: skip
"""Fields that ask for nothing at these values."""
_OF_NO_TOOLS: Mapping[str, tuple[Any, ...]] = {"tool_choice": ("none", "auto"), "parallel_tool_calls": (False,)}
"""The same, where no tools are given."""


def sampling_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """``max_tokens``, ``temperature``, ``top_p``, ``stop`` and ``seed`` of a body; checked later."""
    most = body.get("max_completion_tokens", body.get("max_tokens"))
    stop = body.get("stop")
    texts = stop if isinstance(stop, list) else [stop]
    if stop is not None and not all(isinstance(each, str) for each in texts):
        raise BadInput("stop must be a text, or a list of texts")
    return {
        "max_tokens": most,
        "temperature": body.get("temperature"),
        "top_p": body.get("top_p"),
        "stop": stop if stop is not None else (),
        "seed": body.get("seed"),
    }


def extra_of(body: Mapping[str, Any], known: frozenset[str] = _OF_CHAT) -> dict[str, Any]:
    """The fields that only some models know; those that ask for nothing are left out."""
    return {
        name: value
        for name, value in body.items()
        if name not in known and name not in _IDLE and value is not None and not _asks_nothing(name, value, body)
    }


def _asks_nothing(name: str, value: Any, body: Mapping[str, Any]) -> bool:
    """Numbers are compared without their type, as JSON has one of them only; yes and no are no numbers."""
    if not body.get("tools") and value in _OF_NO_TOOLS.get(name, ()):
        return True
    neutral = _NEUTRAL.get(name)
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def chat_of(body: Mapping[str, Any]) -> ChatRequest:
    """A chat completion's body as a call. Raises ``BadInput``."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise BadInput("messages must be a list of messages, each with a role and a content")
    whole = [_with_content(message) for message in messages]
    return chat_request(whole, **sampling_of(body), extra=extra_of(body))


def _with_content(message: Any) -> Any:
    # An assistant's message that calls tools may come without a content.
    if isinstance(message, dict) and "content" not in message and message.get("tool_calls"):
        return {**message, "content": None}
    return message


def arguments_of(request: ChatRequest) -> dict[str, Any]:
    """A call as the arguments of ``Model.chat`` and ``stream_chat``."""
    return {
        "messages": request.messages, "max_tokens": request.max_tokens, "temperature": request.temperature,
        "top_p": request.top_p, "stop": request.stop, "seed": request.seed, "extra": request.extra,
    }  # fmt: skip


def wants_stream(body: Mapping[str, Any]) -> bool:
    """Whether the answer is to come in pieces. Raises ``BadInput`` for what an engine may take for yes."""
    wanted = body.get("stream")
    if wanted is not None and not isinstance(wanted, bool):
        raise BadInput(f"stream is {wanted!r:.40}; it must be true or false")
    return wanted is True


def wants_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def usage_body(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def chat_body(answer: ChatAnswer, model: str, request_id: str) -> dict[str, Any]:
    """A chat answer as a chat completion. What an engine said beside (logprobs, further choices) stays."""
    raw = answer.raw
    if raw.get("object") == "chat.completion" and raw.get("choices"):
        return {**raw, "model": model}
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if answer.tool_calls else "")}
    if answer.tool_calls:
        message["tool_calls"] = [dict(call) for call in answer.tool_calls]
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    body = {"id": f"chatcmpl-{request_id}", "object": "chat.completion", "created": int(time.time()), "model": model}
    return {**body, "choices": [choice], "usage": usage_body(answer.usage)}


class ChunkWriter:
    """Pieces of a chat answer as chat completion chunks."""

    def __init__(self, model: str, request_id: str, *, usage: bool) -> None:
        self._head = {"id": f"chatcmpl-{request_id}", "object": "chat.completion.chunk", "created": int(time.time()),
                      "model": model}  # fmt: skip
        self._usage = usage
        self._first = True

    def chunks(self, piece: ChatChunk) -> list[dict[str, Any]]:
        """What is sent for a piece: for the last one also the usage, where it was asked for."""
        delta: dict[str, Any] = {"role": "assistant"} if self._first else {}
        self._first = False
        if piece.text or not (piece.finish_reason or piece.tool_calls or piece.reasoning):
            delta["content"] = piece.text
        if piece.tool_calls:
            delta["tool_calls"] = [dict(call) for call in piece.tool_calls]
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        choice = {"index": 0, "delta": delta, "logprobs": _logprobs(piece), "finish_reason": piece.finish_reason}
        found = [{**self._head, "choices": [choice], **({"usage": None} if self._usage else {})}]
        if piece.finish_reason is not None and self._usage:
            found.append({**self._head, "choices": [], "usage": usage_body(piece.usage)})
        return found


def _logprobs(piece: ChatChunk) -> Any:
    choices = piece.raw.get("choices") if piece.raw else None
    return choices[0].get("logprobs") if choices else None
