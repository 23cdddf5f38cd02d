"""Commands run in a folder of their own, with a cache and an environment of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskrouter.cli import main

from .stage import Cli, Result


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TASKROUTER_CONFIG", raising=False)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run one command. Whatever happens, nobody sees a traceback."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return Result(code, printed.out, printed.err)

    return run
