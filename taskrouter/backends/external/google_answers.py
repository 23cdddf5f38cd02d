"""Gemini's answers in our words: text, thoughts, tool calls, refusals, usage; whole, and in pieces."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from taskrouter.backends.external import failures
from taskrouter.backends.external.base import Call
from taskrouter.errors import ProviderProtocol
from taskrouter.verbs import ChatAnswer, ChatChunk, Usage

REFUSALS = frozenset({
    "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
    "LANGUAGE", "MODEL_ARMOR",
})  # fmt: skip


def plain(answer: Any) -> dict[str, Any]:
    return dict(answer.model_dump(mode="json", exclude_none=True, exclude={"sdk_http_response"}, warnings=False))


def answer_of(data: Mapping[str, Any], call: Call) -> ChatAnswer:
    """What an answer says. Raises ``ProviderProtocol`` for one that isn't as the API has it."""
    usage = usage_of(data.get("usage_metadata"))
    blocked = (data.get("prompt_feedback") or {}).get("block_reason")
    if blocked:
        return ChatAnswer("", "content_filter", usage, raw=data)
    try:
        candidate = data["candidates"][0]
        if not candidate.keys() & {"content", "finish_reason"}:
            raise failures.nonsense(call, data)
        text, thought, calls = _read(candidate, 0)
        reason = _finish(candidate.get("finish_reason"), bool(calls))
        return ChatAnswer(text, reason or "stop", usage, calls, thought or None, data)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise failures.nonsense(call, data) from error


def _read(candidate: Mapping[str, Any], first: int) -> tuple[str, str, tuple[dict[str, Any], ...]]:
    """Text, thoughts and tool calls of a candidate. ``first`` numbers the calls, whose ids Google may leave out."""
    text, thought = "", ""
    calls: list[dict[str, Any]] = []
    for part in (candidate.get("content") or {}).get("parts") or ():
        if part.get("thought"):
            thought += part.get("text") or ""
        elif part.get("text"):
            text += part["text"]
        if (asked := part.get("function_call")) is not None:
            place = first + len(calls)
            function = {"name": asked["name"], "arguments": json.dumps(asked.get("args") or {})}
            identity = asked.get("id") or f"call_{place}"
            call = {"index": place, "id": identity, "type": "function", "function": function}
            if signature := part.get("thought_signature"):
                call["extra_content"] = {"google": {"thought_signature": signature}}
            calls.append(call)
    return text, thought, tuple(calls)


def _finish(reason: str | None, called: bool) -> str | None:
    if reason is None:
        return None
    if reason in REFUSALS:
        return "content_filter"
    if reason == "MAX_TOKENS":
        return "length"
    return "tool_calls" if called else "stop"


def usage_of(data: Mapping[str, Any] | None) -> Usage | None:
    """Tokens read, and written: thoughts are written too."""
    if not data:
        return None
    written = (data.get("candidates_token_count") or 0) + (data.get("thoughts_token_count") or 0)
    return Usage((data.get("prompt_token_count") or 0) + (data.get("tool_use_prompt_token_count") or 0), written)


async def chunks_of(pieces: Any, call: Call) -> AsyncGenerator[ChatChunk, None]:
    """The pieces of a streamed answer; the last one has the usage. Raises ``ProviderProtocol`` where it is cut."""
    usage: Usage | None = None
    last: ChatChunk | None = None
    count = 0
    async for piece in pieces:
        data = plain(piece)
        usage = usage_of(data.get("usage_metadata")) or usage
        if (data.get("prompt_feedback") or {}).get("block_reason"):
            last = ChatChunk("", "content_filter", raw=data)
            continue
        candidates = data.get("candidates") or ()
        if not candidates:
            continue
        try:
            text, thought, calls = _read(candidates[0], count)
        except (KeyError, TypeError, AttributeError) as error:
            raise failures.nonsense(call, data) from error
        count += len(calls)
        reason = _finish(candidates[0].get("finish_reason"), count > 0)
        if text or thought or calls:
            yield ChatChunk(text, None, None, calls, thought or None, data)
        if reason is not None:
            last = ChatChunk("", reason, raw=data)
    if last is None:
        raise ProviderProtocol(f"{call.who}: the stream ended before the answer did")
    yield ChatChunk(last.text, last.finish_reason, usage, raw=last.raw)
