"""Pictures for the shapes sample: one coloured shape on a busy, greyish background.

Everything is drawn from the generator that is passed in, so a seed is a data set.
"""

from __future__ import annotations

import colorsys
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

SHAPES = ("circle", "square", "triangle", "star")
HUES = {"red": 0.0, "orange": 0.078, "yellow": 0.153, "green": 0.345, "blue": 0.61, "purple": 0.79}
LABELS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in HUES)
SIDE = 64
"""Pixels on a side of what the model sees; pictures of any size are resized to this."""

_OVERSAMPLING = 2
_HUE_SPREAD = 0.018


def render(rng: np.random.Generator, label: str | None = None, *, size: tuple[int, int] | None = None) -> Image:
    """Draw one RGB picture of ``label`` (``colour shape``; random where none is given)."""
    from PIL import Image, ImageDraw

    colour, shape = (label or str(rng.choice(LABELS))).split()
    width, height = size or (int(rng.integers(56, 129)), int(rng.integers(56, 129)))
    canvas = (width * _OVERSAMPLING, height * _OVERSAMPLING)
    picture = Image.fromarray(_background(rng, *canvas))
    draw = ImageDraw.Draw(picture)
    short = min(canvas)
    for _ in range(int(rng.integers(0, 4))):
        ends = [float(rng.uniform(0, side)) for side in (*canvas, *canvas)]
        draw.line(ends, fill=_grey(rng, 60, 200), width=max(1, int(short * rng.uniform(0.006, 0.02))))

    radius = short * rng.uniform(0.16, 0.42)
    centre = [rng.uniform(radius, side - radius) for side in canvas]
    outline = _outline(shape, turn=rng.uniform(0, 2 * math.pi))
    points = [(float(centre[0] + radius * x), float(centre[1] + radius * y)) for x, y in outline]
    draw.polygon(points, fill=_paint(rng, colour))

    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BOX), dtype=np.float32)
    grain = rng.normal(0, rng.uniform(0, 14), pixels.shape).astype(np.float32)
    return Image.fromarray(np.clip(pixels * rng.uniform(0.8, 1.1) + grain, 0, 255).astype(np.uint8))


def _background(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """A gradient between two near-grey colours, in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * math.cos(angle)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * math.sin(angle)
    blend = ((across + down) / 1.42 / 2 + 0.5)[..., None].clip(0, 1)
    start, end = (np.array(_grey(rng, 20, 245), dtype=np.float32) for _ in range(2))
    return np.asarray(start * (1 - blend) + end * blend, dtype=np.uint8)


def _grey(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    level = rng.uniform(low, high)
    red, green, blue = (int(np.clip(level + rng.uniform(-14, 14), 0, 255)) for _ in range(3))
    return red, green, blue


def _paint(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    hue = (HUES[colour] + rng.uniform(-_HUE_SPREAD, _HUE_SPREAD)) % 1
    # Orange and yellow turn to brown and olive in the dark, so nothing is very dark.
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.72, 1.0), rng.uniform(0.72, 1.0))
    return int(red * 255), int(green * 255), int(blue * 255)


def _outline(shape: str, *, turn: float) -> list[tuple[float, float]]:
    """Corner points on or inside the unit circle."""
    corners, inner = {"circle": (48, 1.0), "square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.42)}[shape]
    steps = [(turn + 2 * math.pi * k / corners, inner if k % 2 else 1.0) for k in range(corners)]
    return [(length * math.cos(angle), length * math.sin(angle)) for angle, length in steps]
