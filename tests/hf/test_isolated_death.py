"""A model's process that crashes, hangs, can't load or loses its manager: typed errors, and nothing is left of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.base import START_TIMED_OUT
from taskrouter.backends.engines import guardian
from taskrouter.backends.engines.launch import Place
from taskrouter.backends.engines.supervisor import Process
from taskrouter.backends.hf.isolated import backend as isolated
from taskrouter.backends.hf.isolated.model import IsolatedModel
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import LoadFailed, ModelDied, OutOfMemory, SleepFailed
from taskrouter.types import CPU, GIB, Charges

from .checkpoints import request, say, seen

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
CHARGES: Charges = {CPU: GIB}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@asynccontextmanager
async def clean(folder: Path) -> AsyncIterator[TransformersBackend]:
    """A backend of which nothing is left at the end: no process, no folder, no descriptor."""
    fds = len(os.listdir("/proc/self/fd"))
    backend = TransformersBackend()
    try:
        yield backend
    finally:
        pids = [process.pid for process in started(backend)]
        await backend.close()
    assert all(guardian.is_zombie(pid) for pid in pids)
    assert list(folder.glob("taskrouter-*")) == []
    assert list((folder / "state" / "taskrouter" / "engines").glob("*")) == []
    assert len(os.listdir("/proc/self/fd")) == fds


def started(backend: TransformersBackend) -> list[Process]:
    return list(backend.isolated.supervisor._processes.values())


async def loaded(backend: TransformersBackend, folder: Path, **options: Any) -> IsolatedModel:
    model = await backend.load(request(folder, isolation="process", **options), (CPU,), CHARGES)
    assert isinstance(model, IsolatedModel)
    return model


async def spawned(backend: TransformersBackend) -> Process:
    """The process of a load under way, as soon as there is one."""
    await seen(lambda: any(process.pid for process in started(backend)))
    return started(backend)[0]


async def test_one_that_is_killed_fails_its_calls_with_its_last_words_and_costs_its_neighbour_nothing(
    folders: Path, chat_folder: Path
) -> None:
    async with clean(folders) as backend:
        neighbour = await backend.load(request(chat_folder), (CPU,), CHARGES)
        model = await loaded(backend, chat_folder)
        dead = asyncio.ensure_future(model.wait_dead())
        pieces = model.stream("stream_chat", say("w1", max_tokens=100))
        await anext(pieces)
        os.kill(model.info["pid"], signal.SIGSTOP)  # or it may be done before it is killed
        waiting = asyncio.ensure_future(model.call("chat", say("w1", max_tokens=100)))
        await seen(lambda: len(model.process._calls) == 2)
        # As a segmentation fault is: the stack goes to the log.
        os.kill(model.info["pid"], signal.SIGSEGV)
        os.kill(model.info["pid"], signal.SIGCONT)
        with pytest.raises(ModelDied, match=r"its process was killed by SIGSEGV"):
            async for _ in pieces:
                pass
        with pytest.raises(ModelDied, match=r"SIGSEGV"):
            await waiting
        error = await dead
        assert model.info["log"] in str(error)
        assert "Fatal Python error: Segmentation fault" in Path(model.info["log"]).read_text()
        with pytest.raises(ModelDied, match=r"SIGSEGV"):
            await model.call("chat", say("w1"))
        with pytest.raises(SleepFailed, match=r"SIGSEGV"):
            await backend.demote(model, timeout_s=1)
        with pytest.raises(SleepFailed, match=r"SIGSEGV"):
            await backend.promote(model, CHARGES)
        assert (await neighbour.call("chat", say("w1", max_tokens=2))).text
        assert await backend.unload(model, timeout_s=5) == {}
        assert await backend.residue(model.request.key) == {}
        assert await backend.unload(neighbour, timeout_s=5) == {}


async def test_one_that_hangs_is_killed_within_its_bound_and_so_is_one_that_does_not_stop(
    folders: Path, chat_folder: Path
) -> None:
    async with clean(folders) as backend:
        silent, stubborn = await asyncio.gather(
            loaded(backend, chat_folder, hang_timeout_s=2.0), loaded(backend, chat_folder, hang_timeout_s=2.0)
        )
        dead = asyncio.ensure_future(silent.wait_dead())
        await asyncio.sleep(2.5)
        assert not dead.done(), "it answers, and is idle"
        for model in (silent, stubborn):
            os.kill(model.info["pid"], signal.SIGSTOP)
        asked = [asyncio.ensure_future(each.call("chat", say("w1", max_tokens=100))) for each in (silent, stubborn)]
        await seen(lambda: bool(silent.process._calls and stubborn.process._calls))
        asked[1].cancel()
        assert "has been silent for 2 s (engines.transformers.hang_timeout_s)" in str(await dead)
        with pytest.raises(ModelDied, match="has been silent"):
            await asked[0]
        with pytest.raises(asyncio.CancelledError):
            await asked[1]
        with pytest.raises(ModelDied, match=r"was told to stop a call, and hadn't after 2 s"):
            await stubborn.call("chat", say("w1"))
        for model in (silent, stubborn):
            await asyncio.wait_for(asyncio.shield(model.process.process.gone), 10)
            assert await backend.unload(model, timeout_s=5) == {}


@pytest.mark.parametrize(
    ("how", "cancelled", "raised"),
    [
        (signal.SIGKILL, None, r"killed by SIGKILL \(which the kernel does when RAM runs out\) while it loaded"),
        (signal.SIGSTOP, START_TIMED_OUT, r"not ready within engines\.transformers\.start_timeout_s and was killed"),
        (signal.SIGSTOP, "", ""),
    ],
)
async def test_a_load_that_dies_is_stuck_or_is_called_off_leaves_no_process(
    folders: Path, chat_folder: Path, how: signal.Signals, cancelled: str | None, raised: str
) -> None:
    async with clean(folders) as backend:
        load = asyncio.ensure_future(loaded(backend, chat_folder))
        process = await spawned(backend)
        os.kill(process.pid, how)
        await asyncio.sleep(0.1)
        if cancelled is not None:
            load.cancel(cancelled)
        with pytest.raises(LoadFailed, match=raised) if raised else pytest.raises(asyncio.CancelledError):
            await load
        assert process.gone.done()
        assert guardian.is_zombie(process.pid)


async def test_a_load_that_fails_in_its_process_raises_what_it_would_raise_here(
    folders: Path, chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with clean(folders) as backend:
        asked = request(chat_folder, isolation="process")
        charges: Charges = {CPU: 1 << 60}
        with pytest.raises(OutOfMemory, match=r"was given .* on cpu, but only .* are really free"):
            await backend.load(asked, (CPU,), charges)
        assert backend.isolated.supervisor.guardian_pid is None, "nothing was started for it"
        monkeypatch.setattr(isolated, "look", lambda *_: (Place(CPU, "", 1 << 60, 1 << 60, 1 << 60),))
        with pytest.raises(OutOfMemory, match=r"tiny-llama was given .* on cpu, but only .* are really free"):
            await backend.load(asked, (CPU,), charges)
        assert started(backend) == []


def config(folder: Path, checkpoint: Path) -> Path:
    option = {
        "model_id": str(checkpoint),
        "framework": "transformers",
        "isolation": "process",
        "env": {"MARK": "its own"},
    }
    tasks = {"ask": {"kind": "chat", "selected": "apart", "options": {"apart": option}}}
    file = folder / "models.yaml"
    file.write_text(json.dumps({"tasks": tasks, "inference": {"warmup_on_startup": False}}), encoding="utf-8")
    return file


VICTIM = """
import asyncio, sys
from taskrouter import ModelManager
from taskrouter.manager import StillMachine
async def main():
    manager = ModelManager(sys.argv[1], machine=StillMachine({"cpu": 2 << 30}))
    async with manager.lease("ask") as model:
        print(model.info["pid"], (await model.chat("w1", max_tokens=3)).text, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def test_where_a_model_lives_is_its_options_word(folders: Path, chat_folder: Path) -> None:
    """And it never outlives the manager, however that ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(config(folders, chat_folder))], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        pid, _, text = process.stdout.readline().partition(" ")
        tree = [int(pid), *guardian.descendants(process.pid)]
        assert int(pid) != process.pid
        assert text.strip()
        assert "MARK=its own" in Path(f"/proc/{pid}/environ").read_text().split("\0")
        assert any("isolated.child" in command(each) for each in tree)
        assert any("guardian.py" in command(each) for each in tree)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    asyncio.run(seen(lambda: all(guardian.is_zombie(each) for each in tree)))


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
