"""Every branch of the pure rooms is taken by a test that means it: the gate that holds their coverage at 100 %."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PURE: tuple[tuple[str, str], ...] = (
    ("taskrouter/errors.py", "tests/test_errors.py"),
    ("taskrouter/types.py", "tests/residency"),
    ("taskrouter/verbs.py", "tests/test_verbs.py"),
    ("taskrouter/demands.py", "tests/test_demands.py"),
    ("taskrouter/residency/*", "tests/residency"),
    ("taskrouter/routing/*", "tests/routing"),
    ("taskrouter/simulate/*", "tests/simulate"),
)
"""Each pure room (or file) and the tests that have to reach all of it."""

BY_CHANCE = (
    "tests/residency/test_liveness.py",
    "tests/residency/test_machine.py",
    "tests/residency/test_mutants.py",  # it compiles cores of its own
    "tests/residency/test_traffic.py",
    "tests/routing/test_routing_random.py",
)
"""Tests that take random days: what they reach, the next version of a library may miss. Not measured, as little as
those that hypothesis drives."""


def coverage(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``coverage`` beside this test's own measurement, if there is one."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("COVERAGE", "PYTEST"))}
    environment |= {"COVERAGE_FILE": str(folder / "data"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "coverage", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


def measure(folder: Path, rooms: tuple[tuple[str, str], ...], *chosen: str) -> subprocess.CompletedProcess[str]:
    """Run the event lists of these rooms; the report, which fails below 100 % and names what is missing."""
    tests = sorted({tests for _, tests in rooms})
    ignored = [f"--ignore={name}" for name in BY_CHANCE]
    plain = ["-q", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider", "-m", "not slow and not hypothesis"]
    ran = coverage(folder, "run", "--branch", "--source=taskrouter", "-m", "pytest", *tests, *ignored, *plain, *chosen)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    include = ",".join(room for room, _ in rooms)
    return coverage(folder, "report", "--show-missing", "--skip-covered", "--fail-under=100", f"--include={include}")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_branch_of_the_pure_rooms_is_taken_by_an_event_list(tmp_path: Path) -> None:
    report = measure(tmp_path, PURE)
    assert report.returncode == 0, f"write an event list that goes there:\n{report.stdout}{report.stderr}"
    assert "TOTAL" in report.stdout


@pytest.mark.slow
def test_a_branch_that_no_test_takes_is_told_by_its_line(tmp_path: Path) -> None:
    report = measure(tmp_path, (("taskrouter/routing/pace.py", "tests/routing"),), "-k", "in_a_line")
    assert report.returncode == 2, report.stdout + report.stderr
    assert "taskrouter/routing/pace.py" in report.stdout
    assert "fail-under=100" in report.stdout + report.stderr


def test_every_room_that_may_read_no_clock_is_measured() -> None:
    """The list of pure rooms is the import contract's."""
    contracts = (ROOT / "pyproject.toml").read_text()
    (line,) = [line for line in contracts.splitlines() if line.startswith("source_modules")]
    pure = {name.replace(".", "/") for name in line.split('"')[1::2]}
    assert pure == {room.removesuffix("/*").removesuffix(".py") for room, _ in PURE}
