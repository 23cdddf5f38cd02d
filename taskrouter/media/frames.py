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
            seconds = float(container.duration or 0) / av.time_base or _seconds_of(video)
            if seconds > MOST_SECONDS:
                raise MediaTooLarge(f"the video has {seconds:.0f} s; at most {MOST_SECONDS:.0f} are taken")
            start, kept, last = 0.0, list[bytes](), -1
            for frame in container.decode(stream):
                at = frame.time or 0.0
                if not kept:
                    start = at  # cut out of something longer, it doesn't begin at 0
                # One frame of each of ``most`` equal stretches: its first.
                stretch = int((at - start) / seconds * most + 1e-6) if seconds else len(kept)
                if stretch <= last:
                    continue
                kept.append(_jpeg(frame))
                last = stretch
                if last >= most - 1:
                    break
    except (av.error.FFmpegError, ValueError, EOFError, OSError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"the video can't be read: {error}") from error
    if not kept:
        raise BadInput("the video has no frame that can be read")
    return Frames(tuple(kept), seconds)


def _seconds_of(video: bytes) -> float:
    """How long a video is whose header doesn't say it, as of browsers that record: read through, without decoding."""
    import av

    with av.open(io.BytesIO(video)) as container:
        times = [
            (float(packet.pts * packet.time_base), float((packet.duration or 0) * packet.time_base))
            for packet in container.demux(container.streams.video[0])
            if packet.pts is not None
        ]
    if not times:
        return 0.0
    return max(at + length for at, length in times) - min(at for at, _ in times)


def _jpeg(frame: object) -> bytes:
    image = frame.to_image()  # type: ignore[attr-defined]
    image.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    image.save(written, "JPEG", quality=85)
    return written.getvalue()
