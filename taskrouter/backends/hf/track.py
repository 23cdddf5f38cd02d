"""``track``: what any detector finds in a video's frames, with one id per object over all of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from math import ceil, inf
from typing import Any

from taskrouter.backends.hf.association import Association
from taskrouter.backends.hf.batching import Steps
from taskrouter.backends.hf.detect import looking_for
from taskrouter.backends.hf.families import Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.errors import MediaTooLarge
from taskrouter.media.limits import MediaLimits, opened
from taskrouter.media.need import need
from taskrouter.media.video import load_video
from taskrouter.verbs import TrackRequest

MOST_AT_ONCE = 64
"""Frames that are held at a time, as far as all together have no more pixels than one picture may have."""
_EARLIEST_S = 1e-6


def track(parts: Parts, family: Family, request: TrackRequest, limits: MediaLimits, stop: threading.Event) -> Steps:
    """Follow objects through a video: wants a pass of the module for each frame, returns tracks.

    Raises ``BadInput`` or ``MediaTooLarge``.
    """
    need("scipy.optimize", what="objects through a video")
    look = looking_for(parts, family, request.labels, request.threshold)
    objects = Association(request.fps)
    for frame, time_s in _frames(_kept(request.video, limits), limits, request.fps):
        objects.look((yield from look(frame)), time_s)
    return objects.tracks()


def _frames(source: Any, limits: MediaLimits, fps: float) -> Iterator[tuple[Any, float]]:
    """Frames and their seconds, a few read at a time."""
    looks, done, seconds, before = 1, 0, inf, -inf
    while (start := done / fps) < seconds - _EARLIEST_S:
        clip = load_video(source, limits, fps=fps, start_s=start, end_s=(done + looks) / fps)
        if not done:
            seconds = clip.seconds
            _check_looks(seconds, fps, limits)
        for frame, time_s in zip(clip.frames, clip.times_s, strict=True):
            if time_s > before:  # of a video with fewer a second each is looked at once
                yield frame, time_s
                before = time_s
        done += looks
        # As many as may be: each reading begins at the keyframe before it.
        room = limits.max_pixels // (clip.frames[0].width * clip.frames[0].height)
        looks = max(1, min(room, MOST_AT_ONCE, limits.max_frames))


def _check_looks(seconds: float, fps: float, limits: MediaLimits) -> None:
    looks = ceil(seconds * fps - _EARLIEST_S)
    if looks > limits.max_frames:
        raise MediaTooLarge(
            f"the video lasts {seconds:.1f} s: {looks:,} frames at {fps:g} a second, and media.max_frames allows "
            f"{limits.max_frames:,}: ask for fewer fps, cut it, or raise the limit."
        )


def _kept(source: Any, limits: MediaLimits) -> Any:
    """A source that can be read again and again: a path, the pictures themselves, or all its bytes."""
    if isinstance(source, (os.PathLike, list, tuple)) or hasattr(source, "__array__"):
        return source
    if isinstance(source, str) and ":" not in source[:10]:
        return source
    with opened(source, limits, what="video") as file:
        return file.file.read()
