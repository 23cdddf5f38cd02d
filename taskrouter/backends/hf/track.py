"""``track``: what any detector finds in a video's frames, with one id per object over all of them."""

from __future__ import annotations

import threading
from contextlib import closing

from taskrouter.backends.hf.association import Association
from taskrouter.backends.hf.batching import Steps
from taskrouter.backends.hf.detect import looking_for
from taskrouter.backends.hf.families import Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.media.limits import MediaLimits
from taskrouter.media.need import need
from taskrouter.media.video import watch_video
from taskrouter.verbs import TrackRequest


def track(parts: Parts, family: Family, request: TrackRequest, limits: MediaLimits, stop: threading.Event) -> Steps:
    """Follow objects through a video: wants a pass of the module for each frame, returns tracks.

    Raises ``BadInput`` or ``MediaTooLarge``.
    """
    need("scipy.optimize", what="objects through a video")
    look = looking_for(parts, family, request.labels, request.threshold)
    objects = Association(request.fps)
    with closing(watch_video(request.video, limits, fps=request.fps)) as frames:
        for frame, time_s in frames:
            objects.look((yield from look(frame)), time_s)
    return objects.tracks()
