"""OpenAI, and every server that speaks its API, through the ``openai`` SDK."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from taskrouter.backends.engines import openai as words
from taskrouter.backends.external import failures
from taskrouter.backends.external.base import Call, Endpoint, Takes
from taskrouter.backends.external.content import check, parts_of, with_frames
from taskrouter.backends.external.sdk import SDKConnection
from taskrouter.backends.external.sound import sound_file, transcript_of
from taskrouter.errors import MissingDependency, UnsupportedVerb
from taskrouter.verbs import ChatAnswer, ChatRequest, EmbedRequest, GenerateRequest, TranscribeRequest, Transcript

KEY_ENV = "OPENAI_API_KEY"
OWN = "https://api.openai.com"
_VERBS = frozenset({"chat", "stream_chat", "generate", "embed", "transcribe"})
_IMAGES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
_PATHS = re.compile(r"/(chat/completions|completions|embeddings|audio/transcriptions|responses)/?$")
_COMPATIBLE = Takes(_VERBS, frozenset({"image", "audio", "video", "document"}), most_image_bytes=50 << 20)
"""Of a server nobody knows: it says itself what it takes."""
_OPENAI = Takes(
    _VERBS, frozenset({"image", "document"}), _IMAGES,
    most_images=500, most_image_bytes=50 << 20, most_request_bytes=70 << 20,
)  # fmt: skip
_HEARS = Takes(
    _VERBS, frozenset({"audio"}), audio_types=frozenset({"audio/wav", "audio/mpeg"}), most_request_bytes=70 << 20
)


class OpenAIProvider:
    """``provider: openai``."""

    key_env = KEY_ENV

    def takes(self, model_id: str) -> Takes:
        return _HEARS if "audio" in model_id else _OPENAI

    def base_url(self, api_endpoint: str) -> str:
        base = _PATHS.sub("", api_endpoint.rstrip("/"))
        return f"{base}/v1" if base == OWN else base

    def connect(self, endpoint: Endpoint) -> OpenAIConnection:
        return OpenAIConnection(endpoint)


class OpenAIConnection(SDKConnection):
    """One client of OpenAI, or of a server that speaks its API."""

    key_env = KEY_ENV

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise MissingDependency("provider openai needs its SDK: pip install 'taskrouter[openai]'") from error
        super().__init__(openai, openai.AsyncOpenAI, endpoint.base_url or f"{OWN}/v1", endpoint)
        self._is_openai = endpoint.base_url is None or endpoint.base_url.startswith(OWN)

    async def _answer(self, verb: str, request: Any, call: Call) -> Any:
        if isinstance(request, TranscribeRequest):
            return await self._transcribe(request, call)
        return await super()._answer(verb, request, call)

    def _written(self, verb: str, request: Any, call: Call) -> tuple[str, dict[str, Any]]:
        if isinstance(request, ChatRequest):
            takes = (OpenAIProvider().takes(call.model_id)) if self._is_openai else _COMPATIBLE
            request = _checked(request, call, takes)
            if self._is_openai:
                request = replace(request, messages=tuple(map(_own_fields, request.messages)))
        elif not isinstance(request, (GenerateRequest, EmbedRequest)):
            raise UnsupportedVerb(f"{call.who} can't {verb}; it can: {', '.join(sorted(_VERBS))}")
        path, body = words.body_of(verb, request, call.model_id)
        assert body is not None, path
        if getattr(request, "temperature", None) is None and "temperature" not in request.extra:
            body.pop("temperature", None)  # models that reason take none
        if self._is_openai and path == words.CHAT and "max_tokens" in body and "max_tokens" not in request.extra:
            body["max_completion_tokens"] = body.pop("max_tokens")
        if path == words.EMBEDDINGS:
            body.setdefault("encoding_format", "float")
        return path.removeprefix("/v1"), body

    def _read(self, verb: str, request: Any, data: dict[str, Any], call: Call) -> Any:
        found = words.answer_of(verb, data, call.who)
        if isinstance(request, EmbedRequest) and len(found.vectors) != len(request.inputs):
            raise failures.nonsense(call, f"{len(found.vectors)} vectors for {len(request.inputs)} texts")
        if isinstance(found, ChatAnswer) and (refusal := data["choices"][0]["message"].get("refusal")):
            return replace(found, text=found.text or str(refusal), finish_reason="content_filter")
        return found

    async def _chunks(self, events: Any, call: Call) -> AsyncGenerator[Any, None]:
        chunks: Any = words.chunks_of(_with_refusals(events), call.who)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def _transcribe(self, request: TranscribeRequest, call: Call) -> Transcript:
        form: Any = "verbose_json" if "whisper" in call.model_id else "json"  # later models answer without segments
        said = {"language": request.language, "prompt": request.prompt}
        answer: Any = await self._client.audio.transcriptions.create(
            model=call.model_id,
            file=await asyncio.to_thread(sound_file, request, call.who),
            response_format=form,
            extra_body={**{name: value for name, value in said.items() if value is not None}, **request.extra},
            timeout=self._timeout(call),
        )
        if not isinstance(getattr(answer, "text", None), str):
            raise failures.nonsense(call, answer)
        # Without warnings: servers that nearly speak the API are many, and what they say is checked where it is read.
        return transcript_of(answer.model_dump(mode="json", exclude_unset=True, warnings=False))


def _checked(request: ChatRequest, call: Call, takes: Takes) -> ChatRequest:
    """The request, its media checked, and videos as frames where the model takes none."""
    messages = []
    every = []
    for place, message in enumerate(request.messages):
        parts = parts_of(message, f"messages[{place}]")
        kept = with_frames(parts, takes)
        every += kept
        if kept != parts:
            message = {**message, "content": [_part(part) for part in kept]}
        messages.append(message)
    check(call.who, every, takes)
    if messages == list(request.messages):
        return request
    return ChatRequest(
        tuple(messages), request.max_tokens, request.temperature, request.top_p, request.stop, request.seed,
        request.extra,
    )  # fmt: skip


def _own_fields(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message without what other providers want back with their tool calls: OpenAI refuses fields it doesn't know."""
    calls = message.get("tool_calls")
    if not isinstance(calls, (list, tuple)) or not all(isinstance(call, Mapping) for call in calls):
        return message
    kept = [{name: value for name, value in call.items() if name != "extra_content"} for call in calls]
    return {**message, "tool_calls": kept}


def _part(part: Any) -> dict[str, Any]:
    match part.kind:
        case "text":
            return {"type": "text", "text": part.text}
        case "audio":
            form = {"audio/wav": "wav", "audio/mpeg": "mp3"}.get(part.media_type, part.media_type.partition("/")[2])
            return {"type": "input_audio", "input_audio": {"data": part.data, "format": form}}
        case "document":
            return {"type": "file", "file": {"filename": part.name, "file_data": part.url}}
        case _:
            return {"type": f"{part.kind}_url", f"{part.kind}_url": {"url": part.url}}


async def _with_refusals(events: Any) -> AsyncGenerator[Any, None]:
    """Chunks as the API has them; a refusal, which comes in a field of its own, is the text."""
    refused = False
    async for data in events:
        choices = data.get("choices") if isinstance(data, Mapping) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        if isinstance(choice, dict):
            delta = choice.get("delta")
            if isinstance(delta, dict) and delta.get("refusal"):
                refused = True
                delta["content"] = (delta.get("content") or "") + str(delta["refusal"])
            if refused and choice.get("finish_reason"):
                choice["finish_reason"] = "content_filter"
        yield data
