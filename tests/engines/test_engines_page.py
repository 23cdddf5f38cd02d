"""docs/engines.md does what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from taskrouter.backends.engines import backend, output, sglang, sleeping, vllm
from taskrouter.backends.engines.adapter import SLEEP_BOUND_S, Adapter
from taskrouter.backends.engines.command import FIELDS, CommandAdapter
from tests.docs_session import play
from tests.pages import blocks, named_files, page

TEXT = page("engines.md")


@pytest.mark.slow
def test_the_example_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHON", sys.executable)
    files = named_files(TEXT)
    assert files.keys() == {"server.py", "models.yaml"}
    for name, body in files.items():
        (tmp_path / name).write_text(body)
    assert play(block for block in blocks(TEXT, "python") if block not in files.values()) == 3


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    adapter: Adapter = CommandAdapter()
    assert f"killed {adapter.stop_grace_s:g} s later" in TEXT
    assert f"{output.LOG_BYTES >> 20} MiB and one older" in TEXT
    assert output.LOG_BACKUPS == 1
    assert f"within {SLEEP_BOUND_S:g} s that it slept or woke" in TEXT
    assert f"once awake within {sleeping.TOKEN_BOUND_S:g} s" in TEXT
    assert backend.PORT_TRIES == 4
    assert "up to four times" in TEXT
    assert all(f"`{{{name}}}`" in TEXT for name in FIELDS)


def test_what_the_page_says_of_sleep_is_what_engines_are_told() -> None:
    for word in (vllm.SLEEP, vllm.WAKE, vllm.IS_SLEEPING, sglang.SLEEP, sglang.WAKE, sglang.LOADS):
        assert word in TEXT
