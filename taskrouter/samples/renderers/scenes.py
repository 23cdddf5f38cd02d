"""Scenes for the detection sample: one to four shapes on a busy, greyish background, each with its box.

Everything is drawn from the generator that is passed in, so a seed is a data set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from taskrouter.samples.renderers.drawing import (
    HUES,
    OVERSAMPLING,
    SHAPES,
    background,
    finished,
    outline,
    paint,
    stray_lines,
)

if TYPE_CHECKING:
    from PIL.Image import Image

LABELS = SHAPES
SIDE = 96
"""Pixels on a side of what the model sees; pictures of any size are resized to this."""

MOST = 4
_SMALLEST, _LARGEST = 0.15, 0.46
"""A shape's diameter, by the picture's shorter side."""
_MOST_HIDDEN = 0.15
_TRIES = 20

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the picture."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and what is in it, in the order drawn."""

    picture: Image
    labels: tuple[str, ...]
    boxes: tuple[Box, ...]


def render(rng: np.random.Generator, *, size: tuple[int, int] = (SIDE, SIDE), most: int = MOST) -> Scene:
    """Draw one RGB picture of so many pixels with up to ``most`` shapes, which overlap little."""
    from PIL import Image, ImageDraw

    canvas = (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING)
    picture = Image.fromarray(background(rng, *canvas))
    draw = ImageDraw.Draw(picture)
    stray_lines(rng, draw, canvas)
    labels: list[str] = []
    boxes: list[Box] = []
    for _ in range(int(rng.integers(1, most + 1))):
        for _ in range(_TRIES):
            radius = min(canvas) * rng.uniform(_SMALLEST, _LARGEST) / 2
            centre = [rng.uniform(radius, side - radius) for side in canvas]
            shape = str(rng.choice(SHAPES))
            corners = outline(shape, turn=rng.uniform(0, 2 * math.pi))
            points = [(float(centre[0] + radius * x), float(centre[1] + radius * y)) for x, y in corners]
            box = _box(points)
            if all(_hidden(box, other) <= _MOST_HIDDEN for other in boxes):
                draw.polygon(points, fill=paint(rng, str(rng.choice(list(HUES)))))
                labels.append(shape)
                boxes.append(box)
                break
    return Scene(finished(rng, picture, size), tuple(labels), tuple(boxes))


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    shared = _shared(one, other)
    return shared / (_area(one) + _area(other) - shared) if shared else 0.0


def _hidden(one: Box, other: Box) -> float:
    """How much of the smaller one may lie behind the other: a small shape on a large one could have its colour."""
    return _shared(one, other) / min(_area(one), _area(other))


def _shared(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _box(points: list[tuple[float, float]]) -> Box:
    across = [x / OVERSAMPLING for x, _ in points]
    down = [y / OVERSAMPLING for _, y in points]
    return min(across), min(down), max(across), max(down)
