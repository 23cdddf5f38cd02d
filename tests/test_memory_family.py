"""Which processes count as ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from taskrouter.memory import ram

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
child.stdin.close()
child.wait()
"""


def test_children_and_grandchildren_are_ours_and_the_kernel_and_psutil_agree() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        ours = {process.pid for process in ram.family()}
        assert {os.getpid(), parent.pid, grandchild} <= ours
        assert {parent.pid, grandchild} <= {child.pid for child in psutil.Process().children(recursive=True)}
        assert parent.stdin is not None
        parent.stdin.close()
    assert {parent.pid, grandchild}.isdisjoint(process.pid for process in ram.family())


def test_without_the_kernels_lists_psutil_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ram, "Path", lambda name: tmp_path / "nowhere")
    assert ram._descendants(os.getpid()) is None
    assert os.getpid() in {process.pid for process in ram.family()}
