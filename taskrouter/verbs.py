"""Kinds, verbs, and what the verbs answer: the contract a caller sees, the same whichever option serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from taskrouter.errors import UnsupportedInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERBS_OF_KIND: Mapping[str, frozenset[str]] = {
    "chat": frozenset({"chat", "stream_chat"}),
    "generation": frozenset({"generate"}),
    "embedding": frozenset({"embed"}),
    "transcription": frozenset({"transcribe"}),
    "detection": frozenset({"detect"}),
    "image_classification": frozenset({"classify"}),
    "audio_classification": frozenset({"classify"}),
    "video_classification": frozenset({"classify"}),
    "segmentation": frozenset({"segment"}),
    "tracking": frozenset({"track"}),
    "depth": frozenset({"depth"}),
}
"""What a task of each kind can be asked."""

KINDS: tuple[str, ...] = tuple(VERBS_OF_KIND)

PASS_THROUGH = frozenset({"request", "stream_request"})
"""What a task of any kind can be asked where its model is served over HTTP: the server's own API, as it is."""

STREAMING_VERBS = frozenset({"stream_chat", "stream_request"})


class Why(Enum):
    """Why an option was passed over. The values are what traces and people see."""

    UNAVAILABLE = "unavailable"
    CANT_FIT = "cant_fit"
    COOLDOWN = "cooldown"
    BREAKER = "breaker_open"
    TOO_SLOW = "too_slow"
    COLD = "cold"
    RATE_LIMIT = "rate_limit"
    BUDGET = "budget_spent"
    UNABLE = "unable"
    AUTH = "auth"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    FAILED = "failed"
    NOT_READY = "not_ready"


@dataclass(frozen=True, slots=True)
class Passed:
    """An option that was passed over: why, in words, and the seconds after which asking it again makes sense."""

    option: str
    why: Why
    text: str
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return f"{self.option}: {self.why.value} ({self.text})"


@dataclass(frozen=True, slots=True)
class Routed:
    """Which option answered, and those that were passed over before it, in order."""

    option: str
    passed: tuple[Passed, ...] = ()


@dataclass(frozen=True, slots=True)
class Label:
    """One class and its probability, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written by one call."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """The text of a chat answer. ``finish_reason`` is ``stop``, ``length``, ``tool_calls`` or ``content_filter``, as in
    the OpenAI API; the last is a refusal, which is an answer and no failure.

    ``tool_calls`` are in that API's shape; ``reasoning`` is what the model thought aloud, where the server tells it
    apart. ``raw`` is the server's whole answer (logprobs, further choices), where there is a server. ``routed`` says
    which option answered, where the task has several to try.
    """

    text: str
    finish_reason: str = "stop"
    usage: Usage | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    reasoning: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    routed: Routed | None = None


@dataclass(frozen=True, slots=True)
class ChatChunk:
    """One piece of a streamed chat answer; the last one has the ``finish_reason`` and the usage.

    ``tool_calls`` are pieces too, in the OpenAI API's shape; ``raw`` is the server's chunk, where there is a server.
    """

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    reasoning: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat call, checked: OpenAI-style messages (each a mapping with ``role`` and ``content``) and sampling.

    ``extra`` is what only some backends know (``top_k``, ``repetition_penalty``); what one doesn't know it refuses.
    ``limits`` are the ``media.limits.MediaLimits`` that media in it are read under by models in this process.
    """

    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    limits: Any = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A completion call: text that goes on. Sampling and ``extra`` are as in ``ChatRequest``."""

    prompt: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenerateAnswer:
    """The text that a prompt went on with; the rest is as in ``ChatAnswer``."""

    text: str
    finish_reason: str = "stop"
    usage: Usage | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    routed: Routed | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture among texts: a path, bytes, a PIL image, …"""

    source: Any


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts, and pictures for models that take them, to turn into vectors, all of one length.

    ``limits`` are the ``media.limits.MediaLimits`` that pictures are read under.
    """

    inputs: tuple[str | Picture, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    limits: Any = None

    def texts(self, who: str) -> list[str]:
        """Its inputs, for models that take no other. Raises ``UnsupportedInput`` where there is a picture."""
        texts = [each for each in self.inputs if isinstance(each, str)]
        if len(texts) < len(self.inputs):
            raise UnsupportedInput(f"{who} embeds texts only: choose an option that takes pictures, such as CLIP.")
        return texts


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each input, in order: ``len(vectors)`` inputs × ``len(vectors[0])`` dimensions."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    routed: Routed | None = None


@dataclass(frozen=True, slots=True)
class TranscribeRequest:
    """A transcription call: ``audio`` is a path, bytes, a binary file object or a ``data:`` URL of a sound file; or
    an array of samples, recorded at ``sampling_rate`` (Hz).

    ``language`` is a code such as ``en``; ``prompt`` a text that goes before, for names and spelling. ``limits`` are
    the ``media.limits.MediaLimits`` the input is read under; ``None``: the backend's own.
    """

    audio: Any
    language: str | None = None
    prompt: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    limits: Any = None
    sampling_rate: int | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a transcript, in seconds from the beginning."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said. ``segments``, ``language`` and ``duration_s`` (seconds) where the model tells them."""

    text: str
    language: str | None = None
    duration_s: float | None = None
    segments: tuple[Segment, ...] = ()
    usage: Usage | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    routed: Routed | None = None


