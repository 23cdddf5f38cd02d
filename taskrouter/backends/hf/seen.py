"""The pictures and videos of a conversation: found in its content parts, read, and handed to the model's processor.

A video goes as some of its frames, evenly spread, each a picture or all in one: so every model that takes pictures
takes videos, and none of Transformers' video readers is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taskrouter.backends.hf.arguments import Arguments
from taskrouter.errors import BadInput, MediaTooLarge, UnsupportedInput
from taskrouter.media.image import load_image
from taskrouter.media.limits import MediaLimits
from taskrouter.media.sheet import columns, filled, tiled
from taskrouter.media.video import load_video

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_SIDE = 1536
"""Frames, or the sheet of them, are scaled down to about so many pixels; processors make less of them."""

_ALL_PIXELS = 8
"""All pictures of a conversation together may have so many times the pixels that one may have."""


def with_pictures(
    messages: Sequence[Mapping[str, Any]], limits: MediaLimits, stop: threading.Event, arguments: Arguments
) -> list[dict[str, Any]]:
    """Messages whose contents are lists of parts as processors take them: texts, and pictures that are read.

    ``arguments`` say how videos are shown. Blocks while it reads; of no use once ``stop`` is set. Raises ``BadInput``
    for what can't be read, ``MediaTooLarge`` for what is over a limit alone or together, ``UnsupportedInput`` for parts
    of other kinds.
    """
    pixels = number = 0
    read = []
    for index, message in enumerate(messages):
        parts: list[dict[str, Any]] = []
        for part in _parts(f"message {index}", message.get("content"), limits, arguments):
            if stop.is_set():
                return []
            parts.append(part)
            if part["type"] == "image":
                number += 1
                if number > limits.max_frames:
                    raise MediaTooLarge(
                        f"the conversation has more than the {limits.max_frames:,} pictures, those of videos among "
                        "them, that media.max_frames allows: give fewer, or raise the limit."
                    )
                pixels += part["image"].width * part["image"].height
                if pixels > _ALL_PIXELS * limits.max_pixels:
                    raise MediaTooLarge(
                        f"the pictures together have more than {_ALL_PIXELS} times the {limits.max_pixels:,} pixels "
                        "that media.max_pixels allows for one: give fewer or smaller ones, or raise the limit."
                    )
        read.append({**message, "content": parts})
    return read


def _parts(where: str, content: Any, limits: MediaLimits, arguments: Arguments) -> Iterator[dict[str, Any]]:
    if isinstance(content, str):
        yield {"type": "text", "text": content}
        return
    if not isinstance(content, (list, tuple)):
        raise BadInput(f"{where}: content wants text or a list of parts, not {type(content).__name__}.")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind == "text" and isinstance(part.get("text"), str):
            yield {"type": "text", "text": part["text"]}
        elif kind == "image_url":
            yield {"type": "image", "image": load_image(_source(where, part, kind), limits)}
        elif kind == "video_url":
            source = _source(where, part, kind)
            yield from ({"type": "image", "image": picture} for picture in _shown(source, limits, arguments))
        else:
            raise UnsupportedInput(f"{where} has a part of type {kind!r}; this model takes text, images and videos.")


def _shown(source: Any, limits: MediaLimits, arguments: Arguments) -> Sequence[Image]:
    places = arguments.video_frames
    count = min(places, limits.max_frames)
    if arguments.video_layout == "frames":
        return load_video(source, limits, count=count, side=LONGEST_SIDE).frames
    # A sheet has all its places filled, so that where a frame stands says when it is.
    return [tiled(filled(load_video(source, limits, count=count, side=LONGEST_SIDE // columns(places)), places))]


def _source(where: str, part: Mapping[str, Any], kind: str) -> Any:
    """What the part points at: the OpenAI API's ``{"url": …}``, or the thing itself (a path, bytes, a picture)."""
    held = part.get(kind)
    source = held.get("url") if isinstance(held, Mapping) else held
    if source is None or (isinstance(source, str) and not source):
        raise BadInput(f"{where} has a part of type {kind!r} with nothing in it: write {kind}: {{url: …}}.")
    return source
