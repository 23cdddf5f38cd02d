"""Small whole files of many kinds, the same bytes each time: what the fuzzer mutates."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import av
import numpy as np
from PIL import Image

from .files import mux_sound, sine

# Muxers write dates and random names unless told not to.
_EXACT = {"fflags": "bitexact"}


def _picture(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    picture = Image.new("RGB", (40, 24), "orange")
    picture.paste(Image.fromarray(noise), (4, 4))
    return picture.convert(mode)


def _saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    written = io.BytesIO()
    _picture(mode).save(written, kind, **options)
    return written.getvalue()


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved("JPEG", exif=exif, progressive=True)


def _animated(kind: str) -> bytes:
    written = io.BytesIO()
    frames = [_picture().rotate(90 * turn, expand=True) for turn in (0, 2)]
    frames[0].save(written, kind, save_all=True, append_images=frames[1:])
    return written.getvalue()


def _sound(form: str, codec: str, rate: int = 16_000) -> bytes:
    written = io.BytesIO()
    samples = sine(0.3, rate=rate)
    with av.open(written, "w", format=form, options=_EXACT) as container:
        mux_sound(container, _sound_track(container, codec, rate), samples[None], rate)
    return written.getvalue()


def _sound_track(container: Any, codec: str, rate: int) -> Any:
    stream = container.add_stream(codec, rate=rate, layout="mono")
    stream.bit_rate = 48_000
    return stream


def _film(form: str, codec: str, pixels: str = "yuv420p", sound: str = "", **options: str) -> bytes:
    written = io.BytesIO()
    with av.open(written, "w", format=form, options=_EXACT) as container:
        stream = container.add_stream(codec, rate=10, options={"threads": "1", **options})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 48, 32, pixels, 4
        heard = _sound_track(container, sound, 16_000) if sound else None
        for place in range(10):
            shades = np.full((32, 48, 3), 20 * place, np.uint8)
            shades[:, : 4 * place] = 255
            frame = av.VideoFrame.from_ndarray(shades, format="rgb24")
            frame.pts = place
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if heard is not None:
            mux_sound(container, heard, sine(1.0, rate=16_000)[None], 16_000)
    return written.getvalue()


IMAGES: dict[str, Callable[[], bytes]] = {
    "png": partial(_saved, "PNG"),
    "png with a palette": partial(_saved, "PNG", "P", transparency=1),
    "png of 16 bits": partial(_saved, "PNG", "I;16"),
    "apng": partial(_animated, "PNG"),
    "jpeg": partial(_saved, "JPEG"),
    "jpeg, turned": _turned,
    "jpeg in cmyk": partial(_saved, "JPEG", "CMYK"),
    "gif": partial(_animated, "GIF"),
    "webp": partial(_saved, "WEBP"),
    "webp, lossless": partial(_saved, "WEBP", "RGBA", lossless=True),
    "webp, animated": partial(_animated, "WEBP"),
    "tiff": partial(_saved, "TIFF"),
    "tiff, lzw": partial(_saved, "TIFF", compression="tiff_lzw"),
    "tiff, jpeg": partial(_saved, "TIFF", compression="jpeg"),
    "bmp": partial(_saved, "BMP"),
}
SOUNDS: dict[str, Callable[[], bytes]] = {
    "wav": partial(_sound, "wav", "pcm_s16le"),
    "wav, adpcm": partial(_sound, "wav", "adpcm_ms"),
    "flac": partial(_sound, "flac", "flac"),
    "opus": partial(_sound, "ogg", "libopus"),
    "mp3": partial(_sound, "mp3", "libmp3lame"),
    "aac": partial(_sound, "adts", "aac"),
    "m4a": partial(_sound, "ipod", "aac"),
    "wma": partial(_sound, "asf", "wmav2"),
    "mkv, sound": partial(_sound, "matroska", "pcm_s16le"),
}
FILMS: dict[str, Callable[[], bytes]] = {
    "mp4": partial(_film, "mp4", "libx264", sound="aac", preset="ultrafast"),
    "mov": partial(_film, "mov", "mjpeg", "yuvj420p"),
    "webm": partial(_film, "webm", "libvpx", sound="libopus", deadline="realtime"),
    "webm, vp9": partial(_film, "webm", "libvpx-vp9", deadline="realtime"),
    "mkv": partial(_film, "matroska", "libx264", sound="flac", preset="ultrafast"),
    "avi": partial(_film, "avi", "mpeg4", sound="libmp3lame"),
    "mpegts": partial(_film, "mpegts", "libx264", preset="ultrafast"),
    "gif film": partial(_film, "gif", "gif", "rgb8"),
}
