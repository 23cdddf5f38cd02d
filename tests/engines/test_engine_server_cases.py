"""Behaviours that must hold, over HTTP, with a server that wasn't made for us (llama.cpp's) as the engine.

Room for one of two models, each a process that has to start.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from taskrouter import connect, errors
from taskrouter.residency import State
from tests.server.administering import call
from tests.server.clients import CHAT, Raw, json_of, status_of
from tests.server.serving import ADMIN_KEY, Served, keys, serving, written
from tests.server.stalling import not_ready, nothing_moves
from tests.server.test_cases import loaded
from tests.server.test_streams import seen

from .subjects import CLAIMS
from .test_command_real import llama_cpp

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engines"), pytest.mark.timeout(300)]
CALLERS = 100


@pytest.fixture
def served(tmp_path: Path, engine_python: Callable[[str], str]) -> Iterator[Served]:
    (tmp_path / "gguf").mkdir()
    option = {**llama_cpp(tmp_path / "gguf", engine_python).option, "vram_gb": 2}
    broken = {**option, "command": [*option["command"], "--no-such-flag"]}
    tasks = {
        name: {"selected": name, "options": {name: {**one, "description": name}}, "max_wait_s": 120}
        for name, one in {
            "a": option,
            "b": {**option, "command": [*option["command"], "--n_batch", "256"]},
            "broken": broken,
        }.items()
    }
    memory = {"devices": {"cpu": {"budget": "3GiB"}}, "min_residency_s": 0, "claim_s": 0.01}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        with serving(written(tmp_path, tasks, memory=memory), keys({"TASKROUTER_ADMIN_KEY": ADMIN_KEY})) as server:
            yield server


WEB = "the-key-of-the-web-app"


@pytest.fixture
def roomy(tmp_path: Path, engine_python: Callable[[str], str]) -> Iterator[Served]:
    """Room for both, and a key that may ask once at a time."""
    (tmp_path / "gguf").mkdir()
    option = {**llama_cpp(tmp_path / "gguf", engine_python).option, "vram_gb": 1}
    other = {**option, "command": [*option["command"], "--n_batch", "256"]}
    tasks = {
        name: {"selected": name, "options": {name: one}, "max_wait_s": 120}
        for name, one in (("a", option), ("b", other))
    }
    (tmp_path / "keys.json").write_text(json.dumps([{"name": "web", "key": WEB, "max_concurrency": 2}]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        known = keys({"TASKROUTER_ADMIN_KEY": ADMIN_KEY}, tmp_path / "keys.json")
        with serving(written(tmp_path, tasks), known) as server:
            yield server


def body(task: str, **more: Any) -> dict[str, Any]:
    return {"model": task, "messages": CLAIMS[0].messages, "temperature": 0, **more}


def ask(served: Served, task: str, timeout_s: float = 150, **more: Any) -> tuple[int, Any]:
    """``timeout_s``: how long the request may wait for its model."""
    headers = {"connection": "close", "authorization": f"Bearer {WEB}", "x-taskrouter-timeout": str(timeout_s)}
    with Raw(served.url, timeout_s=150) as client:
        client.ask(CHAT, body(task, **more), headers)
        answer = client.rest()
    return status_of(answer), json_of(answer)


def right(answer: tuple[int, Any]) -> bool:
    return answer[0] == 200 and answer[1]["choices"][0]["message"]["content"] == CLAIMS[0].expected


def pid(served: Served) -> int:
    (info,) = served.manager.statistics().info.values()
    return int(info["pid"])


def test_1_many_callers_of_a_cold_model_are_one_start(served: Served) -> None:
    async def main() -> list[int]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(served.url, connector=connector) as session:

            async def one() -> int:
                async with session.post(CHAT, json=body("a", max_tokens=2)) as response:
                    await response.read()
                    return response.status

            return await asyncio.gather(*[one() for _ in range(CALLERS)])

    assert asyncio.run(main()) == [200] * CALLERS
    (status,) = [each for each in served.manager.statistics().models.values() if each.state is State.READY]
    assert status.generation == 1
    assert right(ask(served, "a"))


def test_2_a_busy_model_is_not_evicted_and_who_waits_for_its_room_is_answered(served: Served) -> None:
    assert right(ask(served, "a"))
    with ThreadPoolExecutor() as pool, Raw(served.url, timeout_s=150) as client:
        client.ask(CHAT, body("a", stream=True, min_tokens=150, max_tokens=150))
        client.until(b"data: ")
        waiting = pool.submit(ask, served, "b")
        text = client.until(b"[DONE]")
        assert b'"error"' not in text
        assert right(waiting.result(150))
    assert loaded(served) == {"b"}


def test_4_calls_never_queue_behind_another_engines_start(roomy: Served) -> None:
    assert right(ask(roomy, "a"))
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with ThreadPoolExecutor() as pool:
        cold = pool.submit(ask, roomy, "b")
        seen(lambda: any("llama_cpp.server" in " ".join(each.cmdline()) for each in _ours(before)))
        starting = [each for each in _ours(before) if "llama_cpp.server" in " ".join(each.cmdline())]
        for process in starting:
            process.suspend()  # as slow a start as it takes
        try:
            assert all(right(ask(roomy, "a")) for _ in range(3))
            assert not cold.done()
        finally:
            for process in starting:
                process.resume()
        assert right(cold.result(150))


def test_26_what_is_too_much_is_refused_before_the_first_byte_and_27_admin_paths_want_their_key(roomy: Served) -> None:
    assert right(ask(roomy, "a"))
    shown = {"authorization": f"Bearer {WEB}"}
    with Raw(roomy.url, timeout_s=60) as one, Raw(roomy.url, timeout_s=60) as two, Raw(roomy.url) as three:
        for client in (one, two):  # the second waits for the engine's only slot
            client.ask(CHAT, body("a", stream=True, min_tokens=3000, max_tokens=3000), shown)
        one.until(b'"content":')
        seen(lambda: roomy.manager.statistics().waiting == 1)
        three.ask(CHAT, body("a", stream=True), shown)
        answer = three.until(b"}}")
        assert (status_of(answer), json_of(answer)["error"]["code"]) == (429, "concurrency")
    for key, status in ((WEB, 401), (ADMIN_KEY, 200)):
        with Raw(roomy.url) as client:
            client.ask(
                "/admin/tasks/a/unload", {"force": True}, {"authorization": f"Bearer {key}", "connection": "close"}
            )
            assert status_of(client.rest()) == status
    assert roomy.manager.statistics().info == {}


def test_what_its_server_does_beside_the_verbs_is_asked_by_a_client_and_nothing_else(roomy: Served) -> None:
    async def main() -> None:
        async with connect(roomy.url, api_key=WEB) as client:
            model = client.handle("a")
            tokens = (await model.request("/extras/tokenize", {"input": "the mayor"}))["tokens"]
            assert (await model.request("/extras/detokenize", {"tokens": tokens}))["text"].strip() == "the mayor"
            asked = {"messages": CLAIMS[0].messages, "temperature": 0}
            pieces = [each async for each in model.stream_request("/v1/chat/completions", asked)]
            assert "".join(each["choices"][0]["delta"].get("content") or "" for each in pieces) == CLAIMS[0].expected
            for path in ("/openapi.json", "/v1/../openapi.json", "/v1/%2e%2e/docs", "/docs", "/v1/models?x"):
                with pytest.raises(errors.ServerRefused) as caught:
                    await model.request(path)
                assert (caught.value.status, caught.value.code) == (403, "path_not_allowed")
            with pytest.raises(errors.UnsupportedVerb, match="404"):
                await model.request("/v1/moderations", {})

    asyncio.run(asyncio.wait_for(main(), 150))


def test_13_who_gives_up_while_it_starts_leaves_no_process(served: Served) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with Raw(served.url) as client:
        client.ask(CHAT, body("a"))
        seen(lambda: any("llama_cpp.server" in " ".join(each.cmdline()) for each in _ours(before)))
    seen(lambda: not any("llama_cpp.server" in " ".join(each.cmdline()) for each in _ours(before)), 30)
    assert served.manager.statistics().waiting == 0
    assert right(ask(served, "a"))


def _ours(before: set[int]) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.pid not in before and process.status() != psutil.STATUS_ZOMBIE:
                process.cmdline()
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_14_a_start_that_fails_evicts_nobody_for_nothing_and_cools_down(served: Served) -> None:
    status, data = ask(served, "broken")
    assert (status, data["error"]["code"]) == (502, "load_failed")
    assert "no-such-flag" not in data["error"]["message"], "the engine's last words are the operator's"
    assert ask(served, "broken")[0] == 502
    status, data = ask(served, "broken")
    assert (status, data["error"]["code"]) == (503, "cooling_down")
    assert right(ask(served, "a"))


@pytest.mark.parametrize("stream", [False, True])
def test_17_an_engine_that_is_killed_in_its_answer_is_started_again_for_the_next(served: Served, stream: bool) -> None:
    assert right(ask(served, "a"))
    first = pid(served)
    with Raw(served.url, timeout_s=60) as client:
        client.ask(CHAT, body("a", stream=stream, min_tokens=5000, max_tokens=5000))
        if stream:
            client.until(b'"content":')
        else:
            seen(lambda: any(status.leases for status in served.manager.statistics().models.values()))
        os.kill(first, signal.SIGKILL)
        answer = client.until(b'"code":"model_died"')
    assert b'"code":"model_died"' in answer
    seen(lambda: all(status.leases == 0 for status in served.manager.statistics().models.values()))
    begun = time.monotonic()
    assert right(ask(served, "a"))
    assert pid(served) != first
    assert time.monotonic() - begun < 120


def test_28_readiness_turns_false_when_the_oldest_waiter_is_past_its_bound(served: Served) -> None:
    """An engine at work has the room that another is wanted for, and what would refuse that in time is cut off."""
    assert right(ask(served, "a"))
    with ThreadPoolExecutor() as pool, Raw(served.url, timeout_s=150) as client:
        client.ask(CHAT, body("a", stream=True, min_tokens=400, max_tokens=400))
        client.until(b"data: ")
        assert call(served, "/ready", key=None)[0] == 200
        with nothing_moves(served):
            waiting = pool.submit(ask, served, "b", timeout_s=0.2)
            assert not_ready(served, key=None)["oldest_wait_s"] > 0.2
            assert call(served, "/health", key=None)[0] == 200
        status, told = waiting.result(20)
        assert (status, told["error"]["code"]) == (503, "overloaded")
        assert call(served, "/ready", key=None)[0] == 200
        assert b'"error"' not in client.until(b"[DONE]"), "what served went on"
    assert loaded(served) == {"a"}
