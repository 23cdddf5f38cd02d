"""One process per GPU."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from taskrouter.errors import DeviceInUse, TaskRouterError
from taskrouter.memory.gpu_lock import default_runtime_dir, gpu_lock

UUID = "GPU-1234/../5"
FORK = """
import os, sys
from pathlib import Path
from taskrouter.memory.gpu_lock import gpu_lock
lock = gpu_lock(sys.argv[1], runtime_dir=Path(sys.argv[2]))
if os.fork() == 0:
    print("forked", flush=True)
sys.stdin.read()
"""
HOLD = """
import sys
from pathlib import Path
from taskrouter.memory.gpu_lock import gpu_lock
lock = gpu_lock(sys.argv[1], runtime_dir=Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_told_who_holds_the_gpu_and_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, UUID, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DeviceInUse) as refused:
            gpu_lock(UUID, runtime_dir=tmp_path / "run")
        for part in (str(holder.pid), UUID, "Stop that one", "memory.share: true"):
            assert part in str(refused.value)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        gpu_lock(UUID, runtime_dir=tmp_path / "run").close()


def test_closing_gives_the_gpu_up_and_may_be_repeated(tmp_path: Path) -> None:
    lock = gpu_lock(UUID, runtime_dir=tmp_path)
    with pytest.raises(DeviceInUse, match="another manager in this process"):
        gpu_lock(UUID, runtime_dir=tmp_path)
    lock.close()
    lock.close()
    with gpu_lock(UUID, runtime_dir=tmp_path) as again:
        assert "held" in repr(again)
    assert "closed" in repr(again)


def test_different_gpus_do_not_block_each_other(tmp_path: Path) -> None:
    with gpu_lock("GPU-a", runtime_dir=tmp_path), gpu_lock("GPU-b", runtime_dir=tmp_path):
        assert len(list(tmp_path.iterdir())) == 2


def test_a_forked_child_does_not_keep_a_dead_managers_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORK, UUID, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "forked\n"
        with pytest.raises(DeviceInUse):
            gpu_lock(UUID, runtime_dir=tmp_path)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        gpu_lock(UUID, runtime_dir=tmp_path).close()  # the child lives until its stdin is closed


def test_the_folder_is_private_and_somebody_elses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o777)
    gpu_lock(UUID, runtime_dir=folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(path.parent == folder for path in tmp_path.rglob("*.lock"))
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(TaskRouterError, match="XDG_RUNTIME_DIR"):
        gpu_lock(UUID, runtime_dir=folder)


def test_a_file_in_the_folders_place_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(TaskRouterError, match="XDG_RUNTIME_DIR"):
        gpu_lock(UUID, runtime_dir=tmp_path / "run")


def test_the_folder_is_the_users_runtime_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_runtime_dir() == tmp_path / "taskrouter"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_runtime_dir().name == f"taskrouter-{os.getuid()}"
