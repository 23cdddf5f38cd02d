"""Sound files for a transcription API, and its transcripts back."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskrouter.errors import MediaTooLarge
from taskrouter.media.limits import MediaLimits, opened
from taskrouter.residency.messages import size
from taskrouter.verbs import Segment, TranscribeRequest, Transcript, Usage

MOST_BYTES = 25 << 20
_ENDINGS = {"mpeg": "mp3", "mp4": "m4a", "x-wav": "wav", "wave": "wav"}


def sound_file(request: TranscribeRequest, who: str) -> tuple[str, bytes]:
    """A sound's name and bytes. Blocks. Raises ``BadInput``, ``MediaTooLarge``."""
    with opened(request.audio, request.limits or MediaLimits(), what="audio") as source:
        if source.size > MOST_BYTES:
            raise MediaTooLarge(f"{who}: {source.name} has {size(source.size)}; at most {size(MOST_BYTES)} are taken")
        return _name(request.audio), source.file.read()


def _name(audio: Any) -> str:
    """Providers tell the kind of a file by its name; bytes without one are taken for WAV."""
    if isinstance(audio, str) and (kind := re.match(r"data:audio/([\w.+-]+)", audio)):
        return f"audio.{_ENDINGS.get(kind[1], kind[1])}"
    name = Path(audio).name if isinstance(audio, (str, os.PathLike)) else Path(str(getattr(audio, "name", ""))).name
    return name if "." in name else "audio.wav"


def transcript_of(data: Mapping[str, Any]) -> Transcript:
    """What an answer of the transcription API says."""
    segments = tuple(
        Segment(float(each["start"]), float(each["end"]), str(each["text"])) for each in data.get("segments") or ()
    )
    duration, usage = data.get("duration"), data.get("usage") or {}
    counted = isinstance(usage.get("input_tokens"), int)
    return Transcript(
        data["text"],
        data.get("language"),
        float(duration) if duration is not None else None,
        segments,
        Usage(usage["input_tokens"], int(usage.get("output_tokens") or 0)) if counted else None,
        data,
    )
