"""Videos as a few pictures, for models that look at pictures only."""

from __future__ import annotations

import io
from dataclasses import dataclass

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media.need import need

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
    need("av", "PIL.Image", what="video")
    import av

    try:
        with av.open(io.BytesIO(video)) as container:
            if not container.streams.video:
                raise BadInput("the video has no pictures; is it sound only?")
            stream = container.streams.video[0]
            seconds = float(container.duration or 0) / av.time_base
            if seconds > MOST_SECONDS:
                raise MediaTooLarge(f"the video has {seconds:.0f} s; at most {MOST_SECONDS:.0f} are taken")
            step = seconds / most
            due, kept = 0.0, list[bytes]()
            for frame in container.decode(stream):
                at = frame.time or 0.0
                if at < due:
                    continue
                kept.append(_jpeg(frame))
                if len(kept) == most:
                    break
                # A picture that stands longer than a step is taken once.
                due = (at // step + 1) * step if step else 0.0
    except (av.error.FFmpegError, ValueError, EOFError, OSError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"the video can't be read: {error}") from error
    if not kept:
        raise BadInput("the video has no frame that can be read")
    return Frames(tuple(kept), seconds)


def _jpeg(frame: object) -> bytes:
    image = frame.to_image()  # type: ignore[attr-defined]
    image.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    image.save(written, "JPEG", quality=85)
    return written.getvalue()
