"""Measured footprints on disk: remembered, shared, and never fatal."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskrouter.memory import ledger as ledger_module
from taskrouter.memory.ledger import FootprintLedger, Remembered, default_path
from taskrouter.types import Footprint, ModelKey

KEY = ModelKey("qwen#1f0c")
WRITE = """
import sys
from pathlib import Path
from taskrouter.memory.ledger import FootprintLedger
from taskrouter.types import Footprint, ModelKey
for n in range(20):
    FootprintLedger(Path(sys.argv[1])).put(ModelKey(f"{sys.argv[2]}#{n}"), "cpu", Footprint(n))
"""


@pytest.fixture
def ledger(tmp_path: Path) -> FootprintLedger:
    return FootprintLedger(tmp_path / "cache" / "footprints.json")


def test_a_measurement_is_remembered_for_its_kind_of_device(ledger: FootprintLedger) -> None:
    assert ledger.get(KEY, "cpu") is None
    ledger.put(KEY, "cpu", Footprint(5, 1))
    ledger.put(KEY, "NVIDIA T4", Footprint(7))
    ledger.put(KEY, "cpu", Footprint(6, 2))
    again = FootprintLedger(ledger.path)
    assert again.get(KEY, "cpu") == Footprint(6, 2)
    assert again.get(KEY, "NVIDIA T4") == Footprint(7)
    assert again.get(KEY, "NVIDIA H100") is None
    assert sorted(path.name for path in ledger.path.parent.iterdir()) == ["footprints.json", "footprints.json.lock"]


def test_how_long_its_loads_took_is_remembered_beside_it(ledger: FootprintLedger) -> None:
    ledger.put(KEY, "cpu", Footprint(5), 12.3456)
    assert ledger.find(KEY, "cpu") == Remembered(Footprint(5), 12.346)
    ledger.put(KEY, "cpu", Footprint(5))
    assert ledger.find(KEY, "cpu") == Remembered(Footprint(5), None)
    assert ledger.find(KEY, "NVIDIA T4") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 2, "footprints": {}}',
        '{"version": 1, "footprints": {"a": {"cpu": {"device_bytes": -1, "ram_bytes": 0}}}}',
        '{"version": 1, "footprints": {"a": {"cpu": {"device_bytes": "9", "ram_bytes": 0}}}}',
        '{"version": 1, "footprints": {"a": {"cpu": {"device_bytes": 9, "ram_bytes": 0, "load_s": -1}}}}',
        '{"version": 1, "footprints": {"a": {"cpu": {"device_bytes": 9, "ram_bytes": 0, "load_s": "1"}}}}',
        '{"version": 1, "footprints": {"a": {"cpu": {"device_bytes": 9, "ram_bytes": 0, "load_s": Infinity}}}}',
        "[" * 100_000,
        "\x80",
    ],
)
def test_a_damaged_file_is_ignored_with_a_warning_and_rewritten(
    ledger: FootprintLedger, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.path.parent.mkdir()
    ledger.path.write_bytes(text.encode("latin-1"))
    assert ledger.get(KEY, "cpu") is None
    assert str(ledger.path) in caplog.text
    ledger.put(KEY, "cpu", Footprint(5))
    caplog.clear()
    assert ledger.get(KEY, "cpu") == Footprint(5)
    assert not caplog.records


def test_a_full_disk_is_logged_and_leaves_the_file_as_it_was(
    ledger: FootprintLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.put(KEY, "cpu", Footprint(5))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    ledger.put(KEY, "cpu", Footprint(6))
    assert "No space left" in caplog.text
    assert ledger.get(KEY, "cpu") == Footprint(5)
    assert len(list(ledger.path.parent.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    ledger = FootprintLedger(tmp_path / "file" / "footprints.json")
    ledger.put(KEY, "cpu", Footprint(5))
    assert str(KEY) in caplog.text


def test_two_processes_lose_none_of_each_others_entries(ledger: FootprintLedger) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(ledger.path), name]) for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    for name in ("a", "b"):
        assert [ledger.get(ModelKey(f"{name}#{n}"), "cpu") for n in range(20)] == [Footprint(n) for n in range(20)]


def test_the_oldest_measurements_are_forgotten_first(ledger: FootprintLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MOST_MODELS", 2)
    for name in ("a", "b", "a", "c"):
        ledger.put(ModelKey(name), "cpu", Footprint(1))
    assert list(json.loads(ledger.path.read_text())["footprints"]) == ["a", "c"]


def test_the_file_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "taskrouter" / "footprints.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".cache" / "taskrouter" / "footprints.json"
