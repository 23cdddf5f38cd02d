"""Videos for models that look at pictures: some of the frames, evenly spread, each a picture or all of them in one.

So whatever takes pictures takes videos, and nobody needs a model's own reader of videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskrouter.media.limits import MediaLimits
from taskrouter.media.sheet import columns, filled, tiled
from taskrouter.media.video import load_video

if TYPE_CHECKING:
    from PIL.Image import Image

LAYOUTS = ("frames", "sheet")
"""Pictures one after the other, or one picture that holds them all."""

LONGEST_SIDE = 1536
"""Frames, or the sheet of them, are scaled down to about so many pixels; models make less of them."""


@dataclass(frozen=True, slots=True)
class Showing:
    """How a video is shown: how many frames, and one of ``LAYOUTS``."""

    frames: int = 8
    layout: str = "frames"


def pictures_of(source: Any, limits: MediaLimits, showing: Showing) -> Sequence[Image]:
    """The pictures that stand for a video. Blocks. Raises ``BadInput``, ``MediaTooLarge``."""
    count = min(showing.frames, limits.max_frames)
    if showing.layout == "frames":
        return load_video(source, limits, count=count, side=LONGEST_SIDE).frames
    # A sheet has all its places filled, so that where a frame stands says when it is.
    side = LONGEST_SIDE // columns(showing.frames)
    return [tiled(filled(load_video(source, limits, count=count, side=side), showing.frames))]
