"""Media on their way to a server: whatever a caller has becomes an open file that holds the same."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from taskrouter.errors import BadInput
from taskrouter.media.audio import load_audio
from taskrouter.media.image import load_image
from taskrouter.media.limits import MediaLimits, Opened, opened
from taskrouter.media.need import need

_SOUND_VERBS = frozenset({"transcribe"})
_VIDEO_VERBS = frozenset({"track"})


def is_plain(source: Any) -> bool:
    """Whether a source is a file already: a path, bytes, a file object or a ``data:`` URL."""
    return isinstance(source, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(source, "read")


@contextmanager
def opened_medium(
    verb: str,
    source: Any,
    limits: MediaLimits,
    *,
    rate: int | None = None,
    fps: float | None = None,
    what: str | None = None,
) -> Iterator[Opened]:
    """Open what a verb is asked about, named ``what`` in messages. Blocks. Raises ``BadInput``, ``MediaTooLarge``."""
    name = what if what is not None else _name(verb)
    if is_plain(source):
        with opened(source, limits, what=name) as file:
            yield file
        return
    data = _written(verb, source, limits, rate, fps)
    yield Opened(io.BytesIO(data), f"the {name}", len(data))


def _name(verb: str) -> str:
    return "audio" if verb in _SOUND_VERBS else "video" if verb in _VIDEO_VERBS else "image"


def _written(verb: str, source: Any, limits: MediaLimits, rate: int | None, fps: float | None) -> bytes:
    dimensions = len(getattr(source, "shape", ())) if hasattr(source, "__array__") else 0
    several = isinstance(source, (list, tuple)) or dimensions == 4
    if verb in _SOUND_VERBS or (verb == "classify" and (rate is not None or dimensions == 1)):
        return _wav(source, rate, limits)
    if verb in _VIDEO_VERBS or (verb == "classify" and several):
        return _video(source, limits, fps or 1.0)
    return _png(load_image(source, limits))


def _png(picture: Any) -> bytes:
    written = io.BytesIO()
    picture.save(written, "PNG", compress_level=1)
    return written.getvalue()


def _wav(samples: Any, rate: Any, limits: MediaLimits) -> bytes:
    """An array as a WAV file of one channel of 32-bit floating-point samples: nothing is rounded."""
    if not isinstance(rate, int) or isinstance(rate, bool) or not 1 <= rate < 1 << 32:
        raise BadInput("a sound is an array of samples: say what they were recorded at, sampling_rate (Hz).")
    sound = load_audio(samples, limits, sampling_rate=rate, source_rate=rate)
    data = sound.astype("<f4", copy=False).tobytes()
    form = struct.pack("<4sIHHIIHHH", b"fmt ", 18, 3, 1, rate, min(4 * rate, (1 << 32) - 1), 4, 32, 0)
    fact = struct.pack("<4sII", b"fact", 4, sound.size)
    head = struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(fact) + 8 + len(data), b"WAVE")
    return b"".join((head, form, fact, struct.pack("<4sI", b"data", len(data)), data))


def _video(source: Any, limits: MediaLimits, fps: float) -> bytes:
    """Pictures as a video that loses nothing, so many a second."""
    need("av", "numpy", "PIL.Image", what="video")
    from fractions import Fraction

    import av

    try:
        pictures: Sequence[Any] = [load_image(each, limits) for each in source]
    except TypeError as error:
        raise BadInput(f"{type(source).__name__} is no video: give a path, bytes, or a list of pictures") from error
    if not pictures or any(each.size != pictures[0].size for each in pictures):
        raise BadInput("a video is at least one picture, and all have the same size")
    written = io.BytesIO()
    with av.open(written, "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "bgr0"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    return written.getvalue()
