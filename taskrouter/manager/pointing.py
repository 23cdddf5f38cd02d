"""Points and boxes as callers write them."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any

from taskrouter.errors import BadInput
from taskrouter.verbs import Box, Point


def points_of(given: Iterable[Any]) -> tuple[tuple[Point, ...], ...]:
    """The points of each object: an item is ``(x, y)``, or a list of them, each maybe with whether it is on the object.

    Raises ``BadInput``.
    """
    return tuple(_object(item) for item in _listed("points", given))


def boxes_of(given: Iterable[Any]) -> tuple[Box, ...]:
    """A box for each object. Raises ``BadInput``."""
    boxes = []
    for item in _listed("boxes", given):
        edges = tuple(_listed("boxes", item))
        if len(edges) != 4 or not all(map(_is_number, edges)):
            raise BadInput(f"boxes has {item!r}; a box is left, top, right and bottom, in pixels")
        boxes.append(Box(*map(float, edges)))
    return tuple(boxes)


def _object(item: Any) -> tuple[Point, ...]:
    parts = tuple(_listed("points", item))
    several = [tuple(_listed("points", part)) for part in parts] if parts and not _is_number(parts[0]) else [parts]
    return tuple(map(_point, several))


def _point(parts: tuple[Any, ...]) -> Point:
    right = len(parts) in (2, 3) and all(map(_is_number, parts[:2])) and all(isinstance(on, bool) for on in parts[2:])
    if not right:
        raise BadInput(f"points has {parts!r}; a point is x and y, in pixels, and maybe whether it is on the object")
    return Point(float(parts[0]), float(parts[1]), *parts[2:])


def _listed(name: str, given: Any) -> Iterable[Any]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise BadInput(f"{name} has {given!r}, which is no list")
    return given


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool | str) and isfinite(value)
    except TypeError:
        return False
