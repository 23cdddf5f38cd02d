"""Transcripts as subtitles: SubRip (srt) and WebVTT. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from taskrouter.verbs import Segment


def srt(segments: Sequence[Segment]) -> str:
    """Numbered cues, a blank line after each."""
    return "".join(
        f"{number}\n{_times(each, ',')}\n{_line(each.text).replace('-->', '->')}\n\n"
        for number, each in enumerate(segments, 1)
    )


def vtt(segments: Sequence[Segment]) -> str:
    """A header and cues; ``&``, ``<`` and ``>`` are written so that no text is taken for markup."""
    escape = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    cues = "".join(f"{_times(each, '.')}\n{_line(each.text).translate(escape)}\n\n" for each in segments)
    return f"WEBVTT\n\n{cues}"


def _times(segment: Segment, mark: str) -> str:
    start = max(segment.start_s, 0.0)
    return f"{_clock(start, mark)} --> {_clock(max(segment.end_s, start), mark)}"


def _clock(seconds: float, mark: str) -> str:
    rest, milliseconds = divmod(round(seconds * 1000), 1000)
    rest, of_minute = divmod(rest, 60)
    hours, minutes = divmod(rest, 60)
    return f"{hours:02}:{minutes:02}:{of_minute:02}{mark}{milliseconds:03}"


def _line(text: str) -> str:
    """A cue's text on one line: a blank line in it would end the cue."""
    return " ".join(text.split())
