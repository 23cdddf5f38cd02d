"""Clips for the sample of that name: one coloured shape that moves, or doesn't, before a greyish background.

Everything is drawn from the generator that is passed in, so a seed is a data set.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taskrouter.media.sheet import filled, tiled
from taskrouter.media.video import load_video
from taskrouter.samples.renderers.drawing import HUES, OVERSAMPLING, background, outline, paint
from taskrouter.samples.renderers.tones import RATE

if TYPE_CHECKING:
    from PIL.Image import Image

SHAPES = ("circle", "square", "triangle")
MOTIONS = {
    "moves right": (1, 0),
    "moves left": (-1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
    "stands still": (0, 0),
}
"""What it does, and in which direction."""
CAPTIONS = tuple(
    f"{'an' if colour == 'orange' else 'a'} {colour} {shape} {motion}"
    for colour in HUES
    for shape in SHAPES
    for motion in MOTIONS
)
FRAMES = 4
"""Frames of a clip that the model sees, side by side in one sheet."""
PROMPT = "Describe the clip."

_SMALLEST, _LARGEST = 0.2, 0.3
"""A shape's radius, by the shorter side."""
_SHORTEST, _LONGEST = 0.5, 1.0
"""How far it goes, by the room it has."""
_DRIFT = 0.04
"""How far at most it goes astray, by the shorter side: across its way, or a third of that where it stands still."""
_TURN = math.pi / 40
_UPRIGHT = {"circle": 0.0, "square": math.pi / 4, "triangle": -math.pi / 2}

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Shot:
    """One clip, to be drawn at any moment of it: 0 is its beginning, 1 its end.

    ``start`` and ``end`` are where the shape's centre is then, ``corners`` lie around it, in pixels of the canvas.
    """

    caption: str
    size: tuple[int, int]
    backdrop: Image
    fill: tuple[int, int, int]
    corners: tuple[Point, ...]
    start: Point
    end: Point
    light: float
    grain: float

    def frame(self, rng: np.random.Generator, moment: float) -> Image:
        """The RGB picture at that moment, with grain."""
        from PIL import Image, ImageDraw

        picture = self.backdrop.copy()
        x, y = self.centre(moment)
        ImageDraw.Draw(picture).polygon([(x + dx, y + dy) for dx, dy in self.corners], fill=self.fill)
        pixels = np.asarray(picture.reduce(OVERSAMPLING), dtype=np.float32) * self.light
        pixels += self.grain * rng.standard_normal(pixels.shape, dtype=np.float32)
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def frames(self, rng: np.random.Generator, count: int) -> list[Image]:
        """The pictures at the beginnings of so many equal parts."""
        return [self.frame(rng, place / count) for place in range(count)]

    def centre(self, moment: float) -> Point:
        """Where the shape is, in pixels of the canvas."""
        (x, y), (to_x, to_y) = self.start, self.end
        return x + (to_x - x) * moment, y + (to_y - y) * moment

    def centres(self, count: int) -> list[Point]:
        """Where it is at the beginnings of so many equal parts, as shares of the picture."""
        across, down = (side * OVERSAMPLING for side in self.size)
        return [(x / across, y / down) for x, y in (self.centre(place / count) for place in range(count))]


def render(rng: np.random.Generator, caption: str | None = None, *, size: tuple[int, int] | None = None) -> Shot:
    """Set up one clip of ``caption`` (random where none is given), of any shape between 3 : 4 and 16 : 9."""
    from PIL import Image

    caption = caption or str(rng.choice(CAPTIONS))
    _, colour, shape, motion = caption.split(maxsplit=3)
    size = size or _size(rng)
    canvas = (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING)
    short = min(canvas)
    radius = short * rng.uniform(_SMALLEST, _LARGEST)
    corners = outline(shape, turn=_UPRIGHT[shape] + rng.uniform(-_TURN, _TURN))
    ways = [_way(rng, side, radius, short, heading) for side, heading in zip(canvas, MOTIONS[motion], strict=True)]
    if motion == "stands still":
        ways = [(start, start + (end - start) / 3) for start, end in ways]
    (x, to_x), (y, to_y) = ways
    return Shot(
        caption=caption,
        size=size,
        backdrop=Image.fromarray(background(rng, *canvas)),
        fill=paint(rng, colour),
        corners=tuple((radius * dx, radius * dy) for dx, dy in corners),
        start=(x, y),
        end=(to_x, to_y),
        light=rng.uniform(0.8, 1.1),
        grain=rng.uniform(0, 8),
    )


def sheet(rng: np.random.Generator, shot: Shot) -> Image:
    """What the model sees of it."""
    return tiled(shot.frames(rng, FRAMES))


def film(rng: np.random.Generator, shot: Shot) -> bytes:
    """It as an MP4 file of 1 to 3 seconds: H.264 or MPEG-4, more or less worn."""
    rate = int(rng.integers(8, 26))
    frames = shot.frames(rng, int(rate * rng.uniform(1, 3)))
    if rng.random() < 0.5:
        return encoded(frames, rate=rate, options={"crf": str(int(rng.integers(18, 34)))})
    coarse = str(int(rng.integers(2, 13)))
    return encoded(frames, rate=rate, codec="mpeg4", options={"qmin": coarse, "qmax": coarse})


def filmed_sheet(rng: np.random.Generator, shot: Shot) -> Image:
    """What the model sees of that file."""
    return tiled(filled(load_video(film(rng, shot), count=FRAMES), FRAMES))


def encoded(
    frames: Iterable[Image],
    *,
    rate: int,
    codec: str = "libx264",
    options: Mapping[str, str],
    sound: NDArray[np.float32] | None = None,
) -> bytes:
    """An MP4 file of frames with even sides, ``rate`` a second; ``options`` are the codec's (``{"crf": "30"}``).

    ``sound``: what is heard meanwhile, mono at 16 kHz, within -1 and 1.
    """
    import av

    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = "yuv420p"
        stream.options = dict(options)
        heard = None if sound is None else container.add_stream("aac", rate=RATE, layout="mono")
        for place, picture in enumerate(frames):
            if not place:
                stream.width, stream.height = picture.size
            frame = av.VideoFrame.from_image(picture)
            frame.pts = place
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None and heard is not None:
            samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            samples.sample_rate, samples.pts = RATE, 0
            container.mux([*heard.encode(samples), *heard.encode(None)])
    return written.getvalue()


def _size(rng: np.random.Generator) -> tuple[int, int]:
    if rng.random() < 0.5:
        return 64, 64
    height = int(rng.integers(56, 97))
    return int(height * rng.uniform(3 / 4, 16 / 9)), height


def _way(rng: np.random.Generator, side: float, radius: float, short: float, heading: int) -> Point:
    """Where it begins and ends along one axis, all of it inside."""
    room = side - 2 * radius
    if heading:
        length = room * rng.uniform(_SHORTEST, _LONGEST)
    else:
        length = min(room, short * _DRIFT) * rng.uniform()
        heading = 1 if rng.random() < 0.5 else -1
    start = radius + rng.uniform(0, room - length)
    return (start, start + length) if heading > 0 else (start + length, start)
