"""Frames of a video side by side in one picture, in rows from the top left: a model sees at one glance what moved."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import ceil, isqrt
from typing import TYPE_CHECKING

from taskrouter.media.video import Clip

if TYPE_CHECKING:
    from PIL.Image import Image

_EARLIEST_S = 1e-6


def columns(count: int) -> int:
    """Frames in a row: as many as there are rows, or one more."""
    return isqrt(count - 1) + 1


def tiled(frames: Sequence[Image]) -> Image:
    """One picture of these, each as large as the first; what is left of the last row is black."""
    import PIL.Image

    width, height = frames[0].size
    across = columns(len(frames))
    sheet = PIL.Image.new("RGB", (across * width, ceil(len(frames) / across) * height))
    for place, frame in enumerate(frames):
        fitting = frame if frame.size == (width, height) else frame.resize((width, height))
        sheet.paste(fitting, (place % across * width, place // across * height))
    return sheet


def filled(clip: Clip, count: int) -> list[Image]:
    """What is on the screen at the beginning of each of ``count`` equal parts: some frames again where it has fewer."""
    times = [clip.seconds * place / count + _EARLIEST_S for place in range(count)]
    return [clip.frames[max(bisect_right(clip.times_s, time) - 1, 0)] for time in times]
