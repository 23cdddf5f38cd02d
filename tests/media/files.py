"""Real media files for the tests, made on the spot."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE = 44_100
CODECS = {
    "wav": "pcm_s16le",
    "flac": "flac",
    "mp3": "libmp3lame",
    "ogg": "libopus",
    "m4a": "aac",
    "mkv": "aac",
    "aiff": "pcm_s16be",
}
_FORMATS = {"m4a": "ipod", "mkv": "matroska"}


def sine(seconds: float = 2.0, *, rate: int = RATE, hertz: float = 440.0) -> NDArray[np.float32]:
    """A tone with a little hiss, so that encoders have something to encode."""
    time = np.arange(int(seconds * rate)) / rate
    hiss = np.random.default_rng(0).normal(0, 0.01, len(time))
    return (0.5 * np.sin(2 * np.pi * hertz * time) + hiss).astype(np.float32)


def encoded(kind: str, *, seconds: float = 2.0, layout: str = "stereo") -> bytes:
    """A sound file of that kind, made by PyAV."""
    import av

    rate = 48_000 if kind == "ogg" else RATE
    channels = 2 if layout == "stereo" else 1
    sound = np.ascontiguousarray(np.stack([sine(seconds, rate=rate)] * channels))
    out = io.BytesIO()
    with av.open(out, "w", format=_FORMATS.get(kind, kind)) as container:
        mux_sound(container, container.add_stream(CODECS[kind], rate=rate, layout=layout), sound, rate)
    return out.getvalue()


def mux_sound(container: Any, stream: Any, samples: NDArray[Any], rate: int) -> None:
    """Encode samples (channels × samples, float32 or int16) into a stream of a container, in frames of its codec."""
    import av

    layout = stream.codec_context.layout.name
    frame = av.AudioFrame.from_ndarray(samples, format="fltp" if samples.dtype.kind == "f" else "s16", layout=layout)
    frame.sample_rate = rate
    fifo = av.AudioFifo()
    for piece in av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate).resample(frame):
        fifo.write(piece)
    while (piece := fifo.read(stream.codec_context.frame_size or 1024, partial=True)) is not None:
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def wav(samples: NDArray[np.float32], *, rate: int = RATE) -> bytes:
    """A mono 16-bit WAV file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return out.getvalue()
