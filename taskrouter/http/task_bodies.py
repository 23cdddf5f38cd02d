"""The arguments of each verb as the task API takes them: what is checked, and what the OpenAPI document says."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from taskrouter.http.forms import Upload

_BASE64 = {
    "type": "object", "properties": {"base64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["base64"], "additionalProperties": False,
}  # fmt: skip
_MEDIUM = {
    "anyOf": [
        {"type": "string", "minLength": 1, "description": "A data: URL; a path under media.roots; an http(s) URL where "
                                                          "media.remote allows it."},
        _BASE64,
    ]
}  # fmt: skip
_PART = {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"]}
_PICTURE = {**_PART, "properties": {"type": {"enum": ["text", "image_url"]}}}
_INPUT = {"anyOf": [{"type": "string"}, _BASE64, _PICTURE]}
_INPUTS = {"anyOf": [*_INPUT["anyOf"], {"type": "array", "items": _INPUT, "minItems": 1}]}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "user", "assistant", "tool", "developer"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": _PART}]},
    },
    "required": ["role", "content"],
}
_MESSAGES = {"anyOf": [{"type": "string"}, {"type": "array", "items": _MESSAGE, "minItems": 1}]}
_POINT = {
    "type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}, {"type": "boolean"}], "minItems": 2,
    "maxItems": 3,
}  # fmt: skip
_POINTS = {"type": "array", "items": {"anyOf": [_POINT, {"type": "array", "items": _POINT, "minItems": 1}]}}


def medium_of(value: Any) -> Any:
    """What a medium is sent as: a text (a data: URL, a path, a URL), bytes, or a file. Raises ``ValueError``."""
    if isinstance(value, dict) and value.keys() == {"base64"} and isinstance(value["base64"], str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"it is no valid base64 ({error})") from None
    if isinstance(value, Upload) or (isinstance(value, str) and value):
        return value
    raise ValueError('it must be a data: URL, a path, a URL, or {"base64": "…"}')


def _inputs(value: Any) -> Any:
    return [_input(each) for each in value] if isinstance(value, list) else _input(value)


def _input(value: Any) -> Any:
    if isinstance(value, (str, Upload)) or (isinstance(value, dict) and "base64" not in value):
        return value
    return medium_of(value)


def _given(value: Any) -> Any:
    return value


Medium = Annotated[Any, PlainValidator(medium_of), WithJsonSchema(_MEDIUM)]
Messages = Annotated[Any, PlainValidator(_given), WithJsonSchema(_MESSAGES)]
Inputs = Annotated[Any, PlainValidator(_inputs), WithJsonSchema(_INPUTS)]
Points = Annotated[Any, PlainValidator(_given), WithJsonSchema(_POINTS)]
Edges = Annotated[list[float], Field(min_length=4, max_length=4)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, pattern=r"\S")]
Text = Annotated[str, Field(min_length=1)]


class Body(BaseModel):
    """What all have in common: nothing is guessed, and nothing unknown is taken."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)

    def arguments(self) -> dict[str, Any]:
        """What was given, as arguments of the verb."""
        return {name: getattr(self, name) for name in self.model_fields_set if name not in ("verb", "stream")}


class Sampling(Body):
    """How a text is made."""

    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Share | None = None
    stop: Text | list[Text] | None = Field(None, description="Texts at which the answer ends.")
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    extra: dict[str, Any] | None = Field(None, description="What only some models know; one that doesn't refuses it.")


class ChatCall(Sampling):
    """Answer a conversation."""

    verb: Literal["chat"] | None = None
    messages: Messages = Field(description="OpenAI-style messages, or a text as the user's message.")
    stream: bool = Field(False, description="Answer in pieces, as server-sent events.")


class GenerateCall(Sampling):
    """Go on with a text."""

    verb: Literal["generate"] | None = None
    prompt: Text


class EmbedCall(Body):
    """Turn texts and pictures into vectors, one for each."""

    verb: Literal["embed"] | None = None
    inputs: Inputs = Field(description="A text or a picture, or a list of them.")
    extra: dict[str, Any] | None = None


class TranscribeCall(Body):
    """Write down what is said."""

    verb: Literal["transcribe"] | None = None
    audio: Medium
    language: str | None = Field(None, description="A code such as en.")
    prompt: str | None = Field(None, description="A text that goes before it, for names and spelling.")
    sampling_rate: Count | None = None
    extra: dict[str, Any] | None = None


class ClassifyCall(Body):
    """The best labels of an image, a sound or a video."""

    verb: Literal["classify"] | None = None
    input: Medium
    top_k: Count = 5
    sampling_rate: Count | None = None
    labels: list[Name] = Field(default_factory=list, description="Choose among these only.")


class DetectCall(Body):
    """The objects in an image."""

    verb: Literal["detect"] | None = None
    image: Medium
    labels: list[Name] = Field(default_factory=list, description="Look for these only.")
    threshold: Share = Field(0.5, description="How sure the model must be.")


class SegmentCall(Body):
    """The regions of an image, a mask each."""

    verb: Literal["segment"] | None = None
    image: Medium
    points: Points = Field(default_factory=list, description="Points of each object: [x, y], or a list of them.")
    boxes: list[Edges] = Field(default_factory=list, description="A box for each object: left, top, right, bottom.")
    labels: list[Name] = Field(default_factory=list)
    threshold: Share | None = None


class TrackCall(Body):
    """The objects of a video, each followed through it."""

    verb: Literal["track"] | None = None
    video: Medium
    labels: list[Name] = Field(default_factory=list)
    threshold: Share = 0.5
    fps: Annotated[float, Field(gt=0, le=1000)] = Field(10.0, description="How often a second it is looked at.")


class DepthCall(Body):
    """How far away each pixel of an image is."""

    verb: Literal["depth"] | None = None
    image: Medium


class RequestCall(Body):
    """Ask the model's own server what has no verb here, by one of the paths that only compute."""

    verb: Literal["request"] | None = None
    path: Text = Field(description="Such as /v1/rerank or /tokenize.")
    body: dict[str, Any] | None = Field(None, description="Sent as JSON, with the model's name; without one: a GET.")
    stream: bool = Field(False, description="It answers in server-sent events.")


CALLS: Mapping[str, type[Body]] = {
    "chat": ChatCall, "generate": GenerateCall, "embed": EmbedCall, "transcribe": TranscribeCall,
    "classify": ClassifyCall, "detect": DetectCall, "segment": SegmentCall, "track": TrackCall, "depth": DepthCall,
    "request": RequestCall,
}  # fmt: skip
MEDIA = frozenset({"image", "audio", "video", "input", "inputs"})
"""Arguments that may be files."""
