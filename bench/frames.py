"""Eight pictures of a ten-minute video, found by seeking, against decoding all of it."""

from __future__ import annotations

import io
import time

import av
import numpy as np

from bench.measure import Row, in_turns, show
from taskrouter.media import load_video

SECONDS, RATE, KEYFRAMES_S = 600, 10, 4
WIDTH, HEIGHT = 320, 180
COUNT = 8
ROUNDS = 3


def make_video() -> bytes:
    """H.264, a white box on its way through noise, a keyframe every few seconds."""
    written = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 64, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.gop_size = KEYFRAMES_S * RATE
        for place in range(SECONDS * RATE):
            pixels = np.roll(noise, place % WIDTH, axis=1)
            pixels[60:120, place % (WIDTH - 60) :][:, :60] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = place
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return written.getvalue()


def decode_all(video: bytes) -> int:
    """As a script does that has no way to seek: each picture decoded, eight of them made into images."""
    step = SECONDS * RATE // COUNT
    taken = 0
    with av.open(io.BytesIO(video)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for place, frame in enumerate(container.decode(video=0)):
            if place % step == 0 and taken < COUNT:
                frame.to_image()
                taken += 1
    return taken


async def main() -> None:
    video = make_video()

    async def ours() -> float:
        start = time.perf_counter()
        assert len(load_video(video, count=COUNT).frames) == COUNT
        return time.perf_counter() - start

    async def all_of_it() -> float:
        start = time.perf_counter()
        assert decode_all(video) == COUNT
        return time.perf_counter() - start

    await ours()
    mine, base = await in_turns(ours, all_of_it, rounds=ROUNDS)
    what = f"{COUNT} frames of {SECONDS // 60} minutes ({WIDTH} × {HEIGHT}, {len(video) / 2**20:.1f} MiB)"
    show("pictures of a video", [Row(what, mine * 1e3, "ms", "decoding all of it", base * 1e3, "reported")])
