"""What is too large is refused before it costs anything: RAM as a process of its own measured it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REFUSED = {
    "a picture of 100 megapixels": "MediaTooLarge: the image has 10000 × 10000",
    "a small picture from a huge tile": "MediaTooLarge: a tile of the image has 10000 × 10000",
    "an array of 100 megapixels": "MediaTooLarge: the image has 10000 × 10000",
    "a video of 100 megapixels that says it is small": "BadInput: the video has no picture that can be decoded",
    "an array of a day": "MediaTooLarge: the audio array lasts longer than the 3600",
    "an hour of silence": "(57600000,)",
    "two hours of silence": "MediaTooLarge: the audio lasts longer than the 3600",
}


@pytest.mark.slow
def test_bad_media_take_no_more_memory_than_good_ones() -> None:
    program = [sys.executable, "-W", "ignore", "-m", "tests.media.weighing"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    found = json.loads(done.stdout)
    assert [name for name, *_ in found] == list(REFUSED)
    for name, said, mib, most in found:
        assert said.startswith(REFUSED[name]), name
        assert mib <= most, f"{name}: {mib} MiB, and {most} were enough"
