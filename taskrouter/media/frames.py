"""Videos as a few JPEG files, for providers whose models look at pictures only."""

from __future__ import annotations

import io
from dataclasses import dataclass

from taskrouter.media.limits import MediaLimits
from taskrouter.media.video import load_video

MOST_FRAMES = 16
MOST_SECONDS = 3600.0
SIDE = 768
"""The longer side of a frame, in pixels: what providers scale pictures down to anyway, or near it."""


@dataclass(frozen=True, slots=True)
class Frames:
    """JPEG files in order, evenly spread over ``seconds``."""

    jpegs: tuple[bytes, ...]
    seconds: float


def sample_jpegs(video: bytes, most: int = MOST_FRAMES) -> Frames:
    """At most ``most`` frames, evenly spread over a video. Blocks. Raises ``BadInput`` or ``MediaTooLarge``."""
    clip = load_video(video, MediaLimits(max_seconds=MOST_SECONDS), count=most, side=SIDE)
    jpegs = []
    for frame in clip.frames:
        written = io.BytesIO()
        frame.save(written, "JPEG", quality=85)
        jpegs.append(written.getvalue())
    return Frames(tuple(jpegs), clip.seconds)
