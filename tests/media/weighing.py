"""What bad media cost: a program that reads some, each with a bound on the RAM that reading may take.

Prints one line of JSON: for each its name, what was said or read, the MiB it took, and the MiB it may take.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np

from taskrouter.errors import BadInput
from taskrouter.media import load_audio, load_image, load_video

from .fuzzing import forget_peak, peak_bytes
from .seeds import FILMS, IMAGES, SOUNDS

SIDE = 10_000


def _black(compress: Callable[[bytes], bytes], flush: Callable[[], bytes], line: bytes) -> bytes:
    return b"".join(compress(line) for _ in range(SIDE)) + flush()


def png() -> bytes:
    """A whole and valid picture of 100 megapixels, all black, in a hundred kilobytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packed = zlib.compressobj(1)
    lines = _black(packed.compress, packed.flush, bytes(SIDE + 1))
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def tiff() -> bytes:
    """A picture of 10 × 10 pixels, cut from one compressed tile of 100 megapixels."""
    packed = zlib.compressobj(1)
    tile = _black(packed.compress, packed.flush, bytes(SIDE))
    whole = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: SIDE, 323: SIDE, 324: 0, 325: len(tile)}
    behind = 8 + 2 + 12 * len(whole) + 4
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, behind if tag == 324 else number) for tag, number in whole.items())
    return b"II*\0" + struct.pack("<IH", 8, len(whole)) + tags + bytes(4) + tile


def film(picture: bytes) -> bytes:
    """A video of that PNG, whose header says that it is of 64 × 64 pixels."""
    written = io.BytesIO()
    with av.open(written, "w", format="mov") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "gray"
        for place in range(2):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, place, place, Fraction(1)
            packet.is_keyframe = True
            container.mux_one(packet)
    return written.getvalue()


def silence(seconds: int) -> bytes:
    written = io.BytesIO()
    with av.open(written, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=8_000, layout="mono")
        for second in range(0, seconds, 10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 80_000), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8_000, second * 8_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return written.getvalue()


def listen(source: Any) -> Any:
    return load_audio(source, sampling_rate=16_000)


def main() -> list[tuple[str, str, int, int]]:
    picture, hour = png(), silence(3_600)
    weighed = (
        ("a picture of 100 megapixels", load_image, picture, 20),
        ("a small picture from a huge tile", load_image, tiff(), 20),
        ("an array of 100 megapixels", load_image, np.broadcast_to(np.float32(0.5), (SIDE, SIDE, 3)), 20),
        ("a video of 100 megapixels that says it is small", load_video, film(picture), 50),
        ("an array of a day", listen, np.broadcast_to(np.int16(1), (2, 86_400 * 16_000)), 20),
        # The samples themselves are 220 MiB; nothing else may be as large.
        ("an hour of silence", listen, hour, 330),
        ("two hours of silence", listen, silence(7_200), 20),
    )
    load_image(IMAGES["png"]()), load_video(FILMS["mov"]()), listen(SOUNDS["flac"]())  # libraries, codecs
    found = []
    for name, read, source, most in weighed:
        before = forget_peak()
        try:
            said = str(getattr(read(source), "shape", "read"))
        except BadInput as error:
            said = f"{type(error).__name__}: {error}"
        found.append((name, said, (peak_bytes() - before) >> 20, most))
    return found


if __name__ == "__main__":
    print(json.dumps(main()))  # noqa: T201  its answer
