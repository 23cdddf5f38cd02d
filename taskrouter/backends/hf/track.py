"""``track``: what is found in a video's frames, as boxes or as masks, with one id per object over all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

from taskrouter.backends.hf.association import Association, Masked, Thing
from taskrouter.backends.hf.batching import Steps
from taskrouter.backends.hf.calling import Size
from taskrouter.backends.hf.detect import looking_for
from taskrouter.backends.hf.families import Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.backends.hf.regions import check_masks
from taskrouter.backends.hf.segment import cutting
from taskrouter.media.limits import MediaLimits
from taskrouter.media.need import need
from taskrouter.media.video import watch_video
from taskrouter.verbs import TrackRequest


def track(parts: Parts, family: Family, request: TrackRequest, limits: MediaLimits, stop: threading.Event) -> Steps:
    """Follow objects through a video: wants a pass of the module for each frame, returns tracks.

    Raises ``BadInput`` or ``MediaTooLarge``.
    """
    need("scipy.optimize", what="objects through a video")
    look = _masks if family is Family.SEGMENTS else _boxes
    find = look(parts, family, request, limits)
    objects = Association(request.fps)
    with closing(watch_video(request.video, limits, fps=request.fps)) as frames:
        for frame, time_s in frames:
            objects.look((yield from find(frame)), time_s)
    return objects.tracks()


_Find = Callable[[Any], Generator[Any, Any, Sequence[Thing]]]


def _boxes(parts: Parts, family: Family, request: TrackRequest, limits: MediaLimits) -> _Find:
    return looking_for(parts, family, request.labels, request.threshold)


def _masks(parts: Parts, family: Family, request: TrackRequest, limits: MediaLimits) -> _Find:
    cut = cutting(parts, family, request.labels, request.threshold, limits)
    held = 0

    def find(frame: Any) -> Generator[Any, Any, Sequence[Thing]]:
        nonlocal held
        size = Size(*frame.size)
        found = [
            Masked(each.label or "", each.score or 0.0, each.box, each.mask)
            for each in (yield from cut(frame))
            if each.box.right > each.box.left
        ]
        held += len(found)
        check_masks(held, size, limits)  # those of all frames are the answer
        return found

    return find
