"""The pictures, videos and sounds of a conversation: found in its content parts, read, and put where the model's
processor takes them.
"""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskrouter.backends.hf.families import TAKES, Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.demands import KIND_OF_PART
from taskrouter.errors import BadInput, MediaTooLarge, UnsupportedInput
from taskrouter.media.audio import load_audio
from taskrouter.media.image import load_image
from taskrouter.media.limits import MediaLimits
from taskrouter.media.showing import pictures_of

_ALL_PIXELS = 8
"""All pictures of a conversation together may have so many times the pixels that one may have."""


def with_media(
    messages: Sequence[Mapping[str, Any]], parts: Parts, family: Family, limits: MediaLimits, stop: threading.Event
) -> list[dict[str, Any]]:
    """Messages whose contents are lists of parts as processors take them: texts, and media that are read.

    Blocks while it reads; of no use once ``stop`` is set. Raises ``BadInput`` for what can't be read, ``MediaTooLarge``
    for what is over a limit alone or together, ``UnsupportedInput`` for parts of other kinds.
    """
    reader, total, read = _Reader(parts, family, limits), _Total(limits), []
    for index, message in enumerate(messages):
        content: list[dict[str, Any]] = []
        for part in reader.parts(f"message {index}", message.get("content")):
            if stop.is_set():
                return []
            content.append(part)
            total.add(part)
        read.append({**message, "content": content})
    return read


class _Total:
    """What a conversation holds so far."""

    def __init__(self, limits: MediaLimits) -> None:
        self._limits = limits
        self._pictures = self._pixels = 0

    def add(self, part: Mapping[str, Any]) -> None:
        if part["type"] != "image":
            return
        self._pictures += 1
        self._pixels += part["image"].width * part["image"].height
        if self._pictures > self._limits.max_frames:
            raise MediaTooLarge(
                f"the conversation has more than the {self._limits.max_frames:,} pictures, those of videos among "
                "them, that media.max_frames allows: give fewer, or raise the limit."
            )
        if self._pixels > _ALL_PIXELS * self._limits.max_pixels:
            raise MediaTooLarge(
                f"the pictures together have more than {_ALL_PIXELS} times the {self._limits.max_pixels:,} pixels "
                "that media.max_pixels allows for one: give fewer or smaller ones, or raise the limit."
            )


class _Reader:
    """Content parts, read for one model."""

    def __init__(self, parts: Parts, family: Family, limits: MediaLimits) -> None:
        self._parts = parts
        self._takes = TAKES[family]
        self._limits = limits

    def parts(self, where: str, content: Any) -> Iterator[dict[str, Any]]:
        if isinstance(content, str):
            yield {"type": "text", "text": content}
            return
        if not isinstance(content, (list, tuple)):
            raise BadInput(f"{where}: content wants text or a list of parts, not {type(content).__name__}.")
        for part in content:
            yield from self._read(where, part)

    def _read(self, where: str, part: Any) -> Iterator[dict[str, Any]]:
        name = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        kind = KIND_OF_PART.get(str(name))
        if kind == "text" and isinstance(part.get("text"), str):
            yield {"type": "text", "text": part["text"]}
        elif kind not in self._takes:
            takes = {"image": "images", "video": "videos", "audio": "sounds"}
            can = " and ".join(takes[each] for each in self._takes)
            raise UnsupportedInput(f"{where} has a part of type {name!r}; this model takes text, {can}.")
        elif kind == "image":
            yield {"type": "image", "image": load_image(_held(where, part)[0], self._limits)}
        elif kind == "video":
            showing = self._parts.arguments.showing
            shown = pictures_of(_held(where, part)[0], self._limits, showing)
            yield from ({"type": "image", "image": picture} for picture in shown)
        else:
            yield {"type": "audio", "audio": self._heard(where, part)}

    def _heard(self, where: str, part: Mapping[str, Any]) -> Any:
        """The samples of a sound that the model hears all of: its extractor would cut off the rest."""
        extractor = self._parts.processor.feature_extractor
        rate, most_s = int(extractor.sampling_rate), int(extractor.chunk_length)
        source, inner = _held(where, part)
        if part["type"] == "input_audio" and isinstance(source, str):
            source = _decoded(where, source)
        recorded = inner.get("sampling_rate")
        if hasattr(source, "__array__") and recorded is None:
            raise BadInput(f"{where} has an array of samples: say what they were recorded at, sampling_rate (Hz).")
        samples = load_audio(source, self._limits, sampling_rate=rate, source_rate=recorded)
        if samples.size > most_s * rate:
            raise MediaTooLarge(
                f"{where}: the sound lasts {samples.size / rate:.1f} s, and this model hears {most_s} s at once: give "
                "a part of it."
            )
        return samples


def _held(where: str, part: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """What the part points at, as the OpenAI API has it (``{"url": …}``; of ``input_audio`` ``{"data": …}``) or by
    itself (a path, bytes, a picture); and what is said beside it.
    """
    name = part["type"]
    key = "data" if name == "input_audio" else "url"
    held = part.get(name)
    inner = held if isinstance(held, Mapping) else {key: held}
    source = inner.get(key)
    if source is None or (isinstance(source, str) and not source):
        raise BadInput(f"{where} has a part of type {name!r} with nothing in it: write {name}: {{{key}: …}}.")
    return source, inner


def _decoded(where: str, text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput(f"{where}: the data of input_audio is no base64: {error}.") from error
