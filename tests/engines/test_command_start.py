"""What can go wrong before an engine serves: each a typed error that says what to do, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.backends.engines import backend, guardian
from taskrouter.manager import StillMachine
from taskrouter.types import GIB

from .subjects import until

SERVER = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self): self.answer({})
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"choices": [{"message": {"content": " ".join(sys.argv[1:])}, "finish_reason": "stop"}]})
    def answer(self, data):
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def option(program: str, *words: str, **keys: Any) -> dict[str, Any]:
    command = [sys.executable, "-c", program, "{port}", *words]
    return {"model_id": "m", "framework": "command", "command": command, "vram_gb": 1, **keys}


class Stage:
    """A manager with one task for each option, on a machine of numbers."""

    def __init__(
        self,
        folder: Path,
        options: dict[str, Any],
        *,
        gib: float = 8,
        machine: dict[str, int] | None = None,
        **engine: Any,
    ) -> None:
        tasks = {name: {"kind": "chat", "selected": name, "options": {name: each}} for name, each in options.items()}
        self.file = folder / "models.yaml"
        sections = {"engines": {"command": engine}, "inference": {"offload_threshold": 1.0}}
        self.file.write_text(json.dumps({"tasks": tasks, **sections}), encoding="utf-8")
        self.manager = ModelManager(self.file, machine=StillMachine(machine or {"cuda:0": int(gib * GIB)}))

    def resident(self) -> list[str]:
        return list(self.manager.loaded_models)


def play(stage: Stage, main: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with stage.manager:
            await main(stage)

    asyncio.run(whole())
    stage.manager._core.check()
    assert stage.resident() == []


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = set(guardian.descendants(os.getpid()))
    yield
    assert [pid for pid in guardian.descendants(os.getpid()) if pid not in before] == []


def test_the_template_is_filled_in_and_the_environment_is_the_options(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        text = (await (await stage.manager.get_model("a")).chat("hi")).text
        async with stage.manager.lease("a") as lease:
            assert text == f"{lease.raw.base_url.rpartition(':')[2]} m-cuda:0 {lease.raw.api_key} {{}} $HOME"
            environ = Path(f"/proc/{lease.info['pid']}/environ").read_bytes().split(b"\0")
        assert b"COLOUR=green" in environ

    words = ("{model_id}-{device}", "{api_key}", "{}", "$HOME")
    play(Stage(tmp_path, {"a": option(SERVER, *words, env={"COLOUR": "green"})}), main)


@pytest.mark.slow
def test_the_health_path_of_the_option_says_when_it_is_ready(tmp_path: Path) -> None:
    picky = SERVER.replace("self.answer({})", 'self.answer({}) if self.path == "/up" else self.send_error(404)', 1)

    async def main(stage: Stage) -> None:
        assert (await (await stage.manager.get_model("right")).chat("hi")).text
        with pytest.raises(errors.LoadFailed, match="not ready within"):
            await stage.manager.get_model("wrong")

    play(Stage(tmp_path, {"right": option(picky, health="/up"), "wrong": option(picky)}, start_timeout_s=2), main)


def test_an_engine_that_dies_at_its_start_says_its_last_words_and_the_next_request_tries_again(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        for _ in range(2):
            with pytest.raises(errors.LoadFailed) as failed:
                await stage.manager.get_model("a")
            said = str(failed.value)
            assert "a: its engine ended with exit status 3 while it started" in said
            assert "no layer of that name" in said
            assert "All of them: " in said
            assert Path(said.rpartition("All of them: ")[2]).read_text().split("\n")[0] == "no layer of that name"

    play(Stage(tmp_path, {"a": option("print('no layer of that name'); raise SystemExit(3)")}), main)


@pytest.mark.slow
def test_one_that_is_never_ready_is_killed_at_its_bound_with_its_last_words(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        start = time.monotonic()
        with pytest.raises(errors.LoadFailed, match=r"not ready within engines.command.start_timeout_s.*") as failed:
            await stage.manager.get_model("a")
        assert 1 <= time.monotonic() - start < 8
        assert "still thinking" in str(failed.value)

    slow = "import time; print('still thinking', flush=True); time.sleep(100)"
    play(Stage(tmp_path, {"a": option(slow)}, start_timeout_s=1), main)


def test_out_of_memory_is_told_from_other_ends_and_gets_one_more_try_with_more_room(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    program = f"open({str(starts)!r}, 'a').write('x'); raise SystemExit('torch.OutOfMemoryError: CUDA out of memory.')"

    async def main(stage: Stage) -> None:
        with pytest.raises(errors.OutOfMemory, match="CUDA out of memory"):
            await stage.manager.get_model("a")
        assert starts.read_text() == "xx"

    play(Stage(tmp_path, {"a": option(program)}), main)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "order"),
    [(["cuda:0"], ["begun", "ready"] * 2), (["cpu"], ["begun"] * 2 + ["ready"] * 2)],
    ids=["one after the other on a GPU", "side by side on the CPU"],
)
def test_starts_wait_for_each_other_where_a_program_may_profile_the_device(
    tmp_path: Path, devices: list[str], order: list[str]
) -> None:
    seen = tmp_path / "seen"
    slow = f"""
