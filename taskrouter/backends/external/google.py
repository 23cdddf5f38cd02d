"""Google's Gemini API, through the ``google-genai`` SDK: OpenAI-style requests to its contents, its answers back."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from contextvars import ContextVar
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
    written,
)
from taskrouter.backends.external.google_answers import answer_of, chunks_of, plain
from taskrouter.backends.external.sdk import POOL_PART, BoundedConnection
from taskrouter.backends.external.sound import sound_file
from taskrouter.errors import (
    BadInput,
    MissingDependency,
    TaskRouterError,
    UnsupportedInput,
    UnsupportedVerb,
)
from taskrouter.verbs import ChatRequest, Embeddings, EmbedRequest, TranscribeRequest, Transcript

KEY_ENV = "GOOGLE_API_KEY"
OWN = "https://generativelanguage.googleapis.com"
_VERBS = frozenset({"chat", "stream_chat", "embed", "transcribe"})
TRANSCRIBE = "Transcribe this recording word for word. Answer with the transcript and nothing else."
_TAKES = Takes(
    _VERBS,
    frozenset({"image", "audio", "video", "document"}),
    frozenset({"image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"}),
    most_images=3600,
    most_image_bytes=20 << 20,
    most_request_bytes=20 << 20,
)
_PATHS = re.compile(r"(/(?P<version>v\d\w*))?(/models(/[^/]*)?)?/?$")


class GoogleProvider:
    """``provider: google``."""

    key_env = KEY_ENV

    def takes(self, model_id: str) -> Takes:
        return _TAKES

    def base_url(self, api_endpoint: str) -> str:
        return api_endpoint.rstrip("/")

    def connect(self, endpoint: Endpoint) -> GoogleConnection:
        return GoogleConnection(endpoint)


class GoogleConnection(BoundedConnection):
    """One client of the SDK, which retries nothing unless it is told to."""

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            from google import genai
            from google.genai import errors, types
        except ModuleNotFoundError as error:
            raise MissingDependency("provider google needs its SDK: pip install 'taskrouter[google]'") from error
        super().__init__(endpoint.api_key)
        self._errors, self._types = errors, types
        base, version = OWN, "v1beta"
        if endpoint.base_url:
            found = _PATHS.search(endpoint.base_url)
            base = endpoint.base_url[: found.start()] if found else endpoint.base_url
            version = (found["version"] if found else None) or version
        http = _http()
        limits = http.Limits(
            max_connections=endpoint.max_connections, max_keepalive_connections=endpoint.max_connections
        )
        self._connect_s = endpoint.connect_timeout_s
        # No redirects: the SDK's own headers, with the key in them, would go wherever the answer points.
        self._http = http.AsyncClient(
            limits=limits,
            follow_redirects=False,
            event_hooks={"request": [self._bounded], "response": [_remember]},
        )
        options = types.HttpOptions(base_url=base, api_version=version, httpx_async_client=self._http)
        self._client = genai.Client(api_key=endpoint.api_key or "none", vertexai=False, http_options=options)

    async def _answer(self, verb: str, request: Any, call: Call) -> Any:
        if isinstance(request, EmbedRequest):
            return await self._embed(request, call)
        if isinstance(request, TranscribeRequest):
            return await self._transcribe(request, call)
        body = await written(request, lambda read: self._body(verb, read, call))
        with _reading(call, []):
            answer = await self._client.aio.models.generate_content(**body)
        return answer_of(plain(answer), call)

    async def stream(self, verb: str, request: Any, call: Call) -> AsyncIterator[Any]:
        with self._typed(call):
            pieces: Any = None
            responses: list[Any] = []
            try:
                async with asyncio.timeout(call.timeout_s):
                    body = await written(request, lambda read: self._body(verb, read, call))
                    with _reading(call, responses):
                        pieces = await self._client.aio.models.generate_content_stream(**body)
                        # Some releases of the SDK ask only now.
                        first = await anext(pieces, None)
                async with aclosing(chunks_of(_after(first, pieces, call), call)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            finally:
                # The SDK can't close a stream: its generators are left to the garbage collector, which closes them in
                # no order, and may miss the connection. So that is closed here; read on, they fail and are at an end.
                for response in responses:
                    await response.aclose()
                with suppress(Exception):
                    async for _ in pieces:
                        pass

    async def _check(self, call: Call) -> None:
        await self._client.aio.models.list(config={"page_size": 1})

    async def close(self) -> None:
        await self._http.aclose()

    async def _bounded(self, request: Any) -> None:
        """The SDK has one bound for all steps of a request; connecting has its own."""
        bounds = request.extensions.get("timeout") or {}
        bounds["connect"] = min(bounds.get("connect") or self._connect_s, self._connect_s)
        if bounds.get("pool"):
            bounds["pool"] *= POOL_PART
        request.extensions["timeout"] = bounds

    async def _embed(self, request: EmbedRequest, call: Call) -> Embeddings:
        config: Any = {**request.extra, "http_options": {"timeout": int(call.timeout_s * 1000)}}
        texts: Any = request.texts(call.who)
        with _reading(call, []):
            answer = await self._client.aio.models.embed_content(model=call.model_id, contents=texts, config=config)
        found = answer.embeddings or []
        if len(found) != len(request.inputs):
            raise failures.nonsense(call, f"{len(found)} vectors for {len(request.inputs)} texts")
        return Embeddings(tuple(tuple(each.values or ()) for each in found), None, plain(answer))

    async def _transcribe(self, request: TranscribeRequest, call: Call) -> Transcript:
        """Its API has no call for this: its models are asked for it."""
        name, data = await asyncio.to_thread(sound_file, request, call.who)
        wish = TRANSCRIBE + (f" It is in the language {request.language!r}." if request.language else "")
        wish += f" What went before, for names and spelling: {request.prompt}" if request.prompt else ""
        sound = {"data": base64.b64encode(data).decode(), "format": name.rpartition(".")[2]}
        parts = ({"type": "text", "text": wish}, {"type": "input_audio", "input_audio": sound})
        asked = ChatRequest(({"role": "user", "content": parts},), extra=request.extra)
        answer = await self._answer("chat", asked, call)
        if answer.finish_reason != "stop":
            raise UnsupportedInput(f"{call.who} gave no whole transcript: it ended with {answer.finish_reason}")
        return Transcript(answer.text.strip(), request.language, None, (), answer.usage, answer.raw)

    def _body(self, verb: str, request: Any, call: Call) -> dict[str, Any]:
        if not isinstance(request, ChatRequest):
            raise UnsupportedVerb(f"{call.who} can't {verb}; it can: {', '.join(sorted(_VERBS))}")
        body = body_of(request, call)
        try:
            body["config"] = self._types.GenerateContentConfig(**body["config"])
        except ValueError as error:  # pydantic's is one
            raise BadInput(f"{call.who}: extra or sampling has what its API doesn't know: {error}") from error
        return body

    def _failure(self, error: Exception, call: Call) -> TaskRouterError:
        if isinstance(error, self._errors.APIError):
            headers = dict(getattr(error.response, "headers", None) or {})
            said = error.details
            if error.code == 400 and "API_KEY_INVALID" in json.dumps(said, default=str):
                return failures.of_status(call, 401, said, headers, key_env=call.key_env or KEY_ENV)
            return failures.of_status(call, int(error.code or 500), said, headers, key_env=call.key_env or KEY_ENV)
        if isinstance(error, self._errors.UnknownApiResponseError):
            return failures.nonsense(call, error)
        return failures.of_any(error, call)


_RESPONSES: ContextVar[list[Any] | None] = ContextVar("_RESPONSES", default=None)
"""Where the HTTP client puts the responses to what is being asked."""


@contextmanager
def _reading(call: Call, responses: list[Any]) -> Iterator[None]:
    """Collects the responses that come meanwhile. With one there, what the SDK stumbles over is the answer."""
    token = _RESPONSES.set(responses)
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        if not responses:
            raise
        raise failures.nonsense(call, repr(error)) from error
    except ValueError as error:
        if responses or "Validation" not in type(error).__name__:
            raise
        raise BadInput(f"{call.who}: its SDK can't read the request: {failures.words(str(error))}") from error
    finally:
        _RESPONSES.reset(token)


async def _remember(response: Any) -> None:
    if (kept := _RESPONSES.get()) is not None:
        kept.append(response)


async def _after(first: Any, pieces: Any, call: Call) -> AsyncGenerator[Any, None]:
    """All pieces of a stream, of which the first was read already."""
    if first is None:
        return
    yield first
    try:
        async for piece in pieces:
            yield piece
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise failures.nonsense(call, repr(error)) from error


def _http() -> Any:
    """The HTTP library that this release of the SDK takes a client of."""
    try:
        return importlib.import_module("httpx2")
    except ModuleNotFoundError:
        return importlib.import_module("httpx")


# --- requests ---------------------------------------------------------------------------------------------------------


def body_of(request: ChatRequest, call: Call) -> dict[str, Any]:
    """The arguments of ``generate_content``. Raises ``BadInput``."""
    system: list[str] = []
    contents: list[dict[str, Any]] = []
    every: list[Part] = []
    names: dict[str, str] = {}
    for place, message in enumerate(request.messages):
        where = f"messages[{place}]"
        parts = parts_of(message, where)
        every += parts
        role = role_of(message, where)
        if role in ("system", "developer"):
            system += only_text(call.who, parts, where)
            continue
        pieces = [_part(part) for part in parts]
        if role == "tool":
            identity = str(message.get("tool_call_id", ""))
            text = "".join(part.text for part in parts)
            answer = {"name": names.get(identity, identity), "response": {"result": text}}
            pieces = [{"function_response": answer}, *(_part(part) for part in parts if part.kind != "text")]
        for number, asked in enumerate(message.get("tool_calls") or ()):
            identity, name, given = arguments(asked, f"{where}.tool_calls[{number}]")
            names[identity] = name
            pieces.append({"function_call": {"name": name, "args": given}, **_signed(asked)})
        role = "model" if role == "assistant" else "user"
        if not pieces:
            raise BadInput(f"{where} is empty, which {call.who} doesn't take")
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += pieces
        else:
            contents.append({"role": role, "parts": pieces})
    check(call.who, every, _TAKES)
    known, extra = split_extra(request)
    sampling = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_output_tokens": request.max_tokens,
        "seed": request.seed,
        "stop_sequences": list(request.stop) or None,
        "system_instruction": "\n\n".join(system) or None,
    }
    config = {
        **{name: value for name, value in sampling.items() if value is not None},
        **_tools(known, call),
        **_schema(known.get("response_format"), call),
        **extra,
        "automatic_function_calling": {"disable": True},
        "http_options": {"timeout": int(call.timeout_s * 1000)},
    }
    return {"model": call.model_id, "contents": contents, "config": config}


def _signed(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A call's signature, which newer models want back with it; it stands where Google's OpenAI-like API has it."""
    try:
        signature = asked["extra_content"]["google"]["thought_signature"]
        return {"thought_signature": base64.urlsafe_b64decode(signature)}
    except (KeyError, TypeError, ValueError):
        return {}


