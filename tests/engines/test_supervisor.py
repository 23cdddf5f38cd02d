"""Processes under a guardian: whatever is killed, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.engines import guardian, sweep
from taskrouter.backends.engines.supervisor import Process, Supervisor
from taskrouter.errors import LoadFailed, ManagerClosed

BOUND_S = 10.0

LEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"leaf" + bytes([10]))
time.sleep(100)
"""
# os.write: several processes share the pipe, and print() writes a line in two pieces.
TREE = f"""
import os, signal, subprocess, sys, time
from multiprocessing import shared_memory, resource_tracker
leaf = {LEAF!r}
if len(sys.argv) > 1:
    segment = shared_memory.SharedMemory(create=True, size=4096)
    resource_tracker.unregister(segment._name, "shared_memory")
    open(os.path.join(os.environ["TMPDIR"], "scratch"), "w").close()
    # A daemon in a session of its own, whose parent ends at once.
    again = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
    subprocess.run([sys.executable, "-c", again, leaf])
    subprocess.Popen([sys.executable, "-c", leaf])
    os.write(1, b"segment " + segment.name.encode() + bytes([10]))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"ready" + bytes([10]))
time.sleep(100)
"""


def env() -> dict[str, str]:
    return dict(os.environ)


async def start(supervisor: Supervisor, *args: str, program: str = TREE, secret: str = "") -> Process:
    return await supervisor.spawn("tree", [sys.executable, "-c", program, *args], env(), cwd="/", secret=secret)


async def until(condition: Callable[[], bool], bound_s: float = BOUND_S) -> None:
    end = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < end, "it took too long"
        await asyncio.sleep(0.01)


async def whole_tree(process: Process) -> tuple[list[int], str]:
    """All its processes once they are there, and the name of its segment."""
    await until(lambda: process.output.lines().count("leaf") == 2 and "ready" in process.output.lines())
    name = next(line.split()[1] for line in process.output.lines() if line.startswith("segment"))
    return [pid for pid in guardian.everyone() if guardian.carries(pid, process.token)], name


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if not guardian.is_zombie(pid)]


