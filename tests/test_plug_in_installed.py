"""A plug-in that is a package of its own: pip installs it, and it is asked by the command line and by the library."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager
from taskrouter.errors import BadInput, CheckpointMissing, UnsupportedVerb
from taskrouter.types import CPU
from tests.pages import ROOT

np = pytest.importorskip("numpy")
pytest.importorskip("av")
pytest.importorskip("hatchling")

pytestmark = [pytest.mark.slow, pytest.mark.anyio]
RATE = 16_000
FILE = """
tasks:
  who:
    selected: panel
    options:
      panel: {model_id: voices.json, framework: pitch}
      gone: {model_id: gone.json, framework: pitch}
  heard:
    kind: transcription
    selected: panel
    options:
      panel: {model_id: voices.json, framework: pitch}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has installed the package of ``tests/plugin_diarization``, by itself and without a network."""
    folder = tmp_path_factory.mktemp("plug-in")
    source = shutil.copytree(ROOT / "tests/plugin_diarization", folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--disable-pip-version-check", "--target", folder / "site", source],
        text=True, timeout=100, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return folder / "site"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, a model and a recording: low, high, a pause, low."""
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "models.yaml").write_text(FILE)
    (tmp_path / "voices.json").write_text(json.dumps({"ada": 210, "bob": 115}))
    spoken = [voice(120, 1.0), voice(200, 0.6), np.zeros(RATE // 2), voice(112, 0.4)]
    with wave.open(str(tmp_path / "panel.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((np.concatenate(spoken) * 8000).astype("<i2").tobytes())
    return tmp_path


@pytest.fixture
def plug_in(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The installed module, in this process."""
    monkeypatch.syspath_prepend(str(site))
    module = importlib.import_module("pitch_diarization")
    assert Path(str(module.__file__)).parent == site
    yield module
    sys.modules.pop("pitch_diarization", None)


def voice(height: float, seconds: float) -> Any:
    """A tone with the overtones of a voice."""
    time = np.arange(int(seconds * RATE)) / RATE
    return sum(np.sin(2 * np.pi * height * overtone * time) / overtone for overtone in (1, 2, 3, 4))


def taskrouter(site: Path, *arguments: str) -> Any:
    """What the command prints with ``--json``."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "from taskrouter.cli import main; raise SystemExit(main())", *arguments, "--json"],
        env=env, text=True, timeout=100, check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_the_command_line_knows_it_once_it_is_installed(site: Path, folder: Path) -> None:
    budget = taskrouter(site, "validate", "models.yaml")
    assert budget["ok"]
    (answer,) = taskrouter(site, "run", "heard", "panel.wav")["answers"]
    assert answer["text"] == "bob, ada, bob"
    assert [segment["text"] for segment in answer["segments"]] == ["bob", "ada", "bob"]


async def test_its_own_verb_is_asked_by_name_and_answers_its_own_types(plug_in: Any, folder: Path) -> None:
    async with ModelManager("models.yaml") as manager:
        model = await manager.get_model("who")
        turns = await model.ask("diarize", plug_in.DiarizeRequest(folder / "panel.wav"))
        assert all(isinstance(turn, plug_in.Turn) for turn in turns)
        assert [turn.speaker for turn in turns] == ["bob", "ada", "bob"]
        for turn, (start, end) in zip(turns, [(0, 1), (1, 1.6), (2.1, 2.5)], strict=True):
            assert abs(turn.start_s - start) <= 0.08
            assert abs(turn.end_s - end) <= 0.08
        async with manager.lease("who") as held:
            assert await held.ask("diarize", plug_in.DiarizeRequest(folder / "panel.wav")) == turns
        assert manager.statistics().devices[CPU].charged == plug_in.NEED.device_bytes


async def test_what_it_cannot_do_is_refused_in_its_own_words(plug_in: Any, folder: Path) -> None:
    async with ModelManager("models.yaml") as manager:
        model = await manager.get_model("who")
        with pytest.raises(UnsupportedVerb, match="can't separate; it can be asked to diarize, transcribe"):
            await model.ask("separate", plug_in.DiarizeRequest(b""))
        with pytest.raises(BadInput, match=r"chat has a method of its own: await model\.chat"):
            await model.ask("chat", None)
        with pytest.raises(BadInput):
            await model.ask("diarize", plug_in.DiarizeRequest(b"no sound"))
        with pytest.raises(CheckpointMissing, match=r"no .*gone\.json"):
            async with manager.lease("who", option="gone"):
                pass
        heard = await manager.get_model("heard")
        with pytest.raises(UnsupportedVerb, match="of kind transcription, which can't diarize"):
            await heard.ask("diarize", plug_in.DiarizeRequest(folder / "panel.wav"))


async def test_a_caller_that_leaves_stops_the_work_and_waits_until_it_has(
    plug_in: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []
    entered, go_on, pitch = threading.Event(), threading.Event(), plug_in._pitch

    def slowly(windows: Any) -> Any:
        parts.append(len(windows))
        entered.set()
        go_on.wait(10)
        return pitch(windows)

    monkeypatch.setattr(plug_in, "_pitch", slowly)
    async with ModelManager("models.yaml") as manager:
        model = await manager.get_model("who")
        long = np.tile(voice(120, 1.0), 30).astype("float32")
        asking = asyncio.create_task(model.ask("diarize", plug_in.DiarizeRequest(long)))
        await asyncio.to_thread(entered.wait, 10)
        asking.cancel()
        await asyncio.sleep(0.02)
        assert sum(model.leases for model in manager.statistics().models.values()) == 1
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await manager.unload_model("who")
        assert parts == [plug_in.AT_ONCE]
        assert manager.statistics().devices[CPU].charged == 0
