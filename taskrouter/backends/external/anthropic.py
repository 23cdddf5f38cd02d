"""Anthropic, through the ``anthropic`` SDK: OpenAI-style requests to its messages, its answers back."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from taskrouter.backends.external import failures
from taskrouter.backends.external.base import Call, Endpoint, Takes
from taskrouter.backends.external.content import (
    Part,
    arguments,
    check,
    only_text,
    parts_of,
    role_of,
    split_extra,
    with_frames,
)
from taskrouter.backends.external.sdk import SDKConnection
from taskrouter.errors import (
    BadInput,
    MissingDependency,
    ProviderProtocol,
    UnsupportedInput,
    UnsupportedVerb,
)
from taskrouter.verbs import ChatAnswer, ChatChunk, ChatRequest, Usage

KEY_ENV = "ANTHROPIC_API_KEY"
MESSAGES = "/v1/messages"
_DRAIN_S = 1.0
MAX_TOKENS = 4096
"""Its API wants a bound on every answer; this is ours where the caller gives none."""
FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_THOUGHTS = ("thinking", "redacted_thinking")
_VERBS = frozenset({"chat", "stream_chat"})
_TAKES = Takes(
    _VERBS,
    frozenset({"image", "document"}),
    frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"}),
    document_types=frozenset({"application/pdf", "text/*"}),
    most_images=100,
    most_image_bytes=5 << 20,
    most_request_bytes=32 << 20,
)
_PATHS = re.compile(r"(/v1)?(/messages|/complete)?/?$")


class AnthropicProvider:
    """``provider: anthropic``."""

    key_env = KEY_ENV

    def takes(self, model_id: str) -> Takes:
        return _TAKES

    def base_url(self, api_endpoint: str) -> str:
        return _PATHS.sub("", api_endpoint)

    def connect(self, endpoint: Endpoint) -> AnthropicConnection:
        return AnthropicConnection(endpoint)


class AnthropicConnection(SDKConnection):
    """One client of Anthropic."""

    key_env = KEY_ENV
    list_bound = 1

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import anthropic
        except ModuleNotFoundError as error:
            raise MissingDependency("provider anthropic needs its SDK: pip install 'taskrouter[anthropic]'") from error
        base_url = endpoint.base_url or "https://api.anthropic.com"
        super().__init__(anthropic, anthropic.AsyncAnthropic, base_url, endpoint)

    def _written(self, verb: str, request: Any, call: Call) -> tuple[str, dict[str, Any]]:
        if not isinstance(request, ChatRequest):
            raise UnsupportedVerb(f"{call.who} can't {verb}; it can: {', '.join(sorted(_VERBS))}")
        return MESSAGES, body_of(request, call)

    def _read(self, verb: str, request: Any, data: dict[str, Any], call: Call) -> ChatAnswer:
        return answer_of(data, call)

    def _chunks(self, events: Any, call: Call) -> AsyncGenerator[ChatChunk, None]:
        return chunks_of(events, call)


# --- requests ---------------------------------------------------------------------------------------------------------


def body_of(request: ChatRequest, call: Call) -> dict[str, Any]:
    """The body of a request for a message. Raises ``BadInput``."""
    system: list[str] = []
    messages: list[dict[str, Any]] = []
    every: list[Part] = []
    for place, message in enumerate(request.messages):
        where = f"messages[{place}]"
        parts = with_frames(parts_of(message, where), _TAKES)
        every += parts
        role = role_of(message, where)
        if role in ("system", "developer"):
            system += only_text(call.who, parts, where)
            continue
        blocks = [_block(part) for part in parts]
        if role == "tool":
            blocks = [{"type": "tool_result", "tool_use_id": str(message.get("tool_call_id", "")), "content": blocks}]
        for number, asked in enumerate(message.get("tool_calls") or ()):
            identity, name, given = arguments(asked, f"{where}.tool_calls[{number}]")
            blocks.append({"type": "tool_use", "id": identity, "name": name, "input": given})
            blocks = _thoughts_of(asked) + blocks
        role = "assistant" if role == "assistant" else "user"
        if not blocks:
            raise BadInput(f"{where} is empty, which {call.who} doesn't take")
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        else:
            messages.append({"role": role, "content": blocks})
    check(call.who, every, _TAKES)
    if request.seed is not None:
        raise UnsupportedInput(f"{call.who} takes no seed")
    known, extra = split_extra(request)
    body: dict[str, Any] = {
        "model": call.model_id,
        "messages": messages,
        "max_tokens": request.max_tokens or MAX_TOKENS,
        **({"system": "\n\n".join(system)} if system else {}),
        **({"stop_sequences": list(request.stop)} if request.stop else {}),
        **_tools(known, call),
    }
    sampling = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "output_config": _schema(known.get("response_format"), call),
    }
    return body | {name: value for name, value in sampling.items() if value is not None} | extra


def _thoughts_of(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The thoughts that led to a call, signed: models that think want them back with it."""
    try:
        return [dict(block) for block in asked["extra_content"]["anthropic"]["thinking_blocks"]]
    except (KeyError, TypeError, ValueError):
        return []


