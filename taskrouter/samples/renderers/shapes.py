"""Pictures for the shapes sample: one coloured shape on a busy, greyish background.

Everything is drawn from the generator that is passed in, so a seed is a data set.
"""

from __future__ import annotations

import math
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

LABELS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in HUES)
SIDE = 64
"""Pixels on a side of what the model sees; pictures of any size are resized to this."""


def render(rng: np.random.Generator, label: str | None = None, *, size: tuple[int, int] | None = None) -> Image:
    """Draw one RGB picture of ``label`` (``colour shape``; random where none is given)."""
    from PIL import Image, ImageDraw

    colour, shape = (label or str(rng.choice(LABELS))).split()
    width, height = size or (int(rng.integers(56, 129)), int(rng.integers(56, 129)))
    canvas = (width * OVERSAMPLING, height * OVERSAMPLING)
    picture = Image.fromarray(background(rng, *canvas))
    draw = ImageDraw.Draw(picture)
    stray_lines(rng, draw, canvas)

    radius = min(canvas) * rng.uniform(0.16, 0.42)
    centre = [rng.uniform(radius, side - radius) for side in canvas]
    corners = outline(shape, turn=rng.uniform(0, 2 * math.pi))
    points = [(float(centre[0] + radius * x), float(centre[1] + radius * y)) for x, y in corners]
    draw.polygon(points, fill=paint(rng, colour))
    return finished(rng, picture, (width, height))
