"""Media of a conversation, put into it as ``data:`` URLs: an engine is given bytes, whatever its caller had.

Paths, bytes, file objects, pictures and arrays are read here, under the file's ``media`` limits, and so are http(s)
URLs where the file allows them: an engine would fetch those itself, past every guard.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from taskrouter.demands import KIND_OF_PART
from taskrouter.media.limits import MediaLimits, opened
from taskrouter.verbs import ChatRequest

_MEDIA = ("image_url", "audio_url", "video_url")
_BEGINNINGS = (
    (0, b"\x89PNG", "image/png"), (0, b"\xff\xd8\xff", "image/jpeg"), (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"), (0, b"BM", "image/bmp"), (8, b"WAVE", "audio/wav"), (8, b"AVI ", "video/x-msvideo"),
    (0, b"fLaC", "audio/flac"), (0, b"OggS", "audio/ogg"), (0, b"ID3", "audio/mpeg"), (4, b"ftyp", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
)  # fmt: skip
"""Where files of each type have what."""


def is_needed(request: Any) -> bool:
    """Whether something in a conversation isn't inside it yet. Quick."""
    return isinstance(request, ChatRequest) and any(
        not _is_inside(_source(part), request.limits) for part in _media_of(request)
    )


def inlined(request: ChatRequest) -> ChatRequest:
    """The same conversation with all media inside. Blocks while it reads.

    Raises ``BadInput`` for what can't be read, ``MediaTooLarge`` for what is over a limit.
    """
    limits = request.limits or MediaLimits()
    return replace(request, messages=tuple(_message(message, limits) for message in request.messages))


def _message(message: Mapping[str, Any], limits: MediaLimits) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return message
    return {**message, "content": [_part(part, limits) for part in content]}


def _part(part: Any, limits: MediaLimits) -> Any:
    if not _is_medium(part) or _is_inside(_source(part), limits):
        return part
    held = part[part["type"]]
    url = _url(_source(part), KIND_OF_PART[part["type"]], limits)
    return {**part, part["type"]: {**(held if isinstance(held, Mapping) else {}), "url": url}}


def _media_of(request: ChatRequest) -> Iterator[Mapping[str, Any]]:
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            yield from (part for part in content if _is_medium(part))


def _is_medium(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in _MEDIA and part.get(part["type"]) is not None


def _source(part: Mapping[str, Any]) -> Any:
    held = part[part["type"]]
    return held.get("url") if isinstance(held, Mapping) else held


def _is_inside(source: Any, limits: MediaLimits | None) -> bool:
    """What is a ``data:`` URL, or is refused further on: a URL that may not be fetched, or nothing at all."""
    if source is None:
        return True
    if not isinstance(source, str):
        return False
    start = source.lstrip()[:8].lower()
    if start.startswith(("http://", "https://")):
        return not (limits is not None and limits.remote)
    return not source or start.startswith(("data:", "file:", "//"))


def _url(source: Any, kind: str, limits: MediaLimits) -> str:
    in_a_file = isinstance(source, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(source, "read")
    if kind == "image" and not in_a_file:
        data = _drawn(source, limits)
    else:
        with opened(source, limits, what=kind) as file:
            data = file.file.read()
    return f"data:{_type_of(data, kind)};base64,{base64.b64encode(data).decode()}"


def _drawn(source: Any, limits: MediaLimits) -> bytes:
    """A picture or an array, as a PNG file."""
    from taskrouter.media.image import load_image

    written = io.BytesIO()
    load_image(source, limits).save(written, "PNG")
    return written.getvalue()


def _type_of(data: bytes, kind: str) -> str:
    for place, beginning, name in _BEGINNINGS:
        if data[place : place + len(beginning)] == beginning:
            return name
    return f"{kind}/octet-stream"
