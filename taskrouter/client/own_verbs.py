"""A request for a verb of a plug-in's own, taken apart: what is JSON, and what are media."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from taskrouter.backends.calls import shape_of
from taskrouter.errors import BadInput


def given_of(verb: str, request: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments that a request is, and the media among them, by their names.

    It is the plug-in's own type, whose media are marked; or a mapping, in which bytes, ``Path`` and file objects are
    media, and a text is a text. Raises ``BadInput`` for anything else, and for what can't be written.
    """
    if isinstance(request, Mapping):
        if not all(isinstance(name, str) for name in request) or "verb" in request:
            raise BadInput(f"{verb}: the names of arguments are texts, and verb is none of them")
        media = {name: value for name, value in request.items() if _is_medium(value)}
        return {name: value for name, value in request.items() if name not in media}, media
    if request is None or not (hasattr(type(request), "__dataclass_fields__") or hasattr(request, "model_dump")):
        raise BadInput(
            f"{verb} can't be asked with a {type(request).__name__} over HTTP: give the plug-in's own request (a "
            "dataclass, or a pydantic model), or a mapping of its arguments"
        )
    kind: type = type(request)
    return shape_of(kind).taken_apart(request)


def media_of(media: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """The media under each name, of those that stand in a list all."""
    for name, value in media.items():
        yield name, list(value) if isinstance(value, (list, tuple)) else [value]


def _is_medium(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_is_medium(each) for each in value)
    return isinstance(value, (bytes, bytearray, memoryview, os.PathLike)) or hasattr(value, "read")
