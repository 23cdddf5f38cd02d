"""The command line against a real server: people load, pin, select and look while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from taskrouter.cli import main

from .serving import ADMIN_KEY, Served, keys, serving, written

TASKS: dict[str, Any] = {
    "say": {
        "kind": "chat",
        "selected": "parrot",
        "options": {
            "parrot": {"framework": "fake", "model_id": "p", "vram_gb": 1},
            "giant": {"framework": "fake", "model_id": "g", "vram_gb": 100},
            "mouse": {"framework": "fake", "model_id": "m", "vram_gb": 0.5},
        },
    },
}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with serving(written(tmp_path, TASKS), keys()) as server:
        if httpx2.get(f"{server.url}/admin/status", trust_env=False).status_code == 404:
            pytest.skip("this server has no admin API yet")
        monkeypatch.setenv("TASKROUTER_URL", server.url)
        monkeypatch.setenv("TASKROUTER_ADMIN_KEY", ADMIN_KEY)
        yield server


def cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def row(capsys: pytest.CaptureFixture[str], option: str) -> dict[str, Any]:
    """What the status says of an option of ``say``."""
    code, out, _ = cli(capsys, "status", "--json")
    assert code == 0
    (found,) = (each for each in json.loads(out)["models"] if each["option"] == option)
    return dict(found)


@pytest.mark.slow
def test_a_model_is_loaded_pinned_replaced_and_unloaded(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert row(capsys, "parrot")["state"] == "disk"
    code, out, err = cli(capsys, "load", "say")
    assert (code, err) == (0, "")
    assert out.startswith("say/parrot is ready (")
    assert row(capsys, "parrot")["state"] == "ready"
    assert cli(capsys, "pin", "say")[:2] == (0, "say/parrot is pinned\n")
    assert row(capsys, "parrot")["pinned"] is True
    assert cli(capsys, "pin", "say/parrot", "--off")[:2] == (0, "say/parrot is no longer pinned\n")
    assert row(capsys, "parrot")["pinned"] is False
    assert cli(capsys, "select", "say", "mouse", "--persist")[0] == 0
    assert yaml.safe_load(Path(served.manager.config_path).read_text())["tasks"]["say"]["selected"] == "mouse"
    assert (row(capsys, "mouse")["selected"], row(capsys, "mouse")["state"]) == (True, "ready")
    assert cli(capsys, "unload", "say")[:2] == (0, "say/mouse is unloaded\n")
    assert row(capsys, "mouse")["state"] == "disk"
    code, out, _ = cli(capsys, "explain", "say")
    assert code == 0
    assert out.startswith("say asks mouse")


def test_the_status_is_a_table(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(capsys, "load", "say")[0] == 0
    code, out, err = cli(capsys, "status")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["say", "parrot", "*", "ready", "1.0", "GiB"] in [line[:6] for line in lines]
    assert ["cpu", "1.0", "GiB"] in [line[:3] for line in lines]
    assert out.splitlines()[-1].startswith(f"{served.url} is ready; nobody waits")


def test_what_can_not_be_done_is_one_line(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, arguments in (
        (1, ("load", "say", "--option", "giant")), (2, ("load", "nobody")), (2, ("select", "say", "nobody")),
        (2, ("explain", "nobody")), (2, ("unload", "say", "--option", "nobody")),
    ):  # fmt: skip
        ended, out, err = cli(capsys, *arguments)
        assert (ended, out) == (code, ""), arguments
        assert len(err.splitlines()) == 1
    monkeypatch.setenv("TASKROUTER_ADMIN_KEY", "some-other-key-than-that")
    code, _, err = cli(capsys, "status")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "some-other-key" not in err
