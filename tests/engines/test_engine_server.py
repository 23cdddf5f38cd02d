"""A real engine behind the server: an OpenAI client doesn't notice, and hears of its troubles in its own words."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import psutil
import pytest

from taskrouter import connect, errors
from tests.server.serving import Served, serving, written

from .subjects import CLAIMS, SAMPLE

pytestmark = [pytest.mark.slow, pytest.mark.shared_engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(400)]
ENV = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, engine_python: Callable[[str], str]) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    option = {
        "model_id": SAMPLE, "framework": "vllm", "dtype": "float32", "max_context": 256, "vram_gb": 3, "env": ENV,
        "engine_args": {"enforce-eager": True},
    }  # fmt: skip
    tasks = {"claims": {"kind": "chat", "selected": "it", "options": {"it": option}, "max_wait_s": 240}}
    sections: dict[str, Any] = {"engines": {"vllm": {"python": engine_python("vllm")}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        with serving(written(folder, tasks, **sections)) as server:
            yield server


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=240) as found:
        yield found


def ask(client: openai.OpenAI, place: int, **more: Any) -> Any:
    messages: Any = CLAIMS[place].messages
    return client.chat.completions.create(model="claims", messages=messages, temperature=0, **more)


def test_its_answers_are_the_engines(client: openai.OpenAI) -> None:
    for place, question in enumerate(CLAIMS):
        answer = ask(client, place)
        assert answer.choices[0].message.content == question.expected
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_its_pieces_are_the_answer(client: openai.OpenAI) -> None:
    chunks = list(ask(client, 0, stream=True, stream_options={"include_usage": True}))
    pieces = [each.choices[0].delta.content or "" for each in chunks if each.choices]
    assert "".join(pieces) == CLAIMS[0].expected
    assert chunks[-1].usage.completion_tokens > 1


def test_what_the_engine_knows_beside_goes_through(client: openai.OpenAI) -> None:
    answer = ask(client, 0, logprobs=True, top_logprobs=2, max_tokens=3, extra_body={"min_tokens": 3})
    assert len(answer.choices[0].logprobs.content) == 3
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model="claims", messages=[{"role": "user", "content": "word " * 900}])


def test_what_it_does_beside_the_verbs_is_asked_by_a_client_and_nothing_else(served: Served) -> None:
    with connect(served.url).blocking() as client:
        model = client.handle("claims")
        tokens = model.request("/tokenize", {"prompt": "the mayor opened the bridge"})["tokens"]
        assert model.request("/detokenize", {"tokens": tokens})["prompt"].strip() == "the mayor opened the bridge"
        asked = {"messages": CLAIMS[0].messages, "temperature": 0}
        pieces = list(model.stream_request("/v1/chat/completions", asked))
        assert "".join(each["choices"][0]["delta"].get("content") or "" for each in pieces) == CLAIMS[0].expected
        for path in (
            "/sleep",
            "/metrics",
            "/v1/models",
            "/v1/../sleep",
            "/tokenize/../sleep",
            "/tokenize%2f..%2fsleep",
        ):
            with pytest.raises(errors.ServerRefused) as caught:
                model.request(path, {})
            assert (caught.value.status, caught.value.code) == (403, "path_not_allowed")
        with pytest.raises(errors.BadInput):
            model.request("/tokenize", {"tokens": "none"})


def test_an_engine_that_is_killed_under_a_call_is_an_error_and_there_for_the_next(
    client: openai.OpenAI, served: Served
) -> None:
    """Case 17. It is kept from answering first: there is no answer before it is killed, however slow the machine."""
    ask(client, 0, max_tokens=1)
    (info,) = served.manager.statistics().info.values()
    front = psutil.Process(info["pid"])
    processes = [front, *front.children(recursive=True)]
    for process in processes:
        process.suspend()
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(ask, client, 0)
        end = time.monotonic() + 30
        while not any(status.leases for status in served.manager.statistics().models.values()):
            assert time.monotonic() < end
            time.sleep(0.01)
        os.kill(front.pid, signal.SIGKILL)
        with pytest.raises(openai.InternalServerError) as caught:
            calling.result(60)
    assert caught.value.status_code == 502
    assert caught.value.code == "model_died"
    assert ask(client, 0).choices[0].message.content == CLAIMS[0].expected
    assert all(status.leases == 0 for status in served.manager.statistics().models.values())