def play(main: Callable[[Supervisor], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        supervisor = Supervisor()
        try:
            await main(supervisor)
        finally:
            await supervisor.close()
            assert supervisor.guardian_pid is None

    asyncio.run(whole())


def test_the_end_of_a_program_is_told_with_its_status_and_its_words() -> None:
    async def main(supervisor: Supervisor) -> None:
        process = await start(supervisor, program="print('hello'); raise SystemExit(7)")
        assert await asyncio.wait_for(process.exited, BOUND_S) == 7
        assert await asyncio.wait_for(process.gone, BOUND_S) == []
        await asyncio.to_thread(process.output.join, BOUND_S)
        assert process.output.tail() == "hello"
        assert process.output.path.read_text().strip() == "hello"

    play(main)


def test_a_program_that_is_not_there_is_a_typed_error_and_leaves_nothing() -> None:
    async def main(supervisor: Supervisor) -> None:
        for program, said in (("/no/such/program", "No such file"), ("/etc/passwd", "Permission denied")):
            with pytest.raises(LoadFailed, match=f"tree can't be started: {said}"):
                await supervisor.spawn("tree", [program], env(), cwd="/")
        assert supervisor._processes == {}

    play(main)


def test_killing_a_tree_takes_daemons_segments_and_temporary_files_along() -> None:
    async def main(supervisor: Supervisor) -> None:
        process = await start(supervisor, "whole")
        pids, segment = await whole_tree(process)
        assert len(pids) >= 3  # the first process, its child, and the daemon, whose own parent has ended
        assert Path("/dev/shm", segment).exists()
        assert Path(process.tmp, "scratch").exists()
        assert await process.stop(0.05) == []
        assert living(pids) == []
        assert not Path("/dev/shm", segment).exists()
        assert not Path(process.tmp).exists()

    play(main)


def test_a_program_ends_by_itself_when_it_is_asked_to() -> None:
    """A signal that the guardian ignored would be ignored by what it starts."""

    async def main(supervisor: Supervisor) -> None:
        for program in ("pass", "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(5))"):
            waiting = f"import time; {program}; print('ready', flush=True); time.sleep(100)"
            process = await start(supervisor, program=waiting)
            await until(lambda process=process: "ready" in process.output.lines())  # type: ignore[misc]
            begun = time.monotonic()
            assert await process.stop(BOUND_S) == []
            assert time.monotonic() - begun < BOUND_S / 2
            assert process.exited.result() == (-signal.SIGTERM if program == "pass" else 5)

    play(main)


def test_what_an_engine_leaves_when_it_dies_is_killed_at_once() -> None:
    async def main(supervisor: Supervisor) -> None:
        process = await start(supervisor, "whole")
        pids, _ = await whole_tree(process)
        os.kill(process.pid, signal.SIGKILL)
        assert await asyncio.wait_for(process.exited, BOUND_S) == -signal.SIGKILL
        assert await asyncio.wait_for(process.gone, BOUND_S) == []
        assert living(pids) == []
        process.note()  # said to nobody: no harm

    play(main)


def test_a_segment_that_was_noted_is_removed_although_everybody_died_at_once() -> None:
    async def main(supervisor: Supervisor) -> None:
        process = await start(supervisor, "whole")
        pids, segment = await whole_tree(process)
        process.note()
        await until(lambda: process.shm == (Path("/dev/shm", segment).stat().st_ino,))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(process.gone, BOUND_S)
        assert not Path("/dev/shm", segment).exists()

    play(main)


def test_what_others_keep_in_shared_memory_stays_although_the_engine_mapped_it() -> None:
    """A checkpoint that is kept in RAM is not the engine's to take along."""
    kept = Path("/dev/shm") / f"kept-{secrets.token_hex(4)}"
    kept.write_bytes(b"weights" * 1000)
    program = f"""
import mmap, os, time
file = open({str(kept)!r}, "r+b")
mapped = mmap.mmap(file.fileno(), 0)
os.write(1, b"ready" + bytes([10]))
time.sleep(100)
"""

    async def main(supervisor: Supervisor) -> None:
        process = await start(supervisor, program=program)
        await until(lambda: "ready" in process.output.lines())
        process.note()
        assert await process.stop(1) == []

    try:
        play(main)
        assert kept.exists()
    finally:
        kept.unlink(missing_ok=True)


@pytest.mark.parametrize("bad", [{"A=B": "x"}, {"A": "x\0y"}])
def test_an_environment_no_process_can_have_costs_only_its_own_start(bad: dict[str, str]) -> None:
    async def main(supervisor: Supervisor) -> None:
        neighbour = await start(supervisor)
        with pytest.raises(LoadFailed, match="tree can't be started: "):
            await supervisor.spawn("tree", [sys.executable, "-c", "pass"], {**env(), **bad}, cwd="/")
        await asyncio.sleep(0.1)
        assert not neighbour.exited.done()

    play(main)


def test_a_start_whose_guardian_is_killed_is_told_at_once() -> None:
    async def main(supervisor: Supervisor) -> None:
        await start(supervisor, program="pass")
        warden = supervisor.guardian_pid
        assert warden is not None
        os.kill(warden, signal.SIGSTOP)
        starting = asyncio.create_task(start(supervisor))
        await asyncio.sleep(0.2)
        os.kill(warden, signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(LoadFailed, match="its guardian process was killed meanwhile"):
            await starting
        assert time.monotonic() - begun < 5

    play(main)


def test_starts_that_are_cancelled_leak_no_file_descriptor() -> None:
    async def main(supervisor: Supervisor) -> None:
        await start(supervisor, program="pass")
        await until(lambda: not supervisor._processes)
        await asyncio.sleep(0.1)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            task = asyncio.create_task(start(supervisor))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)

    play(main)


def test_a_session_that_only_has_the_pid_of_one_that_was_left_is_spared(state: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True) as stranger:
        try:
            left = sweep.Started("left", "no such token", stranger.pid, 12345, "")
            assert sweep.clear(left) == []
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_run_of_another_container_is_its_own_to_sweep(state: Path) -> None:
    folder = state / "engines"
    folder.mkdir(parents=True)
    over = {"pid": 1, "started": 0}
    said = {"boot": sweep.boot_id(), "pids": "pid:[1]", "manager": over, "guardians": [over], "engines": []}
    (folder / "1-x.json").write_text(json.dumps(said))
    sweep.sweep(folder)
    assert (folder / "1-x.json").exists()
    (folder / "1-x.json").unlink()


def test_a_killed_guardian_takes_its_engines_along_and_the_next_start_has_a_new_one() -> None:
    async def main(supervisor: Supervisor) -> None:
        process = await start(supervisor, "whole")
        pids, segment = await whole_tree(process)
        process.note()
        await until(lambda: process.shm == (Path("/dev/shm", segment).stat().st_ino,))
        first = supervisor.guardian_pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert await asyncio.wait_for(process.exited, BOUND_S) < 0
        assert await asyncio.wait_for(process.gone, BOUND_S) == []
        assert living(pids) == []
        assert not Path("/dev/shm", segment).exists()
        assert not Path(process.tmp).exists()
        again = await start(supervisor, program="print('again')")
        assert supervisor.guardian_pid not in (None, first)
        assert await asyncio.wait_for(again.exited, BOUND_S) == 0

    play(main)


def test_a_guardian_that_is_stopped_does_not_keep_a_tree_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskrouter.backends.engines.supervisor.GONE_BOUND_S", 0.2)

    async def main(supervisor: Supervisor) -> None:
        process = await start(supervisor, "whole")
        pids, _ = await whole_tree(process)
        warden = supervisor.guardian_pid
        assert warden is not None
        os.kill(warden, signal.SIGSTOP)
        try:
            assert await process.kill() == []
            assert living(pids) == []
        finally:
            os.kill(warden, signal.SIGCONT)

    play(main)


@pytest.mark.slow
def test_a_guardian_that_is_stopped_for_good_costs_one_start_and_is_ended_with_its_last_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taskrouter.backends.engines.supervisor.GONE_BOUND_S", 0.2)
    monkeypatch.setattr("taskrouter.backends.engines.supervisor.SPAWN_BOUND_S", 0.5)
    monkeypatch.setattr("taskrouter.backends.engines.supervisor.IDLE_BOUND_S", 0.2)
    monkeypatch.setattr("taskrouter.backends.engines.supervisor.BUSY_BOUND_S", 0.5)

    async def main(supervisor: Supervisor) -> None:
        serving = await start(supervisor, "whole")
        await whole_tree(serving)
        stopped = supervisor.guardian_pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(LoadFailed, match=r"its guardian process doesn't answer\. The next start has a new one"):
            await start(supervisor)
        later = await start(supervisor)
        assert supervisor.guardian_pid not in (None, stopped)
        # What serves under the silent one goes on to serve, and is written down for whoever sweeps.
        assert not serving.exited.done()
        assert living([serving.pid]) == [serving.pid]
        written = json.loads(next((supervisor.folder / "engines").glob("*.json")).read_text())
        assert {warden["pid"] for warden in written["guardians"]} == {stopped, supervisor.guardian_pid}
        assert await serving.kill() == []
        await until(lambda: guardian.start_time(stopped) == 0)
        assert not later.exited.done()
        os.kill(supervisor.guardian_pid or 0, signal.SIGSTOP)
        begun = time.monotonic()
        await supervisor.close()
        assert living([later.pid]) == []
        assert time.monotonic() - begun < BOUND_S

    play(main)


def test_a_start_that_is_cancelled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(supervisor: Supervisor) -> None:
        await start(supervisor, program="pass")  # the guardian is there now
        for delay in (0.0, 0.001, 0.003, 0.01):
            task = asyncio.create_task(start(supervisor))
            await asyncio.sleep(delay)
            task.cancel()
            try:
                process = await task
            except asyncio.CancelledError:
                continue
            await process.kill()
        await until(lambda: not supervisor._processes)
        await until(lambda: not guardian.descendants(supervisor.guardian_pid or 0))

    play(main)


def test_a_short_program_is_run_to_its_end_or_its_bound() -> None:
    async def main(supervisor: Supervisor) -> None:
        argv = [sys.executable, "-c", "print('one'); print('two')"]
        assert await supervisor.run("check", argv, env(), cwd="/", bound_s=BOUND_S) == (0, "one\ntwo")
        slow = [sys.executable, "-c", "import time; time.sleep(100)"]
        status, _ = await supervisor.run("check", slow, env(), cwd="/", bound_s=0.1)
        assert status is None

    play(main)


def test_nothing_is_started_after_the_end() -> None:
    async def main(supervisor: Supervisor) -> None:
        await supervisor.close()
        with pytest.raises(ManagerClosed):
            await start(supervisor)

    play(main)


def test_a_secret_is_neither_kept_nor_written() -> None:
    async def main(supervisor: Supervisor) -> None:
        process = await start(supervisor, program="print('key=s3cret!')", secret="s3cret!")
        await asyncio.wait_for(process.gone, BOUND_S)
        await asyncio.to_thread(process.output.join, BOUND_S)
        assert process.output.tail() == "key=***"
        assert "s3cret!" not in process.output.path.read_text()

    play(main)


def test_a_log_that_can_not_be_written_costs_only_itself(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    state.mkdir(parents=True)
    (state / "logs").write_text("a file where the folder should be")

    async def main(supervisor: Supervisor) -> None:
        process = await start(supervisor, program="print('x' * 200_000); print('end')")
        assert await asyncio.wait_for(process.exited, BOUND_S) == 0
        await asyncio.to_thread(process.output.join, BOUND_S)
        assert process.output.tail(1) == "end"

    play(main)
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "the engine's output can't be written" in line]) == 1


def test_the_next_manager_sweeps_what_was_left_when_manager_and_guardian_were_killed(state: Path) -> None:
    """The state file of a run that is over, as it is left then: its engine still runs, with its children."""

    async def main(supervisor: Supervisor) -> None:
        process = await start(supervisor, "whole")
        pids, segment = await whole_tree(process)
        folder = state / "engines"
        (file,) = folder.glob("*.json")
        other = folder / "1-left.json"
        over = file.read_text().replace(f'"pid": {os.getpid()}', '"pid": 1', 1)
        other.write_text(over.replace(f'"guardians": [{{"pid": {supervisor.guardian_pid}', '"guardians": [{"pid": 1'))
        assert sweep.leftovers(folder) == ["tree"]
        await asyncio.to_thread(sweep.sweep, folder)
        assert living(pids) == []
        assert not Path("/dev/shm", segment).exists()
        assert not Path(process.tmp).exists()
        assert sorted(folder.glob("*.json")) == [file]
        (folder / "damaged.json").write_text("{")
        await asyncio.to_thread(sweep.sweep, folder)
        assert sorted(folder.glob("*.json")) == [file]

    play(main)
