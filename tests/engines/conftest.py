"""The engines' interpreters, and a state folder of its own for every test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ENGINES = Path(sys.prefix) / "engines"
"""Where ``make test`` puts the engines' environments: beside its own."""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Logs and state files of this test; at its end no state file is left."""
    folder = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    yield folder / "taskrouter"
    left = list((folder / "taskrouter" / "engines").glob("*"))
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
