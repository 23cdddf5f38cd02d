"""Video in: a few pictures out of it, each with its time, without decoding what nobody wants.

A picture wanted at some time is the one that is on the screen then: the last that began before. Where the next one
wanted lies beyond the distance of two keyframes, the file is entered anew at the keyframe before it; where that is
shorter, decoding on is quicker. Files whose seeking lies are read through from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import TYPE_CHECKING, Any

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media.limits import MediaLimits, opened
from taskrouter.media.need import need

if TYPE_CHECKING:
    from PIL.Image import Image

# Play lists and the like make the demuxer open other files and URLs: of this list, only real containers.
_CONTAINERS = "asf,avi,flac,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp3,mpeg,mpegts,mpegvideo,nut,ogg,wav"
_CLIP_PIXELS = 8
"""All pictures together may have so many times the pixels that one may have."""
_SLACK_S = 1.0
"""What a header promises beyond the last picture; more is a file cut short."""
_EARLIEST_S = 1e-6
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
) -> Clip:
    """Read pictures of a video: ``count`` of them, evenly spread, or ``fps`` a second; by default all that there are.

    ``source`` is a path, bytes, a binary file object or a ``data:`` URL of any container and codec that PyAV reads.
    ``start_s`` and ``end_s`` bound the stretch they are taken from; ``count`` of it are the first of as many equal
    parts, and fewer where it has fewer. ``side`` scales down what is longer, in pixels. Turned as the file says.
    Blocks while it reads and decodes. Raises ``BadInput`` for what is no video, is damaged, or has no such stretch,
    ``MediaTooLarge`` for what is over a limit, ``MissingDependency`` where PyAV isn't installed.
    """
    need("av", "PIL.Image", what="video")
    import av

    if count is not None and fps is not None:
        raise BadInput("give either a count of frames or fps, not both.")
    if (count is not None and count < 1) or (fps is not None and not (isfinite(fps) and fps > 0)):
        raise BadInput(f"{count if fps is None else fps} frames make no sense: give a number above 0.")
    limits = limits or MediaLimits()
    with opened(source, limits, what="video") as file:
        try:
            with av.open(file.file, metadata_errors="replace", options={"format_whitelist": _CONTAINERS}) as container:
                reader = _Reader(container, file.name, limits, side)
                wanted = reader.times(count, fps, start_s, end_s)
                frames, times = reader.read(wanted)
                return Clip(tuple(frames), tuple(times), reader.seconds)
        except (av.error.FFmpegError, EOFError, ValueError, OverflowError, OSError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(
                f"{file.name} can't be decoded as video, or is damaged ({getattr(error, 'strerror', None) or error}): "
                "give an MP4, MOV, MKV, WebM or AVI file."
            ) from error


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
        self.pixels = _pixels(width, height, side)
        if width * height > limits.max_pixels:
            raise MediaTooLarge(
                f"{name} has pictures of {width} × {height} pixels, and media.max_pixels allows "
                f"{limits.max_pixels:,}: give a smaller one, or raise the limit."
            )
        self.first = self._first()
        self.seconds = self._seconds()
        if self.seconds > limits.max_seconds:
            raise MediaTooLarge(
                f"{name} lasts {self.seconds:.0f} s, longer than the {limits.max_seconds:g} that media.max_seconds "
                "allows: cut it into pieces, or raise the limit."
            )

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

    def times(self, count: int | None, fps: float | None, start_s: float, end_s: float | None) -> list[float] | None:
        """Seconds from the beginning at which a picture is wanted; ``None``: all."""
        end = self.seconds if end_s is None else min(end_s, self.seconds)
        if not (isfinite(start_s) and start_s >= 0) or (end_s is not None and not end_s > start_s):
            raise BadInput(
                f"from {start_s} s to {'its end' if end_s is None else f'{end_s} s'} is no stretch of a video."
            )
        if start_s and start_s >= self.seconds:
            raise BadInput(f"{self.name} lasts {self.seconds:.1f} s: there is nothing at {start_s:g} s.")
        if count is None and fps is None:
            if not start_s and end_s is None:
                self._check_frames(self.stream.frames)
                return None
            fps = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        length = end - start_s
        number = count if count is not None else max(1, ceil(length * (fps or 1.0) - _EARLIEST_S))
        self._check_frames(number)
        step = length / number if fps is None else 1 / fps
        return [start_s + place * step for place in range(number)]

    def _check_frames(self, number: int) -> None:
        most = self.limits.max_frames
        if number > most:
            raise MediaTooLarge(
                f"{number:,} frames of {self.name} were asked for, and media.max_frames allows {most:,}: ask for "
                "fewer, or raise the limit."
            )
        if number * self.pixels > _CLIP_PIXELS * self.limits.max_pixels:
            raise MediaTooLarge(
                f"{number:,} frames of {self.name} would have {number * self.pixels:,} pixels together, more than "
                f"{_CLIP_PIXELS} × media.max_pixels: ask for fewer, or scale them down."
            )

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self, wanted: list[float] | None) -> tuple[list[Image], list[float]]:
        """The pictures that are on the screen at these times, each once, and when each came there."""
        frames: list[Image] = []
        times: list[float] = []
        for frame, at in self._all() if wanted is None else self._at(wanted):
            if times and at <= times[-1]:
                continue
            if wanted is None:
                self._check_frames(len(frames) + 1)
            frames.append(_upright(frame, self.side))
            times.append(at)
        if not frames:
            raise BadInput(f"{self.name} has no picture that can be decoded.")
        return frames, times

    def _all(self) -> Iterator[tuple[Any, float]]:
        for frame in self.container.decode(self.stream):
            yield frame, self._time(frame)

    def _time(self, frame: Any) -> float:
        return max(float(frame.time or 0.0) - self.first, 0.0)

    def _at(self, wanted: list[float]) -> Iterator[tuple[Any, float]]:
        decoding = self._all()
        shown: tuple[Any, float] | None = None
        coming = next(decoding, None)
        seeks, in_vain = True, 0
        keyframe, apart = 0.0, inf  # the last one seen, and how far it stood from the one before
        for target in wanted:
            while coming is not None and coming[1] <= target + _EARLIEST_S:
                if seeks and target - coming[1] > apart:
                    entered, decoding = self._enter(target)
                    if entered is None or entered[1] > target + _EARLIEST_S:
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
