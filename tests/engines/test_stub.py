"""The stub does what the chaos counts on: it answers right, is a tree that holds things, and goes wrong as told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from . import watch
from .stub import read_settings
from .subjects import STUB, until

BOUND_S = 10.0
CHAT = "/v1/chat/completions"


class Client:
    """A stub that runs, and a connection to it."""

    def __init__(self, process: subprocess.Popen[bytes], session: aiohttp.ClientSession) -> None:
        self.process = process
        self.session = session

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(path) as response:
            return response.status, await response.json()

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        async with self.session.post(path, json={"model": "stub", **body}) as response:
            return response.status, await response.json()

    async def chat(self, text: str = "hello", **more: Any) -> tuple[int, Any]:
        return await self.post(CHAT, messages=[{"role": "user", "content": text}], **more)

    async def lines(self, text: str = "hello", **more: Any) -> list[str]:
        """The data of a streamed answer."""
        body = {"model": "stub", "messages": [{"role": "user", "content": text}], "stream": True, **more}
        async with self.session.post(CHAT, json=body) as response:
            assert response.content_type == "text/event-stream"
            return [line.decode().strip().removeprefix("data: ") async for line in response.content if line.strip()]

    async def fault(self, name: str, **how: Any) -> None:
        async with self.session.post("/stub/fault", json={"name": name, **how}) as response:
            assert response.status == 200

    async def state(self) -> Any:
        return (await self.get("/stub/state"))[1]

    async def ready(self) -> bool:
        try:
            return (await self.get("/health"))[0] == 200
        except aiohttp.ClientError:
            return False


def command(*words: str, port: int | None = None) -> list[str]:
    if port is None:
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            port = chosen.getsockname()[1]
    return [sys.executable, str(STUB), "--port", str(port), *words]


@contextmanager
def started(folder: Path, argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Its process; its stderr goes to a file of that name."""
    environ = {**os.environ, "TMPDIR": str(folder), "STUB_RUN": folder.name}
    with (folder / "stderr").open("wb") as file:
        process = subprocess.Popen(argv, env=environ, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in watch.segments():
            if folder.name in path:
                os.unlink(path)


@asynccontextmanager
async def running(folder: Path, *words: str, wait: bool = True) -> AsyncIterator[Client]:
    argv = command("--ready-after", "0", *words)
    base, bound = f"http://127.0.0.1:{argv[3]}", aiohttp.ClientTimeout(total=BOUND_S)
    connector = aiohttp.TCPConnector(limit=0)
    with started(folder, argv) as process:
        async with aiohttp.ClientSession(base, timeout=bound, connector=connector) as session:
            client = Client(process, session)
            if wait:
                await until(client.ready, BOUND_S)
            yield client


def play(folder: Path, *words: str) -> Callable[[Callable[[Client], Coroutine[Any, Any, None]]], None]:
    """A decorator that runs its function at once, with a stub."""

    def run(main: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            async with running(folder, *words) as client:
                await main(client)

        asyncio.run(whole())

    return run


def test_it_answers_in_the_shapes_of_the_api_and_sends_back_what_it_got(tmp_path: Path) -> None:
    @play(tmp_path)
    async def _(stub: Client) -> None:
        assert (await stub.get("/v1/models"))[1]["data"][0]["id"] == "stub"
        status, answer = await stub.chat("two words", top_k=3)
        assert status == 200
        assert answer["choices"][0]["message"]["content"] == "stub heard: two words"
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
        assert answer["stub"]["got"]["top_k"] == 3
        short = (await stub.chat("two words", max_tokens=2))[1]["choices"][0]
        assert (short["message"]["content"], short["finish_reason"]) == ("stub heard:", "length")
        stopped = (await stub.chat("one two three", stop=[" two"]))[1]["choices"][0]
        assert stopped["message"]["content"] == "stub heard: one"
        text = (await stub.post("/v1/completions", prompt="go on"))[1]["choices"][0]["text"]
        assert text == "stub heard: go on"
        rows = (await stub.post("/v1/embeddings", input=["a", "b c"]))[1]["data"]
        assert [row["embedding"] for row in rows] == [[1.0, 0.0, 0.0, 1.0], [3.0, 35.0, 1.0, 1.0]]


def test_a_stream_says_the_same_word_by_word_and_ends_with_usage_and_done(tmp_path: Path) -> None:
    @play(tmp_path)
    async def _(stub: Client) -> None:
        *events, done = await stub.lines("two words", stream_options={"include_usage": True})
        assert done == "[DONE]"
        chunks = [json.loads(event) for event in events]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
        assert text == "stub heard: two words"
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["usage"]["completion_tokens"] == 4


def test_a_tool_it_is_given_is_called(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]

    @play(tmp_path)
    async def _(stub: Client) -> None:
        choice = (await stub.chat("there", tools=tools))[1]["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"text": "there"}'}
        chunks = [json.loads(line) for line in (await stub.lines("there", tools=tools))[:-1]]
        assert [c for chunk in chunks for c in chunk["choices"][0]["delta"].get("tool_calls", ())]
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_it_wants_its_key_a_path_it_knows_a_model_it_has_and_a_body_that_makes_sense(tmp_path: Path) -> None:
    @play(tmp_path, "--api-key", "right")
    async def _(stub: Client) -> None:
        assert (await stub.get("/health"))[0] == 200
        assert (await stub.chat())[0] == 401
        stub.session.headers["Authorization"] = "Bearer right"
        assert (await stub.chat())[0] == 200
        assert (await stub.chat(model="other"))[0] == 404
        assert (await stub.post("/v1/nothing"))[0] == 404
        assert (await stub.post(CHAT))[0] == 400


def test_a_client_that_goes_away_is_noticed(tmp_path: Path) -> None:
    @play(tmp_path)
    async def _(stub: Client) -> None:
        call = asyncio.create_task(stub.chat(stub_slow_s=60))
        stream = asyncio.create_task(stub.lines(stub_token_s=60))
        await until(lambda: running_count(stub, 2))
        call.cancel()
        stream.cancel()
        await until(lambda: running_count(stub, 0))
        seen = await stub.state()
        assert (seen["started"], seen["aborted"]) == (2, 2)
        assert [request["ended"] for request in seen["requests"]] == ["aborted", "aborted"]


async def running_count(stub: Client, count: int) -> bool:
    return bool((await stub.state())["running"] == count)


def test_fifty_streams_at_once_are_served(tmp_path: Path) -> None:
    @play(tmp_path)
    async def _(stub: Client) -> None:
        text = " ".join(str(number) for number in range(100))
        streams = await asyncio.gather(*[stub.lines(text, stub_token_s=0.002) for _ in range(50)])
        assert {len(lines) for lines in streams} == {105}


def test_it_is_a_tree_that_holds_a_segment_and_a_file_and_ends_clean_when_asked(tmp_path: Path) -> None:
    @play(tmp_path)
    async def _(stub: Client) -> None:
        seen = await stub.state()
        assert len(watch.alive(seen["pids"])) == 3
        assert Path(seen["segment"]).exists()
        assert Path(seen["scratch"]).parent == tmp_path
        os.killpg(stub.process.pid, signal.SIGTERM)
        await until(lambda: stub.process.poll() is not None)
        await until(lambda: not watch.alive(seen["pids"]))
        assert not Path(seen["segment"]).exists()
        assert not Path(seen["scratch"]).exists()


def test_killed_it_leaves_its_children_and_what_they_hold_as_engines_do(tmp_path: Path) -> None:
    @play(tmp_path)
    async def _(stub: Client) -> None:
        seen = await stub.state()
        stub.process.kill()
        stub.process.wait()
        await asyncio.sleep(0.2)
        assert watch.alive(seen["pids"]) == seen["pids"][1:]
        assert Path(seen["segment"]).exists()


@pytest.mark.parametrize("which", [1, 2])
def test_a_child_that_dies_ends_it_and_one_that_is_stopped_hangs_it(tmp_path: Path, which: int) -> None:
    @play(tmp_path)
    async def _(stub: Client) -> None:
        pid = (await stub.state())["pids"][which]
        os.kill(pid, signal.SIGSTOP)
        for path in ("/health", CHAT):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stub.get(path) if path == "/health" else stub.chat(), 0.2)
        os.kill(pid, signal.SIGCONT)
        assert (await stub.chat())[0] == 200
        os.kill(pid, signal.SIGKILL)
        await until(lambda: stub.process.poll() == 1)
        assert "a worker process died" in (tmp_path / "stderr").read_text()


def test_calls_go_wrong_as_often_as_told(tmp_path: Path) -> None:
    @play(tmp_path)
    async def _(stub: Client) -> None:
        await stub.fault("status", status=503, message="busy", times=2)
        for _ in range(2):
            status, body = await stub.chat()
            assert (status, body["error"]["message"]) == (503, "busy")
        await stub.fault("garbage", times=1)
        with pytest.raises(ValueError, match=r"codec can't decode|Unterminated|Expecting"):
            await stub.chat()
        await stub.fault("cut", times=1)
        with pytest.raises(aiohttp.ClientPayloadError):
            await stub.chat()
        await stub.fault("slow", seconds=0.3, times=1)
        start = time.monotonic()
        assert (await stub.chat())[0] == 200
        assert time.monotonic() - start >= 0.3
        await stub.fault("hang")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stub.chat(), 0.2)
        await stub.fault("none")
        assert (await stub.chat())[0] == 200


def test_streams_go_wrong_as_told(tmp_path: Path) -> None:
    @play(tmp_path)
    async def _(stub: Client) -> None:
        whole = await stub.lines()
        await stub.fault("cut_stream", after=0, times=1)
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await stub.lines()
        await stub.fault("cut_stream", after=2, times=1)
        with pytest.raises(aiohttp.ClientPayloadError):
            await stub.lines()
        await stub.fault("no_done", times=1)
        assert len(await stub.lines()) == len(whole) - 1
        await stub.fault("garbage", times=1)
        assert [line for line in await stub.lines() if not line.endswith(("}", "]"))] == ['{"choices": [']
        assert len(await stub.lines()) == len(whole)


def test_health_goes_wrong_as_told(tmp_path: Path) -> None:
    @play(tmp_path)
    async def _(stub: Client) -> None:
        await stub.fault("health_status", status=500, times=1)
        assert (await stub.get("/health"))[0] == 500
        await stub.fault("health_hang", times=1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stub.get("/health"), 0.2)
        assert (await stub.get("/health"))[0] == 200


def test_it_says_much_ignores_being_asked_to_end_and_dies_with_words_as_told(tmp_path: Path) -> None:
    @play(tmp_path)
    async def _(stub: Client) -> None:
        await stub.fault("stderr", bytes=1 << 20)
        assert (tmp_path / "stderr").stat().st_size >= 1 << 20 - 1
        await stub.fault("ignore_sigterm")
        os.kill(stub.process.pid, signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert stub.process.poll() is None
        with pytest.raises(aiohttp.ClientError):
            await stub.fault("exit", status=7, text="last words")
        await until(lambda: stub.process.poll() == 7)
        assert (tmp_path / "stderr").read_text().endswith("last words\n")


def test_a_start_goes_wrong_as_told_once(tmp_path: Path) -> None:
    """What the next start is told stands in a file that it takes along; flags and the environment are for all."""
    file = tmp_path / "next"
    file.write_text(json.dumps({"exit_at_start": "no room", "exit_status": 4}))
    first = subprocess.run(command("--next", str(file)), capture_output=True, text=True, check=False)
    assert (first.returncode, first.stderr) == (4, "no room\n")
    assert not file.exists()
    assert list(tmp_path.iterdir()) == []
    settings = read_settings(["--next", str(file), "--never-ready", "--token-s", "0.5"], {"STUB_READY_AFTER": "2"})
    assert (settings["never_ready"], settings["token_s"], settings["ready_after"]) == (True, 0.5, 2.0)
    assert settings["exit_at_start"] == ""

    async def never() -> None:
        async with running(tmp_path, "--never-ready", wait=False) as stub:
            await until(lambda: answers(stub), BOUND_S)
            assert (await stub.get("/health"))[0] == 503

    asyncio.run(never())


async def answers(stub: Client) -> bool:
    try:
        return bool(await stub.state())
    except aiohttp.ClientError:
        return False


def test_a_port_that_is_taken_ends_it_with_the_words_of_the_system(tmp_path: Path) -> None:
    """It says which port it is about to take, and takes it late: time enough for somebody else."""
    told = tmp_path / "announced"
    argv = command("--bind-after", "0.5", "--announce", str(told))
    with started(tmp_path, argv) as process, socket.socket() as stranger:
        end = time.monotonic() + BOUND_S
        while not told.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        assert json.loads(told.read_text()) == {"pid": process.pid, "port": int(argv[3])}
        stranger.bind(("127.0.0.1", int(argv[3])))
        stranger.listen()
        assert process.wait(BOUND_S) == 1
        assert "address already in use" in (tmp_path / "stderr").read_text()
