"""Tiny media, made here."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np
from PIL import Image

PDF = b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"


def png(shade: int = 200) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(written, "PNG")
    return written.getvalue()


def data_url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def clip(shades: Sequence[int], rate: int = 10, form: str = "mp4", codec: str = "mpeg4", first: int = 0) -> bytes:
    """A video of grey frames, ``rate`` in a second; ``first`` is the time of the first one, in frames."""
    written = io.BytesIO()
    with av.open(written, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for place, shade in enumerate(shades):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8), format="rgb24")
            frame.pts = first + place
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return written.getvalue()


def endless(make: Callable[[], bytes]) -> bytes:
    """A Matroska file whose header doesn't say how long it is, as browsers record them."""
    data = bytearray(make())
    # The element Duration (0x4489, 8 bytes) becomes a Void of the same length.
    at = data.index(b"\x44\x89\x88")
    data[at : at + 11] = b"\xec\x89" + bytes(9)
    return bytes(data)


def sound() -> bytes:
    written = io.BytesIO()
    with av.open(written, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return written.getvalue()


def shade_of(jpeg: bytes) -> int:
    """The grey of a frame."""
    assert jpeg.startswith(b"\xff\xd8")
    image = Image.open(io.BytesIO(jpeg)).convert("L")
    level: Any = image.getpixel((image.width // 2, image.height // 2))
    return int(level)