import os, time
def say(what):
    with open({str(seen)!r}, "a") as file:
        file.write(what + chr(10))
say("begun"); time.sleep(1.5); say("ready")
{SERVER}"""

    async def main(stage: Stage) -> None:
        await asyncio.gather(*(stage.manager.get_model(name) for name in "ab"))
        assert seen.read_text().split() == order

    options = {name: option(slow, name, devices=devices) for name in "ab"}
    play(Stage(tmp_path, options, machine={"cuda:0": 8 * GIB, "cpu": 8 * GIB}), main)


def test_a_port_that_somebody_took_is_replaced_by_another(tmp_path: Path) -> None:
    """Twice the engine finds its port taken; the third is free."""
    starts = tmp_path / "starts"
    program = f"""
import pathlib
count = pathlib.Path({str(starts)!r})
count.write_text((count.read_text() if count.exists() else "") + "x")
if len(count.read_text()) < 3:
    raise OSError(98, "Address already in use")
{SERVER}"""

    async def main(stage: Stage) -> None:
        assert (await (await stage.manager.get_model("a")).chat("hi")).text
        assert starts.read_text() == "xxx"

    play(Stage(tmp_path, {"a": option(program)}), main)


def test_a_stranger_that_answers_on_the_port_is_not_taken_for_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It even says that it is healthy; the engine is the one whose own process listens."""
    real = backend.free_port
    ports: list[int] = []

    async def main(stage: Stage) -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

        async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.readline() not in (b"\r\n", b""):
                pass
            writer.write(answer)
            writer.close()

        async with await asyncio.start_server(stranger, "127.0.0.1", 0) as server:
            taken = server.sockets[0].getsockname()[1]

            def next_port() -> int:
                ports.append(taken if not ports else real())
                return ports[-1]

            monkeypatch.setattr(backend, "free_port", next_port)
            # It looks for its port only after a while, as engines do.
            assert (await (await stage.manager.get_model("a")).chat("hi")).text.split()[0] == str(ports[-1])
        assert len(ports) == 2

    play(Stage(tmp_path, {"a": option("import time; time.sleep(0.5)" + SERVER)}), main)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"command": ["no-such-program", "{port}"]}, "there is no program 'no-such-program'"),
        ({"command": ["./no/such/program", "{port}"]}, "there is no program './no/such/program'"),
        ({"command": [sys.executable, "{prot}"]}, r"command has \{prot\}, which nothing fills in"),
        ({"command": [sys.executable, "server.py"]}, "says nowhere which port"),
        ({"engine_args": {"a": 1}}, r"engine_args\.a would do nothing under framework command"),
        ({"quantization": "awq", "dtype": "float16"}, "quantization, dtype would do nothing"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_evicted(
    tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    async def main(stage: Stage) -> None:
        good = await stage.manager.get_model("good")
        with pytest.raises(errors.PreflightFailed, match=f"bad: .*{said}"):
            await stage.manager.get_model("bad")
        assert stage.resident() == ["good"]
        assert (await good.chat("hi")).text

    play(Stage(tmp_path, {"good": option(SERVER), "bad": {**option(SERVER), **keys}}, gib=1), main)


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("no/such/python", "which is no program that can be run"),
        ("text.txt", "which is no program that can be run"),
        ("/bin/true", "no Python interpreter that works: it ended with exit status 0 .it printed nothing"),
        ("/bin/cat", "no Python interpreter that works: it ended with exit status 1"),
    ],
)
@pytest.mark.parametrize("framework", ["vllm", "sglang"])
def test_an_interpreter_that_is_none_is_refused_with_the_command_that_makes_one(
    tmp_path: Path, framework: str, python: str, said: str
) -> None:
    (tmp_path / "text.txt").write_text("hello")
    model = {"model_id": "m", "framework": framework}
    file = tmp_path / "models.yaml"
    tasks = {"a": {"kind": "chat", "selected": "a", "options": {"a": model}}}
    file.write_text(json.dumps({"tasks": tasks, "engines": {framework: {"python": python}}}), encoding="utf-8")

    async def main() -> None:
        async with ModelManager(file, machine=StillMachine({"cpu": GIB})) as manager:
            with pytest.raises(errors.PreflightFailed, match=said) as failed:
                await manager.get_model("a")
            assert f"engines.{framework}.python is" in str(failed.value)
            assert f"taskrouter engines install {framework}" in str(failed.value)

    asyncio.run(main())


