"""The ``engine_args`` that say how a model is shown videos, whichever framework serves it."""

from __future__ import annotations

import difflib

from taskrouter.errors import PreflightFailed
from taskrouter.media.showing import LAYOUTS, Showing
from taskrouter.types import ModelRequest

OF_VIDEOS = ("video_frames", "video_layout")


def spelled(key: str) -> str:
    """A key of ``engine_args`` as it is written here."""
    return key.lstrip("-").replace("-", "_")


def showing_of(request: ModelRequest) -> Showing | None:
    """How the option says that videos are shown; ``None`` where it says nothing. Raises ``PreflightFailed``."""
    said = {name: (key, value) for key, value in request.engine_args.items() if (name := spelled(key)) in OF_VIDEOS}
    if not said:
        return None
    showing = Showing()
    if "video_frames" in said:
        key, frames = said["video_frames"]
        if type(frames) is not int or frames < 1:
            raise PreflightFailed(
                f"{request.label}: engine_args.{key} wants a whole number, 1 or more, not {frames!r}."
            )
        showing = Showing(frames, showing.layout)
    if "video_layout" in said:
        key, layout = said["video_layout"]
        if layout not in LAYOUTS:
            close = difflib.get_close_matches(str(layout), LAYOUTS, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise PreflightFailed(
                f"{request.label}: engine_args.{key} {layout!r} is not one of {', '.join(LAYOUTS)}{hint}."
            )
        showing = Showing(showing.frames, layout)
    return showing