def _part(part: Part) -> dict[str, Any]:
    if part.kind == "text":
        return {"text": part.text}
    return {"inline_data": {"mime_type": part.media_type, "data": base64.b64decode(part.data)}}


def _tools(known: Mapping[str, Any], call: Call) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        if known.get("tools"):
            functions = [tool["function"] for tool in known["tools"]]
            declared = [
                {
                    "name": function["name"],
                    "description": function.get("description", ""),
                    **({"parameters_json_schema": function["parameters"]} if function.get("parameters") else {}),
                }
                for function in functions
            ]
            found["tools"] = [{"function_declarations": declared}]
        choice = known.get("tool_choice")
        if isinstance(choice, str):
            mode = {"auto": "AUTO", "required": "ANY", "none": "NONE"}[choice]
            found["tool_config"] = {"function_calling_config": {"mode": mode}}
        elif choice is not None:
            allowed = [choice["function"]["name"]]
            found["tool_config"] = {"function_calling_config": {"mode": "ANY", "allowed_function_names": allowed}}
    except (KeyError, TypeError) as error:
        raise BadInput(f"{call.who}: tools and tool_choice aren't as the OpenAI API has them: {error!r}") from error
    return found


def _schema(form: Any, call: Call) -> dict[str, Any]:
    if form is None or (isinstance(form, Mapping) and form.get("type") == "text"):
        return {}
    try:
        match form["type"]:
            case "json_schema":
                schema = form["json_schema"]["schema"]
                return {"response_mime_type": "application/json", "response_json_schema": schema}
            case "json_object":
                return {"response_mime_type": "application/json"}
    except (KeyError, TypeError) as error:
        raise BadInput(f"{call.who}: response_format isn't as the OpenAI API has it: {error!r}") from error
    raise UnsupportedInput(f"{call.who} takes response_format json_schema, not {form['type']}")
