"""Video in: a few pictures out of it, each with its time, without decoding what nobody wants.

A picture wanted at some time is the one that is on the screen then: the last that began before. Where the next one
wanted lies beyond the distance of two keyframes, the file is entered anew at the keyframe before it; where that is
shorter, decoding on is quicker. Files whose seeking lies are read through from the beginning.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf
from typing import TYPE_CHECKING, Any

from taskrouter.errors import BadInput
from taskrouter.media.image import load_image
from taskrouter.media.limits import MediaLimits, Opened, opened
from taskrouter.media.need import need
from taskrouter.media.wanted import EARLIEST_S, Wanted, check_frames, check_seconds, check_size

if TYPE_CHECKING:
    from PIL.Image import Image

# Play lists and the like make the demuxer open other files and URLs: of this list, only real containers.
_CONTAINERS = "asf,avi,flac,flv,gif,ivf,matroska,mov,mp3,mpeg,mpegts,nut,ogg,wav"
_SLACK_S = 1.0
"""What a header promises beyond the last picture; more is a file cut short."""
_MOST_IN_VAIN = 8
"""After so many seeks that won nothing a file is decoded on."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Pictures of a video, RGB and upright, and the second at which each is on the screen (0: its beginning).

    ``seconds`` is how long the whole video lasts.
    """

    frames: tuple[Image, ...]
    times_s: tuple[float, ...]
    seconds: float


def load_video(
    source: Any,
    limits: MediaLimits | None = None,
    *,
    count: int | None = None,
    fps: float | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    side: int | None = None,
    source_fps: float | None = None,
) -> Clip:
    """Read pictures of a video: ``count`` of them, evenly spread, or ``fps`` a second; by default all that there are.

    ``source`` is a path, bytes, a binary file object or a ``data:`` URL of a container and codec that PyAV reads; or
    the pictures themselves: an array (frames × what ``load_image`` takes), or a list of what ``load_image`` takes.
    ``source_fps`` is their rate, by default ``fps``, or else one a second; files bring their own. ``start_s`` and
    ``end_s`` bound the stretch they are taken from; ``count`` of it are the first of as many equal parts, and fewer
    where it has fewer. ``side`` scales down what is longer, in pixels. Turned as the file says. Blocks while it reads
    and decodes. Raises ``BadInput`` for what is no video, is damaged, or has no such stretch, ``MediaTooLarge`` for
    what is over a limit, ``MissingDependency`` where PyAV isn't installed.
    """
    need("av", "PIL.Image", what="video")
    limits = limits or MediaLimits()
    wanted = Wanted(count, fps, start_s, end_s)
    if isinstance(source, (list, tuple)) or hasattr(source, "__array__"):
        return _of_pictures(source, wanted, limits, side, source_fps or fps or 1.0)
    with _reading(source, limits, side) as reader:
        frames, times = reader.read(reader.times(wanted))
        return Clip(tuple(frames), tuple(times), reader.seconds)


def watch_video(
    source: Any, limits: MediaLimits | None = None, *, fps: float
) -> Generator[tuple[Image, float], None, None]:
    """The pictures of a video one after the other, and the second at which each is on the screen; ``fps`` looks at it a
    second, and each picture once.

    One is held at a time, so their pixels count one by one, and their number against ``limits.max_frames``. The file is
    open until the iterator ends or is closed. ``source``, and what is raised, are as for ``load_video``; so many
    pictures that are given themselves are of one second.
    """
    need("av", "PIL.Image", what="video")
    limits = limits or MediaLimits()
    wanted = Wanted(None, fps, 0.0, None)
    if isinstance(source, (list, tuple)) or hasattr(source, "__array__"):
        clip = _of_pictures(source, wanted, limits, None, fps)
        yield from zip(clip.frames, clip.times_s, strict=True)
        return
    with _reading(source, limits, None) as reader:
        times = reader.times(wanted, held=1)
        assert times is not None
        for frame, at in reader.pictures(times):
            yield _upright(frame, None), at


@contextmanager
def _reading(source: Any, limits: MediaLimits, side: int | None) -> Iterator[_Reader]:
    """An open file; what goes wrong with it is told in words."""
    import av

    with opened(source, limits, what="video") as file:
        try:
            with _container(file, limits) as container:
                yield _Reader(container, file.name, limits, side)
        except (av.error.FFmpegError, EOFError, ValueError, ArithmeticError, OSError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(
                f"{file.name} can't be decoded as video, or is damaged ({getattr(error, 'strerror', None) or error}): "
                "give an MP4, MOV, MKV, WebM or AVI file."
            ) from error


def _of_pictures(source: Any, wanted: Wanted, limits: MediaLimits, side: int | None, rate: float) -> Clip:
    """A video that is given as its pictures; only those that are wanted are looked at."""
    name = "the video"
    try:
        total = len(source)
    except TypeError:
        total = 0
    if not total or not (rate > 0 and rate < inf):
        raise BadInput(f"{name} has {total} pictures, {rate:g} of them a second: give some, and a rate above 0.")
    seconds = total / rate
    check_seconds(seconds, name, limits)
    number = total if wanted.everything else wanted.how_many(name, seconds, rate)
    check_frames(min(number, total), 0, name, limits)
    times = [place / rate for place in range(total)] if wanted.everything else wanted.times(number, seconds, rate)
    places = sorted({min(int(at * rate + EARLIEST_S), total - 1) for at in times})
    frames: list[Image] = []
    pixels = 0
    for place in places:
        picture = load_image(source[place], limits)
        if side and max(picture.size) > side:
            picture.thumbnail((side, side))
        pixels += picture.width * picture.height
        check_frames(len(places), pixels, name, limits)
        frames.append(picture)
    return Clip(tuple(frames), tuple(place / rate for place in places), seconds)


@contextmanager
def _container(source: Opened, limits: MediaLimits) -> Iterator[Any]:
    """The file, open. Opening decodes its first picture, whose size nobody here has seen: the decoder is told a bound.

    Where that leaves the size unknown, the file is asked for it with no decoder at hand. Some codecs allocate wider
    than they show, so the decoder's bound is twice ours.
    """
    import av

    def opening(**options: str) -> Any:
        source.file.seek(0)
        options |= {"format_whitelist": _CONTAINERS}
        return av.open(source.file, metadata_errors="replace", options=options)

    bound = str(2 * limits.max_pixels)
    with opening(max_pixels=bound) as container:
        codec = next((stream.codec_context for stream in container.streams.video), None)
        if codec is None or codec.width:
            if codec is not None:
                codec.options = {"max_pixels": bound}
            yield container
            return
    with opening(codec_whitelist="none") as container:
        for stream in container.streams.video[:1]:
            check_size(stream.codec_context.width, stream.codec_context.height, source.name, limits)
    raise BadInput(
        f"{source.name} has no picture that can be decoded: it is damaged, or its pictures are larger than it says "
        "and than media.max_pixels allows."
    )


class _Reader:
    """One open file."""

    def __init__(self, container: Any, name: str, limits: MediaLimits, side: int | None) -> None:
        if not container.streams.video:
            raise BadInput(f"{name} has no pictures in it: it is sound only, or no video.")
        self.container = container
        self.name = name
        self.limits = limits
        self.side = side
        self.stream = stream = container.streams.video[0]
        if stream.codec_context is None:
            raise BadInput(f"{name} is in a codec that isn't known here: convert it to H.264, VP9 or AV1.")
        stream.thread_type = "AUTO"
        width, height = stream.codec_context.width, stream.codec_context.height
        check_size(width, height, name, limits)
        self.pixels = _pixels(width, height, side)
        self.first = self._first()
        self.seconds = self._seconds()
        check_seconds(self.seconds, name, limits)

    def _first(self) -> float:
        """When its first picture is on the screen, on the file's own clock: what was cut out begins late."""
        frame = next(iter(self.container.decode(self.stream)), None)
        if frame is None:
            raise BadInput(f"{self.name} has no picture that can be decoded.")
        self._seek(0)
        return float(frame.time or 0.0)

    def _seconds(self) -> float:
        """How long it lasts: as its stream or its header says, else as its packets do."""
        stream = self.stream
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if self.container.duration:
            return float(self.container.duration) / 1_000_000
        last = 0.0
        for packet in self.container.demux(stream):
            if packet.pts is not None:
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base) - self.first)
                if last > self.limits.max_seconds:
                    break
        self._seek(0)
        return last

    # --- which -------------------------------------------------------------------------------------------------------

    def times(self, wanted: Wanted, *, held: int | None = None) -> list[float] | None:
        """Seconds from the beginning at which a picture is wanted; ``None``: all. So many are ``held`` at a time."""
        if wanted.everything:
            check_frames(self.stream.frames, self.stream.frames * self.pixels, self.name, self.limits)
            return None
        rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        number = wanted.how_many(self.name, self.seconds, rate)
        check_frames(number, (held or number) * self.pixels, self.name, self.limits)
        return wanted.times(number, self.seconds, rate)

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self, wanted: list[float] | None) -> tuple[list[Image], list[float]]:
        """The pictures that are on the screen at these times, each once, and when each came there."""
        frames: list[Image] = []
        times: list[float] = []
        pixels = 0
        for frame, at in self.pictures(wanted):
            pixels += _pixels(frame.width, frame.height, self.side)
            check_frames(len(frames) + 1, pixels, self.name, self.limits)
            frames.append(_upright(frame, self.side))
            times.append(at)
        return frames, times

    def pictures(self, wanted: list[float] | None) -> Iterator[tuple[Any, float]]:
        """The same one after the other, as they are decoded. Raises ``BadInput`` where there are none."""
        last = -inf
        for frame, at in self._all() if wanted is None else self._at(wanted):
            if at > last:
                check_size(frame.width, frame.height, self.name, self.limits)  # a later one may be larger
                yield frame, at
                last = at
        if last == -inf:
            raise BadInput(f"{self.name} has no picture that can be decoded.")

    def _all(self) -> Iterator[tuple[Any, float]]:
        """Its pictures from here on, each later than the one before: a damaged file may go back, and so for ever."""
        last = -inf
        for frame in self.container.decode(self.stream):
            at = self._time(frame)
            if at > last:
                last = at
                yield frame, at

    def _time(self, frame: Any) -> float:
        return max(float(frame.time or 0.0) - self.first, 0.0)

    def _at(self, wanted: list[float]) -> Iterator[tuple[Any, float]]:
        decoding = self._all()
        shown: tuple[Any, float] | None = None
        coming = next(decoding, None)
        seeks, in_vain = True, 0
        keyframe, apart = 0.0, inf  # the last one seen, and how far it stood from the one before
        for target in wanted:
            while coming is not None and coming[1] <= target + EARLIEST_S:
                if seeks and target - coming[1] > apart:
                    entered, decoding = self._enter(target)
                    if entered is None or entered[1] > target + EARLIEST_S:
                        # Its index lies: from here on the file is read through.
                        seeks, (coming, decoding) = False, self._enter(0.0)
                        continue
                    if entered[1] <= coming[1]:  # keyframes are rarer here: that won nothing
                        apart, in_vain = 2 * apart, in_vain + 1
                        seeks = in_vain < _MOST_IN_VAIN
                    coming, keyframe = entered, entered[1]
                    continue
                shown, coming = coming, next(decoding, None)
                if coming is not None and coming[0].key_frame and coming[1] > keyframe:
                    apart, keyframe = coming[1] - keyframe, coming[1]
            found = shown or coming  # the first picture stands for what is before it
            if found is None:
                return
            if coming is None and target > found[1] + _length_s(found[0]) + _SLACK_S:
                raise BadInput(
                    f"{self.name} is cut short or damaged: {found[1]:.1f} of {self.seconds:.1f} seconds could be "
                    "read. Record, upload or download it again."
                )
            yield found

    def _enter(self, target: float) -> tuple[tuple[Any, float] | None, Iterator[tuple[Any, float]]]:
        """The picture of the keyframe before this time, and those behind it."""
        self._seek(int((target + self.first) / self.stream.time_base))
        decoding = self._all()
        return next(decoding, None), decoding

    def _seek(self, at: int) -> None:
        self.container.seek(at, stream=self.stream, backward=True, any_frame=False)
        # One that came to the end takes nothing more before it is emptied.
        self.stream.codec_context.flush_buffers()


def _length_s(frame: Any) -> float:
    return float((frame.duration or 0) * (frame.time_base or 0))


def _pixels(width: int, height: int, side: int | None) -> int:
    longer = max(width, height)
    scale = min(1.0, side / longer) if side and longer else 1.0
    return ceil(width * scale) * ceil(height * scale)


def _upright(frame: Any, side: int | None) -> Image:
    import PIL.Image

    longer = max(frame.width, frame.height)
    if side and longer > side:
        scale = side / longer
        frame = frame.reformat(max(1, round(frame.width * scale)), max(1, round(frame.height * scale)), "rgb24")
    turns = {
        90: PIL.Image.Transpose.ROTATE_90,
        180: PIL.Image.Transpose.ROTATE_180,
        270: PIL.Image.Transpose.ROTATE_270,
    }
    picture: Image = frame.to_image()
    how = turns.get(int(getattr(frame, "rotation", 0)) % 360)
    return picture if how is None else picture.transpose(how)
