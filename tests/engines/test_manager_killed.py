"""The manager is killed at any moment: its guardian lets nothing survive it, and where that died too, the next manager.

``CHAOS_SEED`` looks for other moments.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from taskrouter.backends.engines import guardian, sweep

from . import stub_faults, watch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("CHAOS_SEED", "1"))
GONE_S = 5.0
LONGEST_S = 2.5


class Victim:
    """A manager in a process of its own, with stubs under traffic."""

    def __init__(self, config: Path, seed: int, manner: str, *more: str) -> None:
        argv = [sys.executable, "-m", "tests.engines.stub_manager", str(config), str(seed), manner, *more]
        environ = {**os.environ, "TMPDIR": tempfile.gettempdir()}
        self.process = subprocess.Popen(argv, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
        self.forked: list[int] = []

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def guardian(self) -> list[int]:
        return [pid for pid in guardian.children(self.process.pid) if "engines/guardian.py" in watch.command(pid)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[watch.Run]:
    run = watch.Run(secrets.token_hex(4), Path(tempfile.gettempdir()), stubs=True)
    monkeypatch.setenv(watch.MARK, run.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield run
    run.clear()


@contextmanager
def victim(folder: Path, seed: int, manner: str, *more: str) -> Iterator[Victim]:
    config = stub_faults.write_config(folder, models=4, gib=0.4)
    started = Victim(config, seed, manner, *more)
    try:
        assert started.line() == "ready"
        yield started
    finally:
        started.kill()
        assert started.process.stdout is not None
        started.process.stdout.close()


@pytest.mark.parametrize("number", range(20))
def test_nothing_survives_a_manager_that_is_killed_at_any_moment(
    tmp_path: Path, mine: watch.Run, state: Path, number: int
) -> None:
    """While its engines start, serve or are evicted; in its loop or in threads; also when a forked child lives on."""
    dice = random.Random(f"{SEED} {number}")
    manner = dice.choice(["loop", "loop", "threads", "forks"])
    with victim(tmp_path, number, manner) as manager:
        if manner == "forks":
            manager.forked.append(int(manager.line().split()[1]))
        time.sleep(dice.uniform(0, LONGEST_S))
        mine.note_ports()
        manager.kill()
        left = mine.clean_within(GONE_S, but=manager.forked)
        for pid in manager.forked:
            os.kill(pid, signal.SIGKILL)
    assert left == [], manner
    sweep.sweep(state / "engines")  # what the next manager does; the state file of this one is of no use any more


@pytest.mark.parametrize("number", range(12))
def test_nothing_survives_a_manager_that_ends_between_any_two_steps_of_a_start(
    tmp_path: Path, mine: watch.Run, state: Path, number: int
) -> None:
    """Random moments seldom hit the few milliseconds in which a process is started; here each is one of those."""
    step = random.Random(f"{SEED} steps {number}").randint(20, 200)
    with victim(tmp_path, number, "step", str(step)) as manager:
        where = manager.line()
        manager.process.wait(30)
        left = mine.clean_within(GONE_S)
    assert left == [], f"step {step}: {where}"
    sweep.sweep(state / "engines")


@pytest.mark.parametrize("number", range(8))
def test_what_survives_manager_and_guardian_is_gone_once_the_next_manager_has_started(
    tmp_path: Path, mine: watch.Run, number: int
) -> None:
    dice = random.Random(f"{SEED} both {number}")
    with victim(tmp_path, number, dice.choice(["loop", "threads"])) as manager:
        time.sleep(dice.uniform(0.3, LONGEST_S))
        mine.note_ports()
        wardens = manager.guardian()
        pids = dice.sample([*wardens, manager.process.pid], k=len(wardens) + 1)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            time.sleep(dice.choice([0, 0, 0.005, 0.03]))
        manager.kill()
    after = Victim(tmp_path / "models.yaml", number, "once")
    assert after.line() == "stub-a heard: hello"
    assert after.process.wait(30) == 0
    assert after.process.stdout is not None
    after.process.stdout.close()
    assert mine.clean_within(GONE_S) == []
