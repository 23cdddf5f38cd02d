"""docs/plug-ins.md does what it says over HTTP: its plug-in is served, asked by its own command, and by clients."""

from __future__ import annotations

import asyncio
import importlib
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrouter import connect
from tests.pages import blocks, named_files, page, quoted, rows

from .serving import Served, serving, written

SPEECH = "we shall see what we shall say when we go"
MODULES = ("tally", "countwords")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(named_files(page("plug-ins.md"))[f"{name}.py"])
    (tmp_path / "speech.txt").write_text(SPEECH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    option = {"framework": "tally", "model_id": "words", "vram_gb": 0.1}
    try:
        backend = importlib.import_module("tally").TallyWords()
        tasks = {"count": {"selected": "words", "options": {"words": option}}}
        with serving(written(tmp_path, tasks), backends={"tally": backend}) as server:
            yield server
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)


def test_its_command_is_answered_what_it_shows(served: Served) -> None:
    text = page("plug-ins.md")
    (command,), (answer,) = blocks(text, "sh"), blocks(text, "json")
    words = shlex.split(command.replace("localhost:8700", served.url))
    done = subprocess.run([*words, "--noproxy", "*"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == answer.strip()


def test_clients_ask_as_it_says(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = sys.modules["tally"]

    class Entry:
        module, value = "tally", "tally:TallyWords"

        @staticmethod
        def load() -> Any:
            return tally.TallyWords

    async def main() -> None:
        async with connect(served.url) as client:
            model = client.handle("count")
            assert await model.ask("tally", {"text": Path("speech.txt"), "least": 2}) == {
                "words": {"we": 3, "shall": 2}
            }
            assert await model.ask("tally", tally.Tally("speech.txt", 3)) == tally.Counts({"we": 3})

    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [Entry()])
    asyncio.run(asyncio.wait_for(main(), 60))


def test_the_paths_of_the_servers_page_are_those_of_the_engines() -> None:
    from taskrouter.backends.engines import command, sglang, vllm

    table = {quoted(row[0])[0]: set(quoted(row[1])) - {"sleep_calls"} for row in rows(page("server.md"), "framework")}
    assert table == {"vllm": vllm.INFERENCE, "sglang": sglang.INFERENCE, "command": command.INFERENCE}
