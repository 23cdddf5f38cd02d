"""What pictures of coloured shapes are drawn with: backgrounds, stray lines, paints, outlines, grain.

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
    from PIL.ImageDraw import ImageDraw

SHAPES = ("circle", "square", "triangle", "star")
HUES = {"red": 0.0, "orange": 0.078, "yellow": 0.153, "green": 0.345, "blue": 0.61, "purple": 0.79}
OVERSAMPLING = 2
"""Pictures are drawn at so many times their size, and averaged down."""

_HUE_SPREAD = 0.018


def stray_lines(rng: np.random.Generator, draw: ImageDraw, canvas: tuple[int, int]) -> None:
    """Up to three grey lines from somewhere to somewhere."""
    short = min(canvas)
    for _ in range(int(rng.integers(0, 4))):
        ends = [float(rng.uniform(0, side)) for side in (*canvas, *canvas)]
        draw.line(ends, fill=grey(rng, 60, 200), width=max(1, int(short * rng.uniform(0.006, 0.02))))


def finished(rng: np.random.Generator, picture: Image, size: tuple[int, int]) -> Image:
    """The picture at its own size, with grain, lighter or darker."""
    from PIL import Image

    pixels = np.asarray(picture.resize(size, Image.Resampling.BOX), dtype=np.float32)
    grain = rng.normal(0, rng.uniform(0, 14), pixels.shape).astype(np.float32)
    return Image.fromarray(np.clip(pixels * rng.uniform(0.8, 1.1) + grain, 0, 255).astype(np.uint8))


def background(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """A gradient between two near-grey colours, in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * math.cos(angle)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * math.sin(angle)
    blend = ((across + down) / 1.42 / 2 + 0.5)[..., None].clip(0, 1)
    start, end = (np.array(grey(rng, 20, 245), dtype=np.float32) for _ in range(2))
    return np.asarray(start * (1 - blend) + end * blend, dtype=np.uint8)


def grey(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    """A grey that is nearly, not quite, without colour."""
    level = rng.uniform(low, high)
    red, green, blue = (int(np.clip(level + rng.uniform(-14, 14), 0, 255)) for _ in range(3))
    return red, green, blue


def paint(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    """A tint that people call by this colour's name."""
    hue = (HUES[colour] + rng.uniform(-_HUE_SPREAD, _HUE_SPREAD)) % 1
    # Orange and yellow turn to brown and olive in the dark, so nothing is very dark.
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.72, 1.0), rng.uniform(0.72, 1.0))
    return int(red * 255), int(green * 255), int(blue * 255)


def outline(shape: str, *, turn: float) -> list[tuple[float, float]]:
    """Corner points on or inside the unit circle."""
    corners, inner = {"circle": (48, 1.0), "square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.42)}[shape]
    steps = [(turn + 2 * math.pi * k / corners, inner if k % 2 else 1.0) for k in range(corners)]
    return [(length * math.cos(angle), length * math.sin(angle)) for angle, length in steps]
