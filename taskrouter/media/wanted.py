"""Which pictures of a video are wanted, and whether they are too many."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media.limits import MediaLimits

CLIP_PIXELS = 8
"""All pictures together may have so many times the pixels that one may have."""
EARLIEST_S = 1e-6


@dataclass(frozen=True, slots=True)
class Wanted:
    """So many pictures, evenly spread, or so many a second, or all; of the stretch between two times."""

    count: int | None
    fps: float | None
    start_s: float
    end_s: float | None

    def __post_init__(self) -> None:
        if self.count is not None and self.fps is not None:
            raise BadInput("give either a count of frames or fps, not both.")
        if (self.count is not None and self.count < 1) or (self.fps is not None and not _is_rate(self.fps)):
            raise BadInput(
                f"{self.count if self.fps is None else self.fps} frames make no sense: give a number above 0."
            )
        if not (isfinite(self.start_s) and self.start_s >= 0) or (self.end_s is not None and not self._has_length()):
            end = "its end" if self.end_s is None else f"{self.end_s} s"
            raise BadInput(f"from {self.start_s} s to {end} is no stretch of a video.")

    def _has_length(self) -> bool:
        return self.end_s is not None and self.end_s > self.start_s

    @property
    def everything(self) -> bool:
        """Whether each picture there is is wanted."""
        return self.count is None and self.fps is None and not self.start_s and self.end_s is None

    def how_many(self, name: str, seconds: float, rate: float) -> int:
        """The number of pictures of a video of so many ``seconds``, with ``rate`` of them in one."""
        if self.start_s and self.start_s >= seconds:
            raise BadInput(f"{name} lasts {seconds:.1f} s: there is nothing at {self.start_s:g} s.")
        if self.count is not None:
            return self.count
        return max(1, ceil(self._length(seconds) * (self.fps or rate) - EARLIEST_S))

    def times(self, number: int, seconds: float, rate: float) -> list[float]:
        """The seconds from the beginning at which these are wanted."""
        step = self._length(seconds) / number if self.count is not None else 1 / (self.fps or rate)
        return [self.start_s + place * step for place in range(number)]

    def _length(self, seconds: float) -> float:
        return (seconds if self.end_s is None else min(self.end_s, seconds)) - self.start_s


def check_size(width: int, height: int, name: str, limits: MediaLimits) -> None:
    """Raises ``MediaTooLarge`` for pictures that are too large, each by itself."""
    if width * height > limits.max_pixels:
        raise MediaTooLarge(
            f"{name} has pictures of {width} × {height} pixels, and media.max_pixels allows "
            f"{limits.max_pixels:,}: give a smaller one, or raise the limit."
        )


def check_frames(number: int, pixels: int, name: str, limits: MediaLimits) -> None:
    """Raises ``MediaTooLarge`` for too many pictures, and for too many ``pixels`` in all of them."""
    most = limits.max_frames
    if number > most:
        raise MediaTooLarge(
            f"{number:,} frames of {name} were asked for, and media.max_frames allows {most:,}: ask for fewer, or "
            "raise the limit."
        )
    if pixels > CLIP_PIXELS * limits.max_pixels:
        raise MediaTooLarge(
            f"{number:,} frames of {name} would have {pixels:,} pixels together, more than {CLIP_PIXELS} × "
            "media.max_pixels: ask for fewer, or scale them down."
        )


def check_seconds(seconds: float, name: str, limits: MediaLimits) -> None:
    """Raises ``MediaTooLarge`` for a video that is too long."""
    if seconds > limits.max_seconds:
        raise MediaTooLarge(
            f"{name} lasts {seconds:.0f} s, longer than the {limits.max_seconds:g} that media.max_seconds "
            "allows: cut it into pieces, or raise the limit."
        )


def _is_rate(fps: float) -> bool:
    return isfinite(fps) and fps > 0