def _block(part: Part) -> dict[str, Any]:
    source = {"type": "base64", "media_type": part.media_type, "data": part.data}
    match part.kind:
        case "text":
            return {"type": "text", "text": part.text}
        case "image":
            return {"type": "image", "source": source}
        case "document" if part.media_type.startswith("text/"):
            text = base64.b64decode(part.data).decode("utf-8", "replace")
            return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}}
        case "document":
            return {"type": "document", "source": source}
        case _:
            return {"type": part.kind}  # refused by check()


def _tools(known: Mapping[str, Any], call: Call) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        if known.get("tools"):
            functions = [tool["function"] for tool in known["tools"]]
            found["tools"] = [
                {
                    "name": function["name"],
                    "description": function.get("description", ""),
                    "input_schema": function.get("parameters") or {"type": "object"},
                }
                for function in functions
            ]
        choice = known.get("tool_choice")
        if choice is not None:
            named = {"auto": {"type": "auto"}, "required": {"type": "any"}, "none": {"type": "none"}}
            found["tool_choice"] = (
                dict(named[choice]) if isinstance(choice, str) else {"type": "tool", "name": choice["function"]["name"]}
            )
        if known.get("parallel_tool_calls") is False and "tools" in found:
            found.setdefault("tool_choice", {"type": "auto"})["disable_parallel_tool_use"] = True
    except (KeyError, TypeError) as error:
        raise BadInput(f"{call.who}: tools and tool_choice aren't as the OpenAI API has them: {error!r}") from error
    return found


def _schema(form: Any, call: Call) -> dict[str, Any] | None:
    if form is None or (isinstance(form, Mapping) and form.get("type") == "text"):
        return None
    try:
        if form["type"] == "json_schema":
            return {"format": {"type": "json_schema", "schema": form["json_schema"]["schema"]}}
    except (KeyError, TypeError) as error:
        raise BadInput(f"{call.who}: response_format isn't as the OpenAI API has it: {error!r}") from error
    raise UnsupportedInput(f"{call.who} takes response_format json_schema, not {form['type']}")


# --- answers ----------------------------------------------------------------------------------------------------------


def answer_of(data: Any, call: Call) -> ChatAnswer:
    """What a message says. Raises ``ProviderProtocol`` for one that isn't as the API has it."""
    try:
        blocks = data["content"]
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        thought = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
        calls = tuple(_call(block) for block in blocks if block["type"] == "tool_use")
        if calls and (thoughts := [block for block in blocks if block["type"] in _THOUGHTS]):
            calls[0].update(_kept(thoughts))
        return ChatAnswer(text, _finish(data["stop_reason"]), usage_of(data["usage"]), calls, thought or None, data)
    except (KeyError, TypeError, AttributeError) as error:
        raise failures.nonsense(call, data) from error


