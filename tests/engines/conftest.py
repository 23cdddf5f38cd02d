"""The engines' interpreters, and a state folder of its own for every test."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ENGINES = Path(os.environ.get("TASKROUTER_TEST_ENGINES") or Path(sys.prefix) / "engines")
"""Where ``make test`` puts the engines' environments: in its own, unless told otherwise."""


HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these run in one process: they look at what is left on the machine."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("engines"))


@pytest.fixture(autouse=True)
def state(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Logs, state files and temporary folders of this test; at its end nothing of the last two is left."""
    folder = tmp_path / "state"
    if request.node.get_closest_marker("shared_engine"):
        yield folder / "taskrouter"
        return
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    # Short: engines put sockets there, whose paths the kernel bounds.
    temporary = tempfile.mkdtemp(prefix="tr-", dir="/tmp")
    monkeypatch.setattr(tempfile, "tempdir", temporary)
    yield folder / "taskrouter"
    left = [*(folder / "taskrouter" / "engines").glob("*"), *Path(temporary).glob("taskrouter-*")]
    shutil.rmtree(temporary, ignore_errors=True)
    assert left == [], left


@pytest.fixture(scope="session")
def engine_python() -> Callable[[str], str]:
    """The interpreter of an engine's environment. Where it can't be had the test is skipped, and in CI it fails."""

    def find(name: str) -> str:
        python = ENGINES / name / "bin" / "python"
        if python.exists():
            return str(python)
        why = ENGINES / f"{name}.why"
        reason = f"no {name} here: {why.read_text() if why.exists() else 'run `make test`, which installs it'}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)

    return find
