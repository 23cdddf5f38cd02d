"""What the server answers, as the library's own types."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping
from typing import Any

from taskrouter.backends.calls import installed_call, read
from taskrouter.errors import ServerUnreachable
from taskrouter.media.need import need
from taskrouter.verbs import (
    STREAMING_VERBS,
    Box,
    ChatAnswer,
    ChatChunk,
    Depth,
    Detection,
    Embeddings,
    GenerateAnswer,
    Label,
    Passed,
    Region,
    Routed,
    Segment,
    Sighting,
    Track,
    Transcript,
    Usage,
    Why,
)

_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, binascii.Error, OSError)
_WHY = {why.value: why for why in Why}


def answer_of(verb: str, data: Any, headers: Mapping[str, str], where: str) -> Any:
    """The answer to a verb. Raises ``ServerUnreachable`` for what is none; masks are unpacked, which takes a while."""
    try:
        return _READERS[verb](data["result"], _usage(data.get("usage")), routed_of(headers))
    except _UNREADABLE as error:
        raise _strange(where, verb, error) from error


def own_answer_of(verb: str, kind: type | None, data: Any, where: str) -> Any:
    """The answer to a verb of a plug-in's own that was asked with a request of this type; ``None``: with a mapping.

    Where that is what an installed plug-in declares, the answer is of the plug-in's type; else it is plain JSON. Blocks
    where plug-ins are imported. Raises ``ServerUnreachable`` for what is no answer.
    """
    try:
        call = None if kind is None else installed_call(verb, kind)
        return data["result"] if call is None else read(call, data["result"])
    except _UNREADABLE as error:
        raise _strange(where, verb, error) from error


def chunk_of(data: Any, where: str) -> ChatChunk:
    """One piece of a streamed answer. Raises ``ServerUnreachable`` for what is none."""
    try:
        usage, calls = _usage(data.get("usage")), tuple(data.get("tool_calls") or ())
        return ChatChunk(data.get("text") or "", data.get("finish_reason"), usage, calls, data.get("reasoning"))
    except _UNREADABLE as error:
        raise _strange(where, "chat", error) from error


def routed_of(headers: Mapping[str, str]) -> Routed | None:
    """Which option answered in place of others, and why those didn't; ``None`` where none was passed over."""
    option, reason = headers.get("x-taskrouter-option"), headers.get("x-taskrouter-reason", "")
    parts = [part.rpartition(": ") for part in reason.split("; ")]
    passed = tuple(Passed(name, _WHY[why], "") for name, _, why in parts if name and why in _WHY)
    return Routed(option, passed) if option and passed else None


def _strange(where: str, verb: str, error: Exception) -> ServerUnreachable:
    return ServerUnreachable(
        f"{where} answered {verb} with what can't be read ({type(error).__name__}: {error}): is it a taskrouter of the "
        "same version?"
    )


def _usage(data: Any) -> Usage | None:
    return None if data is None else Usage(int(data["prompt_tokens"]), int(data["completion_tokens"]))


def _box(data: Mapping[str, Any]) -> Box:
    return Box(*(float(data[edge]) for edge in Box._fields))


def _mask(data: Mapping[str, Any]) -> Any:
    """A mask, from its picture of one bit a pixel."""
    need("PIL.Image", "numpy", what="masks")
    import numpy as np
    import PIL.Image

    if not data["png"]:
        return np.zeros((data["height"], data["width"]), np.bool_)
    with PIL.Image.open(io.BytesIO(base64.b64decode(data["png"])), formats=["PNG"]) as picture:
        if picture.size != (data["width"], data["height"]):
            raise ValueError(f"a mask of {picture.size}, not {data['width']} × {data['height']}")
        return np.array(picture.convert("1"), dtype=np.bool_)


def _chat(data: Any, usage: Usage | None, routed: Routed | None) -> ChatAnswer:
    calls = tuple(data.get("tool_calls") or ())
    reasoning = data.get("reasoning")
    return ChatAnswer(data["text"], data["finish_reason"], usage, calls, reasoning, routed=routed)


def _generate(data: Any, usage: Usage | None, routed: Routed | None) -> GenerateAnswer:
    return GenerateAnswer(data["text"], data["finish_reason"], usage, routed=routed)


def _embed(data: Any, usage: Usage | None, routed: Routed | None) -> Embeddings:
    return Embeddings(tuple(tuple(map(float, row)) for row in data["vectors"]), usage, routed=routed)


def _transcribe(data: Any, usage: Usage | None, routed: Routed | None) -> Transcript:
    segments = tuple(Segment(each["start_s"], each["end_s"], each["text"]) for each in data.get("segments") or ())
    language, seconds = data.get("language"), data.get("duration_s")
    return Transcript(data["text"], language, seconds, segments, usage, routed=routed)


def _classify(data: Any, usage: Usage | None, routed: Routed | None) -> tuple[Label, ...]:
    return tuple(Label(each["label"], each["score"]) for each in data)


def _detect(data: Any, usage: Usage | None, routed: Routed | None) -> tuple[Detection, ...]:
    return tuple(Detection(each["label"], each["score"], _box(each["box"])) for each in data)


def _segment(data: Any, usage: Usage | None, routed: Routed | None) -> tuple[Region, ...]:
    return tuple(Region(each["label"], each["score"], _box(each["box"]), _mask(each["mask"])) for each in data)


def _track(data: Any, usage: Usage | None, routed: Routed | None) -> tuple[Track, ...]:
    return tuple(Track(each["id"], each["label"], tuple(map(_sighting, each["sightings"]))) for each in data)


def _sighting(data: Any) -> Sighting:
    mask = data.get("mask")
    seen = data["frame"], data["time_s"], _box(data["box"]), data["score"]
    return Sighting(*seen, None if mask is None else _mask(mask))


def _request(data: Any, usage: Usage | None, routed: Routed | None) -> Any:
    return data


def _depth(data: Any, usage: Usage | None, routed: Routed | None) -> Depth:
    need("numpy", what="depths")
    import numpy as np

    values = data["values"]
    if values["dtype"] != "float32":
        raise ValueError(f"values of {values['dtype']}")
    read = np.frombuffer(base64.b64decode(values["data"]), "<f4").astype(np.float32)
    return Depth(read.reshape(values["shape"]), data["unit"], routed)


_READERS: Mapping[str, Callable[[Any, Usage | None, Routed | None], Any]] = {
    "chat": _chat,
    "generate": _generate,
    "embed": _embed,
    "transcribe": _transcribe,
    "classify": _classify,
    "detect": _detect,
    "segment": _segment,
    "track": _track,
    "depth": _depth,
    "request": _request,
}
VERBS = frozenset(_READERS) | STREAMING_VERBS
"""What isn't a plug-in's own."""
