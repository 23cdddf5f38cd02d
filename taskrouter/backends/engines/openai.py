"""The OpenAI API's words for our verbs: requests to JSON bodies, JSON answers and server-sent events to answers.

Greedy unless the caller asks for sampling, as under every other backend; what ``extra`` names goes through as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from taskrouter.errors import BadInput, CallFailed
from taskrouter.verbs import (
    ChatAnswer,
    ChatChunk,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    GenerateAnswer,
    GenerateRequest,
    RawRequest,
    Usage,
)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
OWN = frozenset({"model", "messages", "prompt", "input", "stream", "stream_options"})
"""Fields of a body that the verb itself writes."""
_REMOTE = re.compile(r"\s*([a-z][a-z0-9+.-]*:)?//|\s*file:", re.IGNORECASE)
SOUND = "input_audio.data"
"""Where a sound's bytes stand, as base64 without more."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]*={0,2}\s*")


def body_of(verb: str, request: Any, model: str) -> tuple[str, dict[str, Any] | None]:
    """The path and the body of a call. Raises ``BadInput``."""
    match request:
        case ChatRequest():
            _refuse_remote(request.messages)
            body = {"model": model, "messages": [dict(message) for message in request.messages], **_sampling(request)}
            if verb == "stream_chat":
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            return CHAT, body
        case GenerateRequest():
            return COMPLETIONS, {"model": model, "prompt": request.prompt, **_sampling(request)}
        case EmbedRequest():
            return EMBEDDINGS, {"model": model, "input": request.texts(model), **_extra(request.extra)}
        case RawRequest(path, None):
            return path, None
        case RawRequest(path, body):
            return path, {"model": model, **(body or {})}
        case _:
            raise BadInput(f"{verb} can't be asked with a {type(request).__name__}")


def answer_of(verb: str, data: Any, who: str) -> Any:
    """What an answer says, in the verb's type. Raises ``CallFailed`` for one that isn't as the API has it."""
    if verb == "request":
        return data
    try:
        if verb == "embed":
            rows = sorted(data["data"], key=lambda row: row["index"])
            vectors = tuple(tuple(float(value) for value in row["embedding"]) for row in rows)
            return Embeddings(vectors, usage_of(data.get("usage")), data)
        choice = data["choices"][0]
        reason = choice.get("finish_reason") or "stop"
        if verb == "generate":
            return GenerateAnswer(str(choice["text"]), reason, usage_of(data.get("usage")), data)
        message = choice["message"]
        return ChatAnswer(
            message.get("content") or "",
            reason,
            usage_of(data.get("usage")),
            tuple(message.get("tool_calls") or ()),
            _reasoning(message),
            data,
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise CallFailed(
            f"{who} answered {verb} with something else than the OpenAI API has: {_short(data)}"
        ) from error


async def chunks_of(events: AsyncIterator[Any], who: str) -> AsyncIterator[ChatChunk]:
    """The pieces of a streamed chat answer. The one that ends it is given out last, with the usage.

    Raises ``CallFailed`` where the stream ends before the answer does.
    """
    last: ChatChunk | None = None
    usage: Usage | None = None
    async for data in events:
        try:
            usage = usage_of(data.get("usage")) or usage
            choices = data["choices"]
            choice = choices[0] if choices else None
            delta = (choice.get("delta") or {}) if choice is not None else {}
            text, calls = delta.get("content") or "", tuple(delta.get("tool_calls") or ())
            reason = choice.get("finish_reason") if choice is not None else None
            thought = _reasoning(delta)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise CallFailed(f"{who} streamed something else than the OpenAI API has: {_short(data)}") from error
        if choice is None:
            continue
        if reason is not None:
            last = ChatChunk(text, reason, None, calls, thought, data)
        elif text or calls or thought or choice.get("logprobs"):
            yield ChatChunk(text, None, None, calls, thought, data)
    if last is None:
        raise CallFailed(f"{who}: the stream ended before the answer did")
    yield ChatChunk(last.text, last.finish_reason, usage, last.tool_calls, last.reasoning, last.raw)


def parse_event(line: bytes, who: str) -> Any:
    """The data of one server-sent event's line. Raises ``CallFailed`` for garbage, or an error the server sent."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CallFailed(f"{who} streamed what is no JSON: {_short(line.decode(errors='replace'))}") from error
    if isinstance(data, Mapping) and data.get("error"):
        raise CallFailed(f"{who} ended the stream with an error: {message_of(data)}")
    return data


def message_of(data: Any) -> str:
    """What an error's body says, whichever of the usual shapes it has."""
    found = data
    for name in ("error", "detail", "message"):
        if isinstance(found, Mapping) and found.get(name):
            found = found[name]
    return _short(found)


def usage_of(data: Any) -> Usage | None:
    """Tokens read and written, where the server counted them."""
    if not isinstance(data, Mapping) or not isinstance(data.get("prompt_tokens"), int):
        return None
    return Usage(data["prompt_tokens"], int(data.get("completion_tokens") or 0))


def _reasoning(message: Mapping[str, Any]) -> str | None:
    return message.get("reasoning_content") or message.get("reasoning") or None


def _sampling(request: ChatRequest | GenerateRequest) -> dict[str, Any]:
    temperature = request.temperature
    if temperature is None:
        # As under Transformers: greedy, unless only top_p was given.
        temperature = 0.0 if request.top_p is None else 1.0
    found: dict[str, Any] = {"temperature": temperature}
    if request.max_tokens is not None:
        found["max_tokens"] = request.max_tokens
    if request.top_p is not None:
        found["top_p"] = request.top_p
    if request.stop:
        found["stop"] = list(request.stop)
    if request.seed is not None:
        found["seed"] = request.seed
    return found | _extra(request.extra)


def _extra(extra: Mapping[str, Any]) -> dict[str, Any]:
    own = sorted(OWN & extra.keys())
    if own:
        raise BadInput(f"extra has {', '.join(own)}, which the verb itself writes; leave it out, or use request()")
    return dict(extra)


def _refuse_remote(messages: tuple[Mapping[str, Any], ...]) -> None:
    """An engine would fetch a URL itself, past every guard of ours: media come inside the message.

    Wherever it stands in a part that isn't text: servers know more kinds of parts than we do.
    """
    for place, message in enumerate(messages):
        content = message.get("content")
        for part in content if isinstance(content, (list, tuple)) else ():
            if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
                raise BadInput(f"messages[{place}] has a content part without a type")
            for name, text in _strings("", {name: it for name, it in part.items() if name not in ("type", "text")}):
                if names_remote(text) and not (name == SOUND and is_base64(text)):
                    raise BadInput(
                        f"messages[{place}]: {part['type']} names {_short(text)}, which isn't fetched; send the bytes "
                        "as a data: URL"
                    )


def names_remote(text: str) -> bool:
    """Whether a text is a URL that a server would fetch, or a file's."""
    return _REMOTE.match(text) is not None


def is_base64(text: str) -> bool:
    """Whether it is nothing but base64's letters. An MP3's begins with ``//``, as a URL without a scheme does."""
    return _BASE64.fullmatch(text) is not None


def _strings(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every text in it, with the names of the last two objects that it stands in."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        outer = name.rpartition(".")[2]
        for inner, item in value.items():
            yield from _strings(f"{outer}.{inner}", item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(name, item)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 600 else text[:597] + "..."
