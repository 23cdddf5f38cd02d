"""The report on a video: a page of text, a picture with boxes, and what is said where it can't be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from taskrouter.cli.journal import Moves
from taskrouter.cli.outcome import Outcome
from taskrouter.cli.video_report import annotated, in_the_middle, write_report
from taskrouter.errors import BadInput, LoadFailed
from taskrouter.samples.manifest import VIDEO, DemoInput
from taskrouter.verbs import Box, ChatAnswer, Detection, Transcript

FOUND = (Detection("cup", 0.9, Box(10.2, 20.7, 50.0, 60.0)),)


def outcome(task: str, verb: str, answer: str, given: Any, error: LoadFailed | None = None) -> Outcome:
    question = DemoInput(task, verb, str(VIDEO), answer)
    return Outcome(question, f"my-{verb}", answer, error is None, 1.5, Moves((), ()), (), error, given)


HEARD = outcome("audio", "transcribe", "one two", Transcript("one two", duration_s=1.52))
SEEN = outcome("objects", "detect", "cup", FOUND)
TOLD = outcome("summary", "chat", "it moves", ChatAnswer("it moves"))


def test_it_says_what_was_heard_seen_and_told_and_by_whom(tmp_path: Path) -> None:
    text, picture = write_report(VIDEO, [HEARD, SEEN, TOLD], tmp_path / "deep" / "er")
    assert text.read_text().splitlines() == [
        "report.mp4", "",
        "Heard (audio: my-transcribe, 1.50 s)", "  “one two” in 1.5 s",
        f"Seen after {in_the_middle(str(VIDEO))[1]:.1f} s (objects: my-detect, 1.50 s)",
        "  cup, 90% sure, from (10, 21) to (50, 60)",
        "Told (summary: my-chat, 1.50 s)", "  “it moves”",
    ]  # fmt: skip
    with PIL.Image.open(picture) as page:
        assert page.size == (640, 480)


def test_what_failed_is_left_out(tmp_path: Path) -> None:
    failed = outcome("objects", "detect", "", None, LoadFailed("no"))
    (text,) = write_report(VIDEO, [HEARD, failed], tmp_path)
    assert "Seen" not in text.read_text()
    assert list(tmp_path.iterdir()) == [text]


def test_a_box_is_drawn_where_the_object_is_however_small_the_picture() -> None:
    page = np.asarray(annotated(PIL.Image.new("RGB", (64, 48)), [Detection("cup", 0.9, Box(10, 20, 30, 40))]))
    yellow = (page == (255, 230, 0)).all(-1)
    assert page.shape == (480, 640, 3)
    assert yellow[300, 100]
    assert yellow[300, 300]
    assert not yellow[300, 200]


def test_a_folder_that_cant_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match=r"can't be written to .*: .*--report"):
        write_report(VIDEO, [HEARD], tmp_path / "file")
