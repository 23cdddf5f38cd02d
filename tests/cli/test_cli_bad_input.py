"""Bad input, each through the command line: no traceback, the right exit code, and what to do about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from taskrouter.samples.manifest import MEDIA, sample_dir

from .stage import Cli, write

ALIAS_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "nowhere.yaml", "there is no such file"),
        (lambda folder: folder, "this is a folder"),
        (lambda folder: write(folder, ""), "is empty"),
        (lambda folder: write(folder, "tasks: {é: 1}".encode("latin-1")), "UTF-8"),
        (lambda folder: write(folder, ALIAS_BOMB), "alias"),
        (lambda folder: write(folder, "tasks: [" * 5000), "nest"),
        (lambda folder: write(folder, "tasks:\n\t- x"), "tab"),
        (lambda folder: write(folder, "- a\n- b\n"), "mapping"),
        (lambda folder: write(folder, b"#" * (2 << 20)), "1024 KiB"),
        (lambda folder: write(folder, b"\x00\x01\x02"), "NUL"),
    ],
)
@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_file_that_cannot_be_read_is_refused(
    cli: Cli, tmp_path: Path, command: str, make: Callable[[Path], Path], says: str
) -> None:
    path = make(tmp_path)
    result = cli("validate", path) if command == "validate" else cli("run", "t", "hello", "--file", path)
    assert result.code == 2
    assert result.out == ""
    assert says in result.err
    assert str(path) in result.err


# --- what a real model is given ---------------------------------------------------------------------------------------


def models_yaml(folder: Path, task: str, model_id: Path | str) -> Path:
    option = {"model_id": str(model_id), "framework": "transformers", "devices": ["cpu"]}
    return write(folder, json.dumps({"tasks": {task: {"kind": task, "selected": "m", "options": {"m": option}}}}))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A copy of a sample model that a test may damage."""
    return Path(shutil.copytree(sample_dir("shapes"), tmp_path / "broken"))


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)


def two_shards(folder: Path) -> None:
    """Name two shards of which only the first is there."""
    from safetensors import safe_open

    first = folder / "model-00001-of-00002.safetensors"
    (folder / "model.safetensors").rename(first)
    with safe_open(first, framework="numpy") as file:
        names = sorted(file.keys())
    shards = dict.fromkeys(names, first.name) | {"classifier.extra": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (two_shards, "CheckpointMissing", "model-00002-of-00002.safetensors"),
        (truncated, "CheckpointCorrupt", "model.safetensors"),
        (shutil.rmtree, "CheckpointMissing", "broken"),
    ],
)
def test_a_damaged_checkpoint_is_found_by_validate_and_by_run(
    cli: Cli, tmp_path: Path, broken: Path, damage: Callable[[Path], object], error: str, says: str
) -> None:
    damage(broken)
    path = models_yaml(tmp_path, "image_classification", broken)
    checked = cli("validate", path, "--json")
    assert checked.code == 1
    assert says in "".join(checked.data["problems"])
    ran = cli("run", "image_classification", MEDIA / "red-circle.png", "--file", path, "--json")
    assert (ran.code, ran.data["error"]["type"]) == (1, error)
    assert len(ran.err.splitlines()) == 1
    assert says in ran.err


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
def test_a_model_that_is_not_there_while_offline_says_how_to_fetch_it(cli: Cli, tmp_path: Path) -> None:
    path = models_yaml(tmp_path, "chat", "no/such-model")
    result = cli("run", "chat", "hello", "-f", path, "--json")
    assert (result.code, result.data["error"]["type"]) == (1, "CheckpointMissing")
    assert "hf download no/such-model" in result.err


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
def test_an_image_that_is_none_leaves_the_others_their_answers(cli: Cli, tmp_path: Path) -> None:
    path = models_yaml(tmp_path, "image_classification", sample_dir("shapes"))
    none = write(tmp_path, b"this is no picture", name="none.png")
    cut = write(tmp_path, (MEDIA / "blue-star.png").read_bytes()[:3000], name="cut.png")
    result = cli("run", "image_classification", none, cut, MEDIA / "red-circle.png", "--file", path, "--json")
    assert (result.code, result.data["ok"]) == (2, False)
    *bad, good = result.data["answers"]
    assert [answer["error"]["type"] for answer in bad] == ["BadInput", "BadInput"]
    assert good["labels"][0]["label"] == "red circle"
    assert [line.split(": ")[1] for line in result.err.splitlines()] == [str(none), str(cut)]


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
def test_audio_that_was_cut_short_is_refused(cli: Cli, tmp_path: Path) -> None:
    path = models_yaml(tmp_path, "audio_classification", sample_dir("tones"))
    cut = write(tmp_path, (MEDIA / "siren.wav").read_bytes()[:20_000], name="cut.wav")
    result = cli("run", "audio_classification", cut, MEDIA / "siren.wav", "--file", path, "--json")
    assert result.code == 2
    bad, good = result.data["answers"]
    assert bad["error"]["type"] == "BadInput"
    assert good["labels"][0]["label"] == "two-tone siren"
