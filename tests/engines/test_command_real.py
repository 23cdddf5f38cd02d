"""``framework: command`` with two servers that were not made for us: ``transformers serve`` and llama.cpp's.

Both serve the claims sample, llama.cpp from a GGUF file made of it, and both must say what it is known to say.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from taskrouter import ModelManager, errors
from taskrouter.manager import StillMachine
from taskrouter.samples.manifest import DemoInput, demo_inputs, sample_dir
from taskrouter.types import GIB
from tests.engines.gguf_model import write_gguf

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engines")]

TASK = "claim_extraction"
QUESTIONS = [question for question in demo_inputs() if question.task == TASK]
BOUND_S = 30.0
LOOK_S = 0.3
IDLE = 0.2
"""A server that uses less than this fraction of a core does nothing."""


@dataclass(frozen=True)
class Server:
    """``option`` is what models.yaml says of it; ``unending`` makes it write so many tokens, ended or not."""

    option: dict[str, Any]
    unending: Callable[[int], dict[str, Any]]
    folder: Path

    def manager(self) -> ModelManager:
        task = {"selected": "served", "options": {"served": self.option}}
        file = self.folder / "models.yaml"
        sections = {"inference": {"warmup_on_startup": False}}
        file.write_text(json.dumps({"tasks": {TASK: task}, **sections}), encoding="utf-8")
        return ModelManager(file, machine=StillMachine({"cpu": 4 * GIB}))


def transformers_serve(folder: Path, python: Callable[[str], str]) -> Server:
    def unending(tokens: int) -> dict[str, Any]:
        config = {"min_new_tokens": tokens, "max_new_tokens": tokens, "eos_token_id": 3, "pad_token_id": 0}
        return {"generation_config": json.dumps(config)}

    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "{model_id}"]
    command += ["--host", "127.0.0.1", "--port", "{port}", "--device", "{device}"]
    option = {
        "framework": "command",
        "model_id": str(sample_dir("claims")),
        "command": command,
        "health": "/health",
        # On a busy machine two threads that wait for each other are many times slower than one.
        "env": {"OMP_NUM_THREADS": "1"},
    }
    return Server(option, unending, folder)


def llama_cpp(folder: Path, python: Callable[[str], str]) -> Server:
    def unending(tokens: int) -> dict[str, Any]:
        return {"min_tokens": tokens}

    command = [python("llama"), "-m", "llama_cpp.server", "--model", "{model_id}"]
    command += ["--host", "127.0.0.1", "--port", "{port}", "--api_key", "{api_key}", "--n_ctx", "16384"]
    command += ["--n_threads", "1", "--n_threads_batch", "1"]
    # By default a request ends the stream that is under way, and /v1/models waits until it has ended by itself.
    command += ["--interrupt_requests", "false"]
    option = {
        "framework": "command",
        "model_id": str(write_gguf(sample_dir("claims"), folder / "claims.gguf")),
        "command": command,
        "health": "/openapi.json",
        "max_concurrency": 1,
    }
    return Server(option, unending, folder)


SERVERS = {"transformers serve": transformers_serve, "llama.cpp": llama_cpp}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path, engine_python: Callable[[str], str]) -> Server:
    return SERVERS[request.param](tmp_path, engine_python)


def play(server: Server, main: Callable[[ModelManager, Any], Coroutine[Any, Any, None]]) -> None:
    """Run it with the manager and its one model, loaded; afterwards the server's processes are gone."""
    pids: list[int] = []

    async def whole() -> None:
        async with server.manager() as manager:
            model = await manager.get_model(TASK)
            pids.extend(processes(manager))
            assert pids
            await main(manager, model)
            assert not manager.leases
            manager._core.check()

    asyncio.run(whole())
    assert living(pids) == []


def processes(manager: ModelManager) -> list[int]:
    """Of the one server that is loaded."""
    (info,) = manager.statistics().info.values()
    first = psutil.Process(info["pid"])
    return [first.pid, *(child.pid for child in first.children(recursive=True))]


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


async def idle(manager: ModelManager) -> None:
    """Wait until the server does nothing."""
    process = psutil.Process(processes(manager)[0])
    async with asyncio.timeout(BOUND_S):
        busy = True
        while busy:
            busy = await asyncio.to_thread(process.cpu_percent, LOOK_S) > 100 * IDLE


async def answers_right(model: Any, question: DemoInput) -> None:
    async with asyncio.timeout(BOUND_S):
        answer = await model.chat(question.messages, max_tokens=96)
    assert answer.text == question.expected


