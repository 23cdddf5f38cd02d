"""The frames of a video as models that watch one were trained on: so many, evenly spread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskrouter.media.limits import MediaLimits
from taskrouter.media.showing import LONGEST_SIDE
from taskrouter.media.video import load_video

if TYPE_CHECKING:
    from PIL.Image import Image


def frames_of(source: Any, count: int, limits: MediaLimits) -> list[Image]:
    """``count`` frames; of a shorter video some come twice. Raises as ``load_video`` does."""
    frames = load_video(source, limits, count=count, side=LONGEST_SIDE).frames
    return [frames[place * len(frames) // count] for place in range(count)]