def _kept(thoughts: list[dict[str, Any]]) -> dict[str, Any]:
    """Where a call keeps what has to come back with it; Google's API, like OpenAI's, has such a place."""
    return {"extra_content": {"anthropic": {"thinking_blocks": thoughts}}}


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": block["name"], "arguments": json.dumps(block["input"])}
    return {"id": block["id"], "type": "function", "function": function}


def _finish(reason: str | None) -> str:
    return FINISH.get(reason or "end_turn", "stop")


def usage_of(data: Mapping[str, Any]) -> Usage:
    """Tokens read (from a cache too) and written."""
    read = sum(data.get(name) or 0 for name in (
        "input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"))  # fmt: skip
    return Usage(read, data.get("output_tokens") or 0)


async def chunks_of(events: Any, call: Call) -> AsyncGenerator[ChatChunk, None]:
    """The pieces of a streamed message; the last one has the usage. Raises ``ProviderProtocol`` where it is cut."""
    read = _Reader()
    async for data in events:
        try:
            chunk = read.chunk(data)
        except (KeyError, TypeError, AttributeError) as error:
            raise failures.nonsense(call, data) from error
        if chunk is not None:
            yield chunk
        if read.ended:
            # Only a connection whose answer was read to its end is used again.
            with suppress(Exception):
                async with asyncio.timeout(_DRAIN_S):
                    async for _ in events:
                        pass
            return
    raise ProviderProtocol(f"{call.who}: the stream ended before the answer did")


@dataclass(slots=True)
class _Reader:
    """What of a stream's earlier events its later ones need."""

    usage: dict[str, Any] = field(default_factory=dict)
    tools: dict[int, int] = field(default_factory=dict)
    thoughts: dict[int, dict[str, Any]] = field(default_factory=dict)
    reason: str | None = None
    ended: bool = False

    def chunk(self, data: Mapping[str, Any]) -> ChatChunk | None:
        match data.get("type"):
            case "message_start":
                self.usage |= data["message"].get("usage") or {}
            case "content_block_start" if data["content_block"]["type"] == "tool_use":
                place = self.tools[data["index"]] = len(self.tools)
                block = data["content_block"]
                function = {"name": block["name"], "arguments": ""}
                piece = {"index": place, "id": block["id"], "type": "function", "function": function}
                if place == 0 and self.thoughts:
                    piece |= _kept(list(self.thoughts.values()))
                return ChatChunk("", tool_calls=(piece,), raw=data)
            case "content_block_start" if data["content_block"]["type"] in _THOUGHTS:
                self.thoughts[data["index"]] = dict(data["content_block"])
            case "content_block_delta":
                self._think(data["index"], data["delta"])
                return _delta(data, self.tools)
            case "message_delta":
                self.reason = data["delta"].get("stop_reason") or self.reason
                self.usage |= {name: value for name, value in (data.get("usage") or {}).items() if value is not None}
            case "message_stop":
                self.ended = True
                return ChatChunk("", _finish(self.reason), usage_of(self.usage), raw=data)
        return None

    def _think(self, place: int, delta: Mapping[str, Any]) -> None:
        thought = self.thoughts.get(place)
        if thought is not None:
            for name in ("thinking", "signature"):
                if name in delta:
                    thought[name] = thought.get(name, "") + delta[name]


def _delta(data: Mapping[str, Any], tools: Mapping[int, int]) -> ChatChunk | None:
    delta = data["delta"]
    match delta["type"]:
        case "text_delta":
            return ChatChunk(delta["text"], raw=data)
        case "thinking_delta":
            return ChatChunk("", reasoning=delta["thinking"], raw=data)
        case "input_json_delta":
            piece = {"index": tools[data["index"]], "function": {"arguments": delta["partial_json"]}}
            return ChatChunk("", tool_calls=(piece,), raw=data)
        case _:
            return None