@dataclass(frozen=True, slots=True)
class RawRequest:
    """A JSON call to the model's own server: a path such as ``/v1/rerank``, and the body (``None``: a GET).

    A body without ``model`` gets the server's name of the model.
    """

    path: str
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """A classification call: ``input`` is a path, bytes, a PIL image or a float array; best ``top_k`` labels.

    ``sampling_rate`` (Hz) says what an array of samples was recorded at. ``labels`` are the only ones to choose from;
    empty: the model's own. ``limits`` are the ``media.limits.MediaLimits`` the input is read under; ``None``: the
    backend's own.
    """

    input: Any
    top_k: int = 5
    sampling_rate: int | None = None
    limits: Any = None
    labels: tuple[str, ...] = ()


class Box(NamedTuple):
    """A rectangle in pixels of the upright picture, from its left upper corner; fractions of a pixel are kept."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Detection:
    """One object: what it is, how sure the model is (0 to 1), and where."""

    label: str
    score: float
    box: Box


@dataclass(frozen=True, slots=True)
class DetectRequest:
    """A detection call: ``image`` is a path, bytes, a PIL image or an array; what scores ``threshold`` or more.

    ``labels`` are the only ones to look for; empty: all the model knows. ``limits`` are the
    ``media.limits.MediaLimits`` the image is read under; ``None``: the backend's own.
    """

    image: Any
    labels: tuple[str, ...] = ()
    threshold: float = 0.5
    limits: Any = None


@dataclass(frozen=True, slots=True)
class DepthRequest:
    """A depth call: ``image`` is a path, bytes, a PIL image or an array; ``limits`` as in ``DetectRequest``."""

    image: Any
    limits: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Depth:
    """How far away everything in a picture is: ``values`` has a row for each row of the upright picture.

    float32, height × width, finite. ``unit`` is ``m`` where the model was trained to tell metres; ``relative`` values
    only say which of two points is nearer, and by most models (DPT, Depth Anything) the nearer has the larger one.
    """

    values: NDArray[np.float32]
    unit: Literal["m", "relative"]
    routed: Routed | None = None


class Point(NamedTuple):
    """A place in pixels of the upright picture, from its left upper corner; ``on``: on the object, or beside it."""

    x: float
    y: float
    on: bool = True


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """A segmentation call: ``image`` is a path, bytes, a PIL image or an array.

    A model that is pointed at something gets ``points`` (those of each object together) or ``boxes`` (one for each
    object). Of one that has labels, ``labels`` are the only ones to answer with, and ``threshold`` is how sure it must
    be; ``None``: 0.5. ``limits`` as in ``DetectRequest``.
    """

    image: Any
    points: tuple[tuple[Point, ...], ...] = ()
    boxes: tuple[Box, ...] = ()
    labels: tuple[str, ...] = ()
    threshold: float | None = None
    limits: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A part of a picture: ``mask`` is true where it is, height × width of the upright picture; ``box`` just holds it.

    ``label`` is ``None`` where a model was pointed at it, ``score`` (0 to 1) where it doesn't say how sure it is. An
    empty mask has a box of no size at 0, 0.
    """

    label: str | None
    score: float | None
    box: Box
    mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TrackRequest:
    """A tracking call: ``video`` is a path, bytes, a file object or a ``data:`` URL, looked at ``fps`` times a second;
    or its pictures, so many a second. The rest is as in ``DetectRequest``.
    """

    video: Any
    labels: tuple[str, ...] = ()
    threshold: float = 0.5
    fps: float = 10.0
    limits: Any = None


class Sighting(NamedTuple):
    """An object in a frame that was looked at: its number and second, where, how sure (0 to 1), a ``Region``'s mask."""

    frame: int
    time_s: float
    box: Box
    score: float
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Track:
    """One object through a video, in order of time; ``label`` is what it was taken for most."""

    id: int
    label: str
    sightings: tuple[Sighting, ...]
