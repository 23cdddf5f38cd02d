"""Answers of the verbs as JSON. Pure.

Masks are PNG files of one bit a pixel (white: part of it), written here: a server needs no imaging library. Depth is
the array's own bytes.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from taskrouter.verbs import (
    Box,
    ChatAnswer,
    ChatChunk,
    Depth,
    Detection,
    Embeddings,
    GenerateAnswer,
    Label,
    Region,
    Sighting,
    Track,
    Transcript,
    Usage,
)

_MANY_NUMBERS = 10_000


def encoded(result: Any) -> Any:
    """A verb's answer as what ``json`` can write. Raises ``TypeError`` for what is no answer of a verb."""
    if isinstance(result, (tuple, list)):
        return [_encode(each) for each in result]
    return _encode(result)


def usage_of(result: Any) -> dict[str, int] | None:
    """The tokens that an answer says it took."""
    return _usage(getattr(result, "usage", None))


def is_large(result: Any) -> bool:
    """Whether writing it takes so long that others would have to wait. Quick."""
    if isinstance(result, Depth):
        return True
    if isinstance(result, Embeddings):
        return bool(result.vectors) and len(result.vectors) * len(result.vectors[0]) > _MANY_NUMBERS
    return isinstance(result, tuple) and bool(result) and isinstance(result[0], (Region, Track))


def chunk_of(piece: ChatChunk) -> dict[str, Any]:
    """A piece of a chat answer."""
    return {
        "text": piece.text, "finish_reason": piece.finish_reason, "usage": _usage(piece.usage),
        "tool_calls": [dict(each) for each in piece.tool_calls], "reasoning": piece.reasoning,
    }  # fmt: skip


def _usage(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}


def _encode(value: Any) -> Any:
    how = _HOW.get(type(value))
    if how is None:
        raise TypeError(f"{type(value).__name__} is no answer of a verb")
    return how(value)


def _label(it: Label) -> dict[str, Any]:
    return {"label": it.label, "score": _number(it.score)}


def _detection(it: Detection) -> dict[str, Any]:
    return {"label": it.label, "score": _number(it.score), "box": _box(it.box)}


def _region(it: Region) -> dict[str, Any]:
    return {"label": it.label, "score": _number(it.score), "box": _box(it.box), "mask": mask_of(it.mask)}


def _track(it: Track) -> dict[str, Any]:
    return {"id": it.id, "label": it.label, "sightings": [_sighting(each) for each in it.sightings]}


def _sighting(it: Sighting) -> dict[str, Any]:
    return {
        "frame": it.frame, "time_s": float(it.time_s), "box": _box(it.box), "score": _number(it.score),
        "mask": None if it.mask is None else mask_of(it.mask),
    }  # fmt: skip


def _depth(it: Depth) -> dict[str, Any]:
    height, width = it.values.shape
    data = base64.b64encode(it.values.astype("<f4", copy=False).tobytes()).decode()
    return {"unit": it.unit, "values": {"shape": [height, width], "dtype": "float32", "data": data}}


def _transcript(it: Transcript) -> dict[str, Any]:
    segments = [{"start_s": each.start_s, "end_s": each.end_s, "text": each.text} for each in it.segments]
    return {"text": it.text, "language": it.language, "duration_s": it.duration_s, "segments": segments}


def _embeddings(it: Embeddings) -> dict[str, Any]:
    return {"vectors": [list(map(float, each)) for each in it.vectors]}


def _chat(it: ChatAnswer) -> dict[str, Any]:
    return {
        "text": it.text, "finish_reason": it.finish_reason, "tool_calls": [dict(each) for each in it.tool_calls],
        "reasoning": it.reasoning,
    }  # fmt: skip


def _generated(it: GenerateAnswer) -> dict[str, Any]:
    return {"text": it.text, "finish_reason": it.finish_reason}


_HOW: Mapping[type, Callable[[Any], Any]] = {
    Label: _label, Detection: _detection, Region: _region, Track: _track, Depth: _depth, Transcript: _transcript,
    Embeddings: _embeddings, ChatAnswer: _chat, GenerateAnswer: _generated,
}  # fmt: skip


def _box(box: Box) -> dict[str, float]:
    left, top, right, bottom = map(float, box)
    return {"left": left, "top": top, "right": right, "bottom": bottom}


def _number(score: Any) -> float | None:
    return None if score is None else float(score)


def mask_of(mask: Any) -> dict[str, Any]:
    """A mask as its size and a PNG file; of no pixels there is no file, and ``png`` is empty."""
    import numpy as np

    height, width = map(int, mask.shape)
    if not height or not width:
        return {"height": height, "width": width, "png": ""}
    rows = np.packbits(np.asarray(mask, np.bool_), axis=1)
    # Each row begins with its filter: 0, none.
    lines = np.zeros((height, rows.shape[1] + 1), np.uint8)
    lines[:, 1:] = rows
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(lines.tobytes(), 6)), _chunk(b"IEND", b""))
    )
    return {"height": height, "width": width, "png": base64.b64encode(file).decode()}


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
