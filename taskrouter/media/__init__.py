"""Images and audio in: paths, bytes, file objects, ``data:`` URLs and arrays, read within limits.

Importing this loads none of Pillow, PyAV and NumPy; reading does.
"""

from __future__ import annotations

from taskrouter.media.audio import load_audio
from taskrouter.media.image import load_image
from taskrouter.media.limits import MediaLimits

__all__ = ["MediaLimits", "load_audio", "load_image"]
