"""Masks as answers: how many may be held at once, and the box that just holds one."""

from __future__ import annotations

from typing import Any

from taskrouter.errors import MediaTooLarge
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import Box, Region

ALL_PIXELS = 8
"""All masks of an answer together may have so many times the pixels that one picture may have."""


def check_masks(count: int, size: Any, limits: MediaLimits) -> None:
    """Raise ``MediaTooLarge`` where so many masks of this ``width`` and ``height`` are more than may be held."""
    pixels = count * size.width * size.height
    if pixels > ALL_PIXELS * limits.max_pixels:
        raise MediaTooLarge(
            f"{count} masks of {size.width} × {size.height} pixels are more than {ALL_PIXELS} times the "
            f"{limits.max_pixels:,} that media.max_pixels allows for one: give a smaller picture, ask for fewer, or "
            "raise the limit."
        )


def region(label: str | None, score: float | None, mask: Any) -> Region:
    """A region and its box; ``mask``: a bool array, height × width."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    if not len(rows):
        return Region(label, score, Box(0.0, 0.0, 0.0, 0.0), mask)
    edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return Region(label, score, Box(*map(float, edges)), mask)
