"""Media of a conversation, put into it: whoever serves it elsewhere is given bytes, whatever its caller had.

Paths, bytes, file objects, pictures and arrays are read here, under the file's ``media`` limits, and so are http(s)
URLs where the file allows them: a server would fetch those itself, past every guard.
"""

from __future__ import annotations

import base64
import io
import os
import wave
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from taskrouter.demands import KIND_OF_PART
from taskrouter.errors import BadInput
from taskrouter.media.limits import MediaLimits, opened
from taskrouter.media.showing import Showing, pictures_of
from taskrouter.verbs import ChatRequest


class _Place(NamedTuple):
    """Where a part holds its medium: the key inside, and whether that is written as a ``data:`` URL or as base64."""

    key: str
    as_url: bool = True


_PLACES: Mapping[str, _Place] = {
    "image_url": _Place("url"),
    "audio_url": _Place("url"),
    "video_url": _Place("url"),
    "input_audio": _Place("data", as_url=False),
    "file": _Place("file_data"),
}
_BEGINNINGS = (
    (0, b"\x89PNG", "image/png"), (0, b"\xff\xd8\xff", "image/jpeg"), (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"), (0, b"BM", "image/bmp"), (8, b"WAVE", "audio/wav"), (8, b"AVI ", "video/x-msvideo"),
    (0, b"fLaC", "audio/flac"), (0, b"OggS", "audio/ogg"), (0, b"ID3", "audio/mpeg"), (0, b"\xff\xfb", "audio/mpeg"),
    (4, b"ftyp", "video/mp4"), (0, b"\x1aE\xdf\xa3", "video/webm"), (0, b"%PDF", "application/pdf"),
)  # fmt: skip
"""Where files of each type have what."""
_FORMATS = {"mpeg": "mp3", "octet-stream": "wav"}
"""What ``input_audio`` calls a type of sound, where that isn't its name."""


def is_needed(request: Any, showing: Showing | None = None) -> bool:
    """Whether something in a conversation isn't as it has to go yet. Quick."""
    return isinstance(request, ChatRequest) and any(
        _goes_as_pictures(part, showing) or not _is_inside(part, request.limits) for part in _media_of(request)
    )


def inlined(request: ChatRequest, showing: Showing | None = None) -> ChatRequest:
    """The same conversation with all media inside. Blocks while it reads.

    With ``showing``, videos are pictures of them. Raises ``BadInput`` for what can't be read, ``MediaTooLarge`` for
    what is over a limit.
    """
    limits = request.limits or MediaLimits()
    return replace(request, messages=tuple(_message(message, limits, showing) for message in request.messages))


def _message(message: Mapping[str, Any], limits: MediaLimits, showing: Showing | None) -> Mapping[str, Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, (list, tuple)):
        return message
    return {**message, "content": [each for part in content for each in _parts(part, limits, showing)]}


def _parts(part: Any, limits: MediaLimits, showing: Showing | None) -> list[Any]:
    if not _is_medium(part):
        return [part]
    if showing is not None and _goes_as_pictures(part, showing):
        shown = pictures_of(_source(part), limits, showing)
        return [{"type": "image_url", "image_url": {"url": _data_url(_png(each), "image")}} for each in shown]
    if _is_inside(part, limits):
        return [part]
    name = part["type"]
    place, held, kind = _PLACES[name], _held(part), KIND_OF_PART[name]
    data = _read(_source(part), held, kind, limits)
    beside = {key: value for key, value in held.items() if key not in (place.key, "sampling_rate")}
    if place.as_url:
        return [{**part, name: {**beside, place.key: _data_url(data, kind)}}]
    form = _type_of(data, kind).partition("/")[2]
    written = {place.key: base64.b64encode(data).decode(), "format": _FORMATS.get(form, form)}
    return [{**part, name: {**beside, **written}}]


def _media_of(request: ChatRequest) -> Iterator[Mapping[str, Any]]:
    for message in request.messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)):
            yield from (part for part in content if _is_medium(part))


def _is_medium(part: Any) -> bool:
    if not isinstance(part, Mapping) or part.get("type") not in _PLACES:
        return False
    return _source(part) is not None


def _held(part: Mapping[str, Any]) -> Mapping[str, Any]:
    held = part.get(part["type"])
    return held if isinstance(held, Mapping) else {_PLACES[part["type"]].key: held}


def _source(part: Mapping[str, Any]) -> Any:
    return _held(part).get(_PLACES[part["type"]].key)


def _goes_as_pictures(part: Mapping[str, Any], showing: Showing | None) -> bool:
    return showing is not None and part["type"] == "video_url"


def _is_inside(part: Mapping[str, Any], limits: MediaLimits | None) -> bool:
    """What is a ``data:`` URL or base64, or is refused further on: a URL that may not be fetched, or nothing at all."""
    source = _source(part)
    if not isinstance(source, str):
        return False
    if not _PLACES[part["type"]].as_url:
        return True
    start = source.lstrip()[:8].lower()
    if start.startswith(("http://", "https://")):
        return not (limits is not None and limits.remote)
    return not source or start.startswith(("data:", "file:", "//"))


def _read(source: Any, held: Mapping[str, Any], kind: str, limits: MediaLimits) -> bytes:
    in_a_file = isinstance(source, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(source, "read")
    if kind == "image" and not in_a_file:
        from taskrouter.media.image import load_image

        return _png(load_image(source, limits))
    if kind == "audio" and hasattr(source, "__array__"):
        return _wav(source, held.get("sampling_rate"), limits)
    with opened(source, limits, what=kind) as file:
        return file.file.read()


def _png(picture: Any) -> bytes:
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def _wav(samples: Any, rate: Any, limits: MediaLimits) -> bytes:
    """An array as a WAV file of 16 bits, which everybody reads."""
    import numpy as np

    from taskrouter.media.audio import load_audio

    if not isinstance(rate, int) or isinstance(rate, bool) or rate < 1:
        raise BadInput("a sound is an array of samples: say what they were recorded at, sampling_rate (Hz).")
    mono = load_audio(samples, limits, sampling_rate=rate, source_rate=rate)
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(mono, -1, 1) * 32767).round().astype("<i2").tobytes())
    return written.getvalue()


def _data_url(data: bytes, kind: str) -> str:
    return f"data:{_type_of(data, kind)};base64,{base64.b64encode(data).decode()}"


def _type_of(data: bytes, kind: str) -> str:
    for place, beginning, name in _BEGINNINGS:
        if data[place : place + len(beginning)] == beginning:
            return name
    return f"{'application' if kind == 'document' else kind}/octet-stream"
