"""The spend ledger among processes: one file for all, killed ones, ones that forget to close, and a full disk."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from taskrouter.spend import SpendLedger, read_spent

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import asyncio, os, sys
from pathlib import Path
from taskrouter.spend import SpendLedger

ledger = SpendLedger(Path(sys.argv[1]))

async def spend(usd=0.25, option="best"):
    await ledger.record(
        provider="p", task="t", option=option, model_id="m", input_tokens=1, output_tokens=1, usd=usd
    )

def say(*words):
    print(*words, flush=True)

def wait():
    sys.stdin.readline()
"""

MANY = """
async def main():
    await spend()
    say("ready")
    wait()
    for _ in range(20):
        await asyncio.gather(*[spend() for _ in range(25)])
    await ledger.close()

asyncio.run(main())
"""

UNTIL_KILLED = """
async def main():
    for count in range(1, 1_000_000):
        await spend()
        say(count)

asyncio.run(main())
"""

FORGETFUL = """
import sqlite3

async def main():
    await spend()
    say(ledger.spent_today("p"))
    # Somebody else's transaction is in the way while the caller is cancelled and the process begins to end.
    other = sqlite3.connect(sys.argv[1], isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    caller = asyncio.ensure_future(spend())
    await asyncio.sleep(0)
    caller.cancel()
    import atexit
    atexit.register(lambda: (other.execute("COMMIT"), other.close()))

asyncio.run(main())
"""

DAMAGED = """
import logging
logging.basicConfig(stream=sys.stdout, format="%(message)s")

async def main():
    say("ready")
    wait()
    for _ in range(50):
        await spend()
    await ledger.close()
    say("aside:", ledger.set_aside)

asyncio.run(main())
"""

FULL = """
import resource
import logging
logging.basicConfig(stream=sys.stdout, format="%(message)s")

async def main():
    await spend()
    say(ledger.spent_today("p"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    await spend()
    await spend()
    say(ledger.spent_today("p"))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await spend()
    say(ledger.spent_today("p"))
    await ledger.close()
    say(ledger.report()[0].requests, ledger.commits)

asyncio.run(main())
"""


class Started:
    """Processes of one test; none outlives it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: list[subprocess.Popen[str]] = []

    def __call__(self, program: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", PRELUDE + program, str(self.path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.all.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))  # type: ignore[call-overload]
        return self.all[-1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    started = Started(tmp_path / "state" / "spend.db")
    yield started
    for process in started.all:
        process.kill()
        process.communicate(timeout=30)


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def go(*processes: subprocess.Popen[str]) -> None:
    """Let processes that are ready begin together."""
    for process in processes:
        assert pipe(process.stdout).readline() == "ready\n"
    for process in processes:
        pipe(process.stdin).write("go\n")
        pipe(process.stdin).flush()


def ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return out


def test_two_processes_lose_none_of_each_others_records(start: Started) -> None:
    ours = SpendLedger(start.path)
    processes = [start(MANY), start(MANY)]
    go(*processes)
    for process in processes:
        ended(process)
    assert ours.spent_today("p") == 2 * 501 * 0.25, "every process sees what all spend"
    assert [(spent.requests, spent.usd) for spent in read_spent(start.path)] == [(1002, 250.5)]
    asyncio.run(ours.close())


def test_a_process_killed_after_record_returned_loses_nothing(start: Started) -> None:
    process = start(UNTIL_KILLED)
    for _ in range(100):
        returned = int(pipe(process.stdout).readline())
    process.send_signal(signal.SIGKILL)
    rest = pipe(process.stdout).read()
    whole_lines = rest[: rest.rfind("\n") + 1].split()
    returned = int(whole_lines[-1]) if whole_lines else returned
    (spent,) = read_spent(start.path)
    # It may die between the commit and the word of it.
    assert returned <= spent.requests <= returned + 1
    assert spent.usd == spent.requests * 0.25


def test_a_process_that_forgets_to_close_ends_with_everything_written(start: Started) -> None:
    assert ended(start(FORGETFUL)) == "0.25\n"
    assert [spent.requests for spent in read_spent(start.path)] == [2]
    assert sorted(os.listdir(start.path.parent)) == ["spend.db", "spend.db.lock"]


@pytest.mark.parametrize("bad", [b"noise" * 10_000, b"SQLite format 3\0 and no more"])
def test_processes_that_find_the_damage_at_once_leave_each_others_new_file_alone(start: Started, bad: bytes) -> None:
    start.path.parent.mkdir()
    start.path.write_bytes(bad)
    processes = [start(DAMAGED) for _ in range(4)]
    go(*processes)
    said = "".join(ended(process) for process in processes)
    aside = [name for name in os.listdir(start.path.parent) if "damaged" in name]
    assert len(aside) == 1
    assert (start.path.parent / aside[0]).read_bytes() == bad
    assert said.count("is set aside as") == 1
    assert said.count("aside: None") == 3
    assert [spent.requests for spent in read_spent(start.path)] == [200]


def test_a_full_disk_loses_nothing_and_counts_nothing_twice(start: Started) -> None:
    first, trouble, full, again, end = ended(start(FULL)).splitlines()
    assert "is kept in memory until it can" in trouble
    assert (first, full, again) == ("0.25", "0.75", "1.0")
    assert end == "4 2", "requests, commits"
    assert [(spent.requests, spent.usd) for spent in read_spent(start.path)] == [(4, 1.0)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_loses_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    async def use() -> None:
        ledger = SpendLedger(tmp_path / "spend.db")
        await ledger.record(provider="p", task="t", option="o", model_id="m", input_tokens=1, output_tokens=1, usd=0.25)
        assert ledger.spent_today("p") == 0.25
        tmp_path.chmod(0o700)
        await ledger.close()
        assert [spent.usd for spent in read_spent(ledger.path)] == [0.25]
        tmp_path.chmod(0o500)
        assert ledger.spent_today("p") == 0.25, "SQLite can't begin a log there"
        assert [spent.usd for spent in read_spent(ledger.path)] == [0.25]
        tmp_path.chmod(0o700)

    asyncio.run(use())
