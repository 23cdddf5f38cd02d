"""Mutated files of every kind: no crash, no hang, no other error than ``BadInput``, and memory within bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from . import fuzzing
from .seeds import FILMS, IMAGES, SOUNDS


def fuzz(first: int, count: int, folder: Path) -> None:
    program = [sys.executable, "-W", "ignore", "-m", "tests.media.fuzzing", str(first), str(count), str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    which = (folder / "which").read_text(encoding="utf-8") if (folder / "which").exists() else "before the first"
    assert done.returncode == 0, f"{which} ended the process ({done.returncode}):\n{done.stderr[-3000:]}"
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["read"] + found["refused"] == count
    # One that refuses everything, or nothing, would show nothing.
    assert found["read"] > count / 10
    assert found["refused"] > count / 10


@pytest.mark.slow
def test_a_few_hundred_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    fuzz(0, 200, tmp_path)


@pytest.mark.slow
def test_some_thousand_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    fuzz(1_000, 2_500, tmp_path)


def test_a_case_is_the_same_each_time_and_cases_differ() -> None:
    files = {"jpeg": IMAGES["jpeg"](), "wav": SOUNDS["wav"]()}
    assert files["wav"] == SOUNDS["wav"]()
    cases = [fuzzing.case(number, files) for number in range(20)]
    assert cases == [fuzzing.case(number, files) for number in range(20)]
    assert len({data for _, _, data in cases}) == 20


@pytest.mark.parametrize("kind", sorted(FILMS))
def test_each_film_is_the_same_bytes_each_time(kind: str) -> None:
    assert FILMS[kind]() == FILMS[kind]()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failing", "said"),
    [("os.abort()", "Fatal Python error: Aborted"), ("time.sleep(60)", "Timeout"), ("1 / 0", "ZeroDivisionError")],
)
def test_what_is_looked_for_is_found(tmp_path: Path, failing: str, said: str) -> None:
    """A reader that crashes, hangs, or raises what it may not."""
    program = (
        "import os, time, sys, json\nfrom pathlib import Path\nfrom tests.media import fuzzing\n"
        "fuzzing.HANG_S = 0.2\n"
        f"def read(data):\n    {failing}\n"
        "fuzzing.case = lambda number, files: ('jpeg', read, b'')\n"
        f"print(json.dumps(fuzzing.main(7, 1, Path({str(tmp_path)!r}))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert said in done.stdout + done.stderr
    assert (tmp_path / "which").read_text(encoding="utf-8") == "case 7: jpeg by read"
