"""Images, audio and video in: paths, bytes, file objects, ``data:`` URLs and arrays, read within limits.

Importing this loads none of Pillow, PyAV and NumPy; reading does.
"""

from __future__ import annotations

from taskrouter.media.audio import load_audio
from taskrouter.media.image import load_image
from taskrouter.media.limits import MediaLimits
from taskrouter.media.video import Clip, load_video

__all__ = ["Clip", "MediaLimits", "load_audio", "load_image", "load_video"]
