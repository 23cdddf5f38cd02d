"""The verbs a caller speaks: arguments checked and turned into requests, the same for a handle and a lease."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from taskrouter.backends.calls import with_limits
from taskrouter.errors import BadInput
from taskrouter.manager.inputs import inputs_of
from taskrouter.manager.pointing import boxes_of, points_of
from taskrouter.manager.streams import Stream
from taskrouter.verbs import (
    ChatAnswer,
    ChatRequest,
    ClassifyRequest,
    Depth,
    DepthRequest,
    Detection,
    DetectRequest,
    Embeddings,
    EmbedRequest,
    GenerateAnswer,
    GenerateRequest,
    Label,
    RawRequest,
    Region,
    SegmentRequest,
    Track,
    TrackRequest,
    TranscribeRequest,
    Transcript,
)

ROLES = ("system", "user", "assistant", "tool", "developer")


class Verbs:
    """What can be asked. Each raises ``UnsupportedVerb`` (before any load) where the option can't do it."""

    __slots__ = ()

    async def _ask(self, verb: str, request: Any) -> Any:
        raise NotImplementedError

    def _stream(self, verb: str, request: Any) -> Stream:
        raise NotImplementedError

    def _media_limits(self) -> Any:
        raise NotImplementedError

    async def ask(self, verb: str, request: Any) -> Any:
        """Ask a verb that only a plug-in's models know: its request and its answer are the plug-in's own.

        A field ``limits`` of the request that is ``None`` is told the limits its media are to be read under. Raises
        ``UnsupportedVerb`` for a verb the model doesn't know, ``BadInput`` for one that has a method here.
        """
        if hasattr(Verbs, verb):
            raise BadInput(f"{verb} has a method of its own: await model.{verb}(…)")
        return await self._ask(verb, with_limits(request, self._media_limits()))

    async def chat(
        self,
        messages: Iterable[Mapping[str, Any]] | str,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Iterable[str] = (),
        seed: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ChatAnswer:
        """Answer a conversation: OpenAI-style messages, or one string as the user's message.

        Greedy unless ``temperature`` is above 0; ``max_tokens`` bounds the answer. Raises ``BadInput`` for messages or
        numbers that make no sense, and what ``get_model`` raises. ``extra`` is for what only some backends know
        (``top_k``, ``repetition_penalty``); one that doesn't know it refuses.
        """
        request = chat_request(messages, max_tokens, temperature, top_p, stop, seed, extra)
        answer = await self._ask("chat", replace(request, limits=self._media_limits()))
        assert isinstance(answer, ChatAnswer), answer
        return answer

    def stream_chat(
        self,
        messages: Iterable[Mapping[str, Any]] | str,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Iterable[str] = (),
        seed: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Stream:
        """The same answer in pieces: an async iterator of ``ChatChunk``, best used as a context manager."""
        request = chat_request(messages, max_tokens, temperature, top_p, stop, seed, extra)
        return self._stream("stream_chat", replace(request, limits=self._media_limits()))

    async def generate(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Iterable[str] = (),
        seed: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> GenerateAnswer:
        """Go on with a text; no chat template. The arguments are those of ``chat``."""
        if not isinstance(prompt, str) or not prompt:
            raise BadInput(f"prompt is {type(prompt).__name__}; it must be a text that isn't empty")
        stops = _check_sampling(max_tokens, temperature, top_p, stop, seed)
        request = GenerateRequest(prompt, max_tokens, temperature, top_p, stops, seed, dict(extra or {}))
        answer = await self._ask("generate", request)
        assert isinstance(answer, GenerateAnswer), answer
        return answer

    async def embed(self, inputs: Any, *, extra: Mapping[str, Any] | None = None) -> Embeddings:
        """One vector for each input: a text or a picture, or a list of them.

        A ``str`` is always a text. A picture is a ``pathlib.Path``, bytes, a binary file object, a PIL image, an array,
        or a content part ``{"type": "image_url", "image_url": {"url": …}}``, for models that have texts and pictures
        in one space (CLIP, SigLIP). Raises ``BadInput`` for what is neither, ``UnsupportedInput`` where the model
        takes texts only.
        """
        request = EmbedRequest(inputs_of(inputs), dict(extra or {}), self._media_limits())
        answer = await self._ask("embed", request)
        assert isinstance(answer, Embeddings), answer
        return answer

    async def transcribe(
        self,
        audio: Any,
        *,
        language: str | None = None,
        prompt: str | None = None,
        sampling_rate: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Transcript:
        """What is said in a sound file: a path, bytes, a binary file object or a ``data:`` URL; or, for a model in this
        process, in an array of samples with its ``sampling_rate`` in Hz.

        ``language`` is a code such as ``en``, ``prompt`` a text that goes before it. Raises ``BadInput`` for what can't
        be read.
        """
        request = TranscribeRequest(
            audio, language, prompt, dict(extra or {}), self._media_limits(), sampling_rate=sampling_rate
        )
        answer = await self._ask("transcribe", request)
        assert isinstance(answer, Transcript), answer
        return answer

    async def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Call the model's own server: POST this JSON body (``None``: GET) to this path; answers its JSON.

        For what a server can do beside the verbs (``/v1/rerank``, ``/tokenize``). Raises ``UnsupportedVerb`` for a
        model that no server serves, ``BadInput`` where the server refuses the body.
        """
        return await self._ask("request", raw_request(path, body))

    def stream_request(self, path: str, body: Mapping[str, Any]) -> Stream:
        """The same, for an answer in server-sent events: an async iterator of their parsed data, without ``[DONE]``."""
        return self._stream("stream_request", raw_request(path, body))

    async def classify(
        self, input: Any, *, top_k: int = 5, sampling_rate: int | None = None, labels: Iterable[str] = ()
    ) -> tuple[Label, ...]:
        """The best ``top_k`` labels of an image, a sound or a video, most probable first.

        ``input`` is a path, bytes, a file object, a ``data:`` URL, a PIL image, or an array (with its
        ``sampling_rate`` in Hz for sound); of a video some frames are looked at, evenly spread. ``labels``: choose
        among these only; a zero-shot model (CLIP, SigLIP) needs them and takes any words, another takes those it was
        trained for. Raises ``BadInput`` for what can't be read, and for labels the model can't tell.
        """
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise BadInput(f"top_k is {top_k!r}; it must be a whole number, 1 or more")
        request = ClassifyRequest(input, top_k, sampling_rate, self._media_limits(), _labels(labels))
        return tuple(await self._ask("classify", request))

    async def detect(self, image: Any, *, labels: Iterable[str] = (), threshold: float = 0.5) -> tuple[Detection, ...]:
        """The objects in an image that the model is at least so sure of (0 to 1), surest first, boxes in its pixels.

        ``image`` is a path, bytes, a file object, a ``data:`` URL, a PIL image, or an array. ``labels``: look for these
        only; a zero-shot model (OWLv2, Grounding DINO) needs them and takes any words, another takes those it was
        trained for. Raises ``BadInput`` for what can't be read, and for labels the model can't tell.
        """
        _check_number("threshold", threshold, 0, 1)
        request = DetectRequest(image, _labels(labels), threshold, self._media_limits())
        return tuple(await self._ask("detect", request))

    async def track(
        self, video: Any, *, labels: Iterable[str] = (), threshold: float = 0.5, fps: float = 10.0
    ) -> tuple[Track, ...]:
        """The objects of a video, each with an id of its own and where it is, frame by frame.

        ``video`` is a path, bytes, a file object or a ``data:`` URL, looked at ``fps`` times a second; an object has to
        overlap with itself from one look to the next, so what is fast wants more. ``labels`` and ``threshold`` are
        those of ``detect``. Raises ``BadInput`` for what can't be read or has no pictures, ``MediaTooLarge`` for more
        frames than ``media.max_frames``.
        """
        _check_number("threshold", threshold, 0, 1)
        _check_number("fps", fps, 0, 1000)
        if not fps:
            raise BadInput("fps is 0; it must be a number above 0")
        request = TrackRequest(video, _labels(labels), threshold, fps, self._media_limits())
        return tuple(await self._ask("track", request))

    async def segment(
        self,
        image: Any,
        *,
        points: Iterable[Any] = (),
        boxes: Iterable[Any] = (),
        labels: Iterable[str] = (),
        threshold: float | None = None,
    ) -> tuple[Region, ...]:
        """The regions of an image: a mask of its pixels each, with the box that holds it.

        ``image`` is a path, bytes, a file object, a ``data:`` URL, a PIL image, or an array. A model with labels
        (Mask2Former, SegFormer) finds what it knows, surest or largest first: only these ``labels``, only what scores
        ``threshold`` or more (0.5, where it has scores). One that is pointed at things (SAM, SAM 2) needs ``points`` or
        ``boxes``, in pixels of the upright image, and answers one region for each, in order. An item of ``points`` is
        ``(x, y)``, or a list of them for one object, with a third part ``False`` for one that is beside it. Raises
        ``BadInput`` for what can't be read, what lies outside, or what such a model needs, ``UnsupportedInput`` for
        what it doesn't take.
        """
        _check_number("threshold", threshold, 0, 1)
        request = SegmentRequest(
            image, points_of(points), boxes_of(boxes), _labels(labels), threshold, self._media_limits()
        )
        return tuple(await self._ask("segment", request))

    async def depth(self, image: Any) -> Depth:
        """How far away each pixel of an image is: float32, height × width of the upright image, finite.

        ``image`` is a path, bytes, a file object, a ``data:`` URL, a PIL image, or an array. The answer's ``unit``
        says whether its values are metres. Raises ``BadInput`` for what can't be read.
        """
        answer = await self._ask("depth", DepthRequest(image, self._media_limits()))
        assert isinstance(answer, Depth), answer
        return answer


def chat_request(
    messages: Iterable[Mapping[str, Any]] | str,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    stop: str | Iterable[str] = (),
    seed: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ChatRequest:
    """Check a chat call. Raises ``BadInput``."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping) or not isinstance(messages, Iterable):
        raise BadInput(f"messages is {type(messages).__name__}; it must be a list of messages, or one string")
    checked = tuple(messages)
    if not checked:
        raise BadInput("messages is empty; give at least one, such as {'role': 'user', 'content': '…'}")
    for place, message in enumerate(checked):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES or "content" not in message:
            raise BadInput(f"messages[{place}] must be a mapping with a role ({', '.join(ROLES)}) and a content")
        if not _is_content(message["content"]):
            raise BadInput(f"messages[{place}].content must be a text, or a list of parts, each with a type")
    stops = _check_sampling(max_tokens, temperature, top_p, stop, seed)
    return ChatRequest(checked, max_tokens, temperature, top_p, stops, seed, dict(extra or {}))


def _is_content(content: Any) -> bool:
    if content is None or isinstance(content, str):
        return True
    if not isinstance(content, list | tuple):
        return False
    typed = (isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in content)
    return all(typed) and all(isinstance(part.get("text"), str) for part in content if part["type"] == "text")


def raw_request(path: str, body: Mapping[str, Any] | None) -> RawRequest:
    """Check a call to a model's own server. Raises ``BadInput``."""
    if not isinstance(path, str) or not path.startswith("/") or path.startswith("//"):
        raise BadInput(f"path is {path!r}; it must begin with one /, such as /v1/rerank")
    if body is not None and not isinstance(body, Mapping):
        raise BadInput(f"body is {type(body).__name__}; it must be a mapping, which is sent as JSON")
    return RawRequest(path, None if body is None else dict(body))


def _check_sampling(
    max_tokens: int | None, temperature: float | None, top_p: float | None, stop: str | Iterable[str], seed: int | None
) -> tuple[str, ...]:
    _check_number("max_tokens", max_tokens, 1, None)
    _check_number("temperature", temperature, 0, None)
    _check_number("top_p", top_p, 0, 1)
    _check_number("seed", seed, None, None)
    if stop is not None and not isinstance(stop, Iterable):
        raise BadInput(f"stop is {stop!r}; it must be one or several non-empty strings")
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(text, str) and text for text in stops):
        raise BadInput(f"stop is {stop!r}; it must be one or several non-empty strings")
    return stops


def _labels(labels: Iterable[str]) -> tuple[str, ...]:
    found = tuple(labels) if isinstance(labels, Iterable) and not isinstance(labels, str) else None
    if found is None or not all(isinstance(label, str) and label.strip() for label in found):
        raise BadInput(f"labels is {labels!r}; it must be a list of names that aren't empty")
    return tuple(dict.fromkeys(found))


def _check_number(name: str, value: float | None, least: float | None, most: float | None) -> None:
    if value is None:
        return
    whole = name in ("max_tokens", "seed")
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and value == value
    if not right or (least is not None and value < least) or (most is not None and value > most):
        bounds = f" from {least} to {most}" if most is not None else f", {least} or more" if least is not None else ""
        raise BadInput(f"{name} is {value!r}; it must be a {'whole ' if whole else ''}number{bounds}")


def check_bounds(timeout: float | None, priority: int | None) -> None:
    """Check how long a caller would wait (seconds) and how much it matters (-1000 to 1000). Raises ``BadInput``."""
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (number and 0 <= timeout < inf):
        raise BadInput(f"timeout is {timeout!r}; it must be a number of seconds, 0 or more")
    if priority is not None and (isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > 1000):
        raise BadInput(f"priority is {priority!r}; it must be a whole number from -1000 to 1000")
