"""Where things are kept, also where there is no home folder."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskrouter import folders
from taskrouter.folders import cache_folder, state_folder
from taskrouter.memory.hub import on_hub
from taskrouter.memory.ledger import FootprintLedger
from taskrouter.spend import SpendLedger


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No HOME, and a user of whom the system knows nothing."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folders._without_home.cache_clear()
    yield tmp_path
    folders._without_home.cache_clear()


def test_without_a_home_it_is_a_folder_of_ones_own_and_said_once(
    homeless: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = homeless / f"taskrouter-{os.getuid()}"
    with caplog.at_level(logging.WARNING):
        assert FootprintLedger().path == own / ".cache" / "taskrouter" / "footprints.json"
        assert SpendLedger().path == own / ".local" / "state" / "taskrouter" / "spend.db"
    assert own.stat().st_mode & 0o777 == 0o700
    (said,) = caplog.messages
    assert "set HOME, or XDG_CACHE_HOME and XDG_STATE_HOME" in said


def test_a_folder_that_others_may_write_is_not_used(homeless: Path) -> None:
    planted = homeless / f"taskrouter-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    assert not cache_folder().is_relative_to(planted)
    assert state_folder().is_relative_to(homeless)


def test_a_model_below_a_home_that_is_none_is_not_there(homeless: Path) -> None:
    assert not on_hub("~/model", homeless)
