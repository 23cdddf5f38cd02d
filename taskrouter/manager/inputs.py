"""What is to become vectors, as callers write it: texts, and pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from taskrouter.errors import BadInput
from taskrouter.verbs import Picture

_WANTED = "inputs must be a text or a picture, or a list of at least one of them"


def inputs_of(given: Any) -> tuple[str | Picture, ...]:
    """One input or several. Raises ``BadInput``."""
    one = _input(given)
    if one is not None:
        return (one,)
    if not isinstance(given, Iterable):
        raise BadInput(f"{_WANTED}, not {type(given).__name__}")
    found = []
    for place, item in enumerate(given):
        one = _input(item)
        if one is None:
            raise BadInput(f"{_WANTED}; inputs[{place}] is {type(item).__name__}")
        found.append(one)
    if not found:
        raise BadInput(f"{_WANTED}; it is empty")
    return tuple(found)


def _input(given: Any) -> str | Picture | None:
    if isinstance(given, str):
        return given
    if isinstance(given, Mapping):
        return _part(given)
    # Arrays, images and files can be walked through, too, and mean one picture.
    alone = isinstance(given, (bytes, bytearray, memoryview, os.PathLike))
    if alone or any(hasattr(given, name) for name in ("__array__", "__array_interface__", "read")):
        return Picture(given)
    return None


def _is_empty(held: Any) -> bool:
    return held is None or (isinstance(held, str | bytes) and not held)


def _part(part: Mapping[str, Any]) -> str | Picture:
    kind = part.get("type")
    held = part.get(kind) if isinstance(kind, str) else None
    if kind == "image_url":
        held = held.get("url") if isinstance(held, Mapping) else held
    if (kind == "text" and isinstance(held, str)) or (kind == "image_url" and not _is_empty(held)):
        return str(held) if kind == "text" else Picture(held)
    raise BadInput(
        f"inputs has a part of type {kind!r}; what can be embedded are text and image_url, with something in it"
    )