def test_it_says_what_the_sample_says_whole_or_in_pieces(server: Server) -> None:
    async def main(manager: ModelManager, model: Any) -> None:
        for question in QUESTIONS:
            whole = await model.chat(question.messages, max_tokens=96)
            assert (whole.text, whole.finish_reason) == (question.expected, "stop")
            assert whole.usage.prompt_tokens > 20
            assert whole.raw["choices"][0]["message"]["content"] == whole.text
            chunks = [chunk async for chunk in model.stream_chat(question.messages, max_tokens=96)]
            assert "".join(chunk.text for chunk in chunks) == whole.text
            assert chunks[-1].finish_reason == "stop"
            assert len(chunks) > 5
        short = await model.chat(QUESTIONS[0].messages, max_tokens=2)
        assert (short.text, short.finish_reason) == ("The writer", "length")

    play(server, main)


def test_completions_and_the_servers_own_paths_pass_through(server: Server) -> None:
    question = QUESTIONS[0]
    assert question.messages is not None
    prompt = f"<|user|>{question.messages[0]['content']}<|assistant|>"

    async def main(manager: ModelManager, model: Any) -> None:
        assert (await model.generate(prompt, max_tokens=96)).text == question.expected
        listed = await model.request("/v1/models")
        assert [entry["id"] for entry in listed["data"]] == [server.option["model_id"]]
        body = {"prompt": prompt, "max_tokens": 96, "temperature": 0}
        events = [event async for event in model.stream_request("/v1/completions", body)]
        assert "".join(event["choices"][0]["text"] for event in events) == question.expected
        with pytest.raises(errors.UnsupportedVerb, match="404"):
            await model.request("/v1/nowhere", {})

    play(server, main)


def test_a_stream_that_is_left_early_stops_the_server(server: Server) -> None:
    async def main(manager: ModelManager, model: Any) -> None:
        async with model.stream_chat(QUESTIONS[0].messages, max_tokens=15_000, extra=server.unending(15_000)) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    break
        await idle(manager)
        await answers_right(model, QUESTIONS[1])

    play(server, main)


def test_a_cancelled_call_ends_its_lease_and_the_next_is_answered(server: Server) -> None:
    """Both servers finish an answer that nobody waits for any more, and only then begin with the next."""

    async def main(manager: ModelManager, model: Any) -> None:
        long = model.chat(QUESTIONS[0].messages, max_tokens=1_000, extra=server.unending(1_000))
        call = asyncio.ensure_future(long)
        await asyncio.sleep(0.5)
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0.1)
        assert all(not status.leases for status in manager.statistics().models.values())
        await answers_right(model, QUESTIONS[1])

    play(server, main)


def test_many_callers_at_once_all_get_their_own_answer(server: Server) -> None:
    async def main(manager: ModelManager, model: Any) -> None:
        async def in_pieces(question: DemoInput) -> str:
            return "".join([chunk.text async for chunk in model.stream_chat(question.messages, max_tokens=96)])

        texts = asyncio.gather(*map(in_pieces, QUESTIONS))
        await asyncio.gather(*[answers_right(model, question) for question in QUESTIONS], texts)
        assert texts.result() == [question.expected for question in QUESTIONS]

    play(server, main)


def test_unloaded_no_process_is_left_and_it_can_be_loaded_again(server: Server) -> None:
    async def main(manager: ModelManager, model: Any) -> None:
        before = processes(manager)
        await manager.unload_model(TASK)
        assert living(before) == []
        assert not manager.loaded_models
        await answers_right(model, QUESTIONS[0])
        assert not set(processes(manager)) & set(before)

    play(server, main)


def test_llama_cpp_wants_the_key_and_keeps_to_a_json_schema(
    tmp_path: Path, engine_python: Callable[[str], str]
) -> None:
    async def main(manager: ModelManager, model: Any) -> None:
        async with manager.lease(TASK) as leased:
            url = f"{leased.raw.base_url}/v1/models"
            with pytest.raises(urllib.error.HTTPError, match="401"):
                await asyncio.to_thread(urllib.request.urlopen, url)
            header = {"Authorization": f"Bearer {leased.raw.api_key}"}
            with await asyncio.to_thread(urllib.request.urlopen, urllib.request.Request(url, headers=header)) as answer:
                assert answer.status == 200
        schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
        form = {"type": "json_object", "schema": schema}
        answer = await model.chat("hello", max_tokens=60, extra={"response_format": form})
        assert json.loads(answer.text)["colour"] in ("red", "blue")

    play(llama_cpp(tmp_path, engine_python), main)


def test_what_transformers_serve_does_not_know_it_refuses(tmp_path: Path, engine_python: Callable[[str], str]) -> None:
    async def main(manager: ModelManager, model: Any) -> None:
        with pytest.raises(errors.BadInput, match="no_such_field"):
            await model.chat("hello", max_tokens=2, extra={"no_such_field": 1})
        await answers_right(model, QUESTIONS[0])

    play(transformers_serve(tmp_path, engine_python), main)
