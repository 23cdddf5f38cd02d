"""A plug-in that is a package of its own: pip installs it; the command line, the library and a server's clients ask."""

from __future__ import annotations

import asyncio
import importlib
import io
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

from taskrouter import ModelManager, connect
from taskrouter.errors import BadInput, CallFailed, CheckpointMissing, MediaTooLarge, TaskRouterError, UnsupportedVerb
from taskrouter.types import CPU
from tests.pages import ROOT
from tests.server.serving import Served, serving
from tests.server.task_server import curl

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


# --- over HTTP, with the plug-in installed on both sides --------------------------------------------------------------


@pytest.fixture
def served(plug_in: Any, folder: Path) -> Iterator[Served]:
    more = "media: {roots: [.], max_bytes: 1MiB, max_seconds: 20}\ninference: {warmup_on_startup: false}\n"
    (folder / "models.yaml").write_text(FILE + more)
    with serving(folder / "models.yaml") as server:
        yield server


def test_a_client_is_answered_the_plug_ins_own_types(served: Served, plug_in: Any, folder: Path) -> None:
    request = plug_in.DiarizeRequest(folder / "panel.wav")
    here = served.run(served.manager.handle("who").ask("diarize", request))
    sound = np.tile(voice(120, 1.0), 25).astype("float32")

    async def main() -> None:
        async with connect(served.url) as client:
            model = await client.get_model("who")
            assert await model.ask("diarize", request) == here
            # A file of the client's own machine is read there, whatever the server may read.
            elsewhere = folder.parent / f"{folder.name}-panel.wav"
            shutil.copy(folder / "panel.wav", elsewhere)
            assert await model.ask("diarize", plug_in.DiarizeRequest(str(elsewhere))) == here
            only = await model.ask("diarize", plug_in.DiarizeRequest(elsewhere.read_bytes(), speakers=("ada",)))
            assert only == tuple(turn for turn in here if turn.speaker == "ada")
            assert [type(turn) for turn in only] == [plug_in.Turn]
            plain = await model.ask("diarize", {"audio": folder / "panel.wav"})
            assert plain == [{"speaker": turn.speaker, "start_s": turn.start_s, "end_s": turn.end_s} for turn in here]
            assert (await client.handle("heard").transcribe(folder / "panel.wav")).text == "bob, ada, bob"
            for kind, task, verb, asked in (
                (UnsupportedVerb, "who", "separate", plug_in.DiarizeRequest(b"x")),
                (UnsupportedVerb, "heard", "diarize", plug_in.DiarizeRequest(b"x")),
                (BadInput, "who", "diarize", plug_in.DiarizeRequest(b"no sound")),
                (BadInput, "who", "diarize", plug_in.DiarizeRequest(folder / "nowhere.wav")),
                (BadInput, "who", "diarize", plug_in.DiarizeRequest(folder / "panel.wav", speakers=(1,))),
                (BadInput, "who", "diarize", {"audio": b"x", "loud": True}),
                (MediaTooLarge, "who", "diarize", plug_in.DiarizeRequest(b"x" * ((1 << 20) + 1))),
                # Longer than media.max_seconds, which the plug-in was told.
                (MediaTooLarge, "who", "diarize", plug_in.DiarizeRequest(wav(sound))),
            ):
                with pytest.raises(TaskRouterError) as caught:
                    await client.handle(task).ask(verb, asked)
                assert type(caught.value) is kind, caught.value

    asyncio.run(asyncio.wait_for(main(), 60))
    with connect(served.url).blocking() as blocking:
        assert blocking.handle("who").ask("diarize", request) == here


def wav(samples: Any) -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 8000).astype("<i2").tobytes())
    return written.getvalue()


def test_curl_uploads_a_file_and_is_told_what_is_wrong(served: Served, folder: Path) -> None:
    panel = f"audio=@{folder / 'panel.wav'}"
    status, said = curl(served, "who", panel, "verb=diarize", 'speakers=["bob"]')
    assert status == 200, said
    assert [turn["speaker"] for turn in said["result"]] == ["bob", "bob"]
    status, said = curl(served, "who", f"audio={folder / 'panel.wav'}", "verb=diarize")
    assert (status, len(said["result"])) == (200, 3), "a path under media.roots"
    for fields, match in (
        ((panel,), "name the verb, one of transcribe, diarize"),
        ((panel, "verb=separate"), 'calls = {"separate": Call(Request, Answer)}'),
        (("verb=diarize",), "diarize needs audio"),
        ((panel, "verb=diarize", "limits={}"), "diarize takes no 'limits'; it takes audio, speakers"),
        ((panel, "verb=diarize", "speakers=bob"), "speakers: "),
        (("audio=/etc/passwd", "verb=diarize"), "outside the folders that media.roots allows"),
    ):
        status, said = curl(served, "who", *fields)
        assert (status, match in said["error"]["message"]) == (400, True), said


def test_what_a_client_can_not_make_of_an_answer_is_told(
    served: Served, plug_in: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> Any:
        async with connect(served.url) as client:
            return await client.handle("who").ask("diarize", plug_in.DiarizeRequest(folder / "panel.wav"))

    monkeypatch.setattr(plug_in.PitchModel, "_turns", lambda *_: ("no turn",))
    with pytest.raises(CallFailed):
        asyncio.run(asyncio.wait_for(ask(), 60))