def test_an_engine_that_is_not_installed_names_the_command_that_installs_it(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    tasks = {"a": {"kind": "chat", "selected": "a", "options": {"a": {"model_id": "m", "framework": "vllm"}}}}
    file.write_text(json.dumps({"tasks": tasks}), encoding="utf-8")

    async def main() -> None:
        async with ModelManager(file, machine=StillMachine({"cpu": GIB})) as manager:
            with pytest.raises(errors.MissingDependency, match="`taskrouter engines install vllm`"):
                await manager.get_model("a")

    asyncio.run(main())


def test_a_caller_that_gives_up_while_it_starts_leaves_no_process(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        task = asyncio.create_task(stage.manager.get_model("a"))
        await until(lambda: guardian.descendants(os.getpid()))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not stage.manager.statistics().devices["cuda:0"].charged)  # type: ignore[index]

    play(Stage(tmp_path, {"a": option("import time; time.sleep(100)")}), main)


def test_no_room_in_the_log_folder_is_a_warning_and_the_engine_serves(
    tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state.mkdir(parents=True)
    (state / "logs").write_text("no folder")

    async def main(stage: Stage) -> None:
        with caplog.at_level(logging.WARNING, "taskrouter"):
            assert (await (await stage.manager.get_model("a")).chat("hi")).text

    play(Stage(tmp_path, {"a": option("print('x' * 99, flush=True)" + SERVER)}), main)
    assert "the engine's output can't be written to" in caplog.text


def test_the_api_key_is_nowhere_to_be_read(tmp_path: Path, state: Path) -> None:
    """Not in the log, not in the repr, not in the status; the engine that prints its command line is made to."""

    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        async with stage.manager.lease("a") as lease:
            key = lease.raw.api_key
            assert len(key) >= 32
            assert key not in repr(lease.raw) + repr(dict(lease.info)) + repr(stage.manager.statistics())
            log = Path(lease.info["log"])
        await until(lambda: "key is" in log.read_text())
        assert key not in log.read_text()

    program = "import sys; print('key is', sys.argv[2], flush=True)" + SERVER
    play(Stage(tmp_path, {"a": option(program, "{api_key}")}), main)


def test_a_free_port_is_on_loopback_and_free() -> None:
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", backend.free_port()))
