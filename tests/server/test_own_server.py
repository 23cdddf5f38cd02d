"""What a model's own server can do beside the verbs, asked over HTTP: the paths that compute, and no way to others."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from taskrouter import connect, errors

from .serving import API_KEY, Served, keys, serving, written
from .task_server import fake, one, refused, task_client

pytestmark = pytest.mark.xdist_group("engines")
STUB = Path(__file__).parents[1] / "engines" / "stub.py"
SLEEPS = {"sleep": "POST /V1/Score", "wake": "POST /v1/rise"}


def engine(name: str, **more: Any) -> dict[str, Any]:
    command = [sys.executable, str(STUB), "--port", "{port}", "--ready-after", "0", "--model", name]
    return {"framework": "command", "model_id": name, "vram_gb": 0.5, "command": command, **more}


TASKS: dict[str, Any] = {
    "say": one("chat", engine("stub")),
    "cold": one(None, engine("cold", sleep_calls=SLEEPS)),
    "plain": one("chat", fake()),
    "spare": {"selected": "stub", "fallback": ["fakes"], "options": {"stub": engine("stub"), "fakes": fake()}},
    "routed": {"selected": "fakes", "fallback": ["stub"], "options": {"fakes": fake(slots=9), "stub": engine("stub")}},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        with serving(written(folder, TASKS), keys()) as server:
            yield server


@pytest.fixture
def client(served: Served) -> Iterator[httpx2.Client]:
    with task_client(served) as found:
        yield found


def raw(path: Any, **more: Any) -> dict[str, Any]:
    return {"verb": "request", "path": path, **more}


def test_its_json_is_answered_as_it_is(client: httpx2.Client) -> None:
    answer = client.post("say", json=raw("/v1/embeddings", body={"input": ["a b"], "extra": {"x": None}}))
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["task"], said["option"], said["verb"]) == ("say", "it", "request")
    assert said["result"]["stub"]["got"] == {"model": "stub", "input": ["a b"], "extra": {"x": None}}
    assert answer.headers["x-taskrouter-option"] == "it"
    assert client.post("say/it", json=raw("/v1/embeddings", body={"input": "x"})).json()["option"] == "it"
    form = {"verb": "request", "path": "/v1/embeddings", "body": json.dumps({"input": "x"})}
    said = client.post("say", files={name: (None, value) for name, value in form.items()}).json()
    assert said["result"]["stub"]["got"]["input"] == "x"


def test_its_events_come_as_they_are(client: httpx2.Client, served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "a b"}]}
    with client.stream("POST", "say", json=raw("/v1/chat/completions", body=body, stream=True)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert events[0]["stub"]["got"] == {"stream": True, "model": "stub", **body}
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in events) == "stub heard: a b"


def test_what_it_took_is_counted(client: httpx2.Client, served: Served) -> None:
    def tokens() -> float:
        text = httpx2.get(f"{served.url}/metrics", headers={"authorization": f"Bearer {API_KEY}"}, trust_env=False).text
        lines = [line for line in text.splitlines() if line.startswith("taskrouter_tokens") and 'task="say"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines if "_created" not in line)

    body = {"messages": [{"role": "user", "content": "a b c"}]}
    before = tokens()
    client.post("say", json=raw("/v1/chat/completions", body=body))
    once = tokens()
    assert once > before
    streamed = {**body, "stream_options": {"include_usage": True}}
    assert client.post("say", json=raw("/v1/chat/completions", body=streamed, stream=True)).status_code == 200
    assert tokens() - once == once - before


@pytest.mark.parametrize(
    "path",
    ["/stub/state", "/stub/fault", "/health", "/metrics", "/v1/../stub/fault", "/v1/%2e%2e/stub/fault", "/v1/x?y",
     "/v1/models/", "/v1//models", "/v1/models#x", "/v1/load_lora_adapter", "/v1/score", "/v1/rise", "/v1/./rise",
     "/v1/models", "/v1/model/load", "/v1/internal/model/load", "/V1/EMBEDDINGS", "/v1/embeddings\n",
     "/v1\\..\\rise", "/sleep"],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_other_paths_are_refused_before_anything_is_loaded(
    client: httpx2.Client, served: Served, path: str, stream: bool
) -> None:
    answer = client.post("cold", json=raw(path, body={"name": "none"}, stream=stream))
    assert "/tokenize, /v1/chat/completions" in refused(answer, 403)
    assert answer.json()["error"]["code"] == "path_not_allowed"
    model = served.manager.statistics().tasks["cold"].model
    assert model is not None
    assert model.generation == 0


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (raw("http://127.0.0.1:1/v1/models"), "must begin with one /"),
        (raw("//127.0.0.1:1/v1/models"), "must begin with one /"),
        (raw("v1/models"), "must begin with one /"),
        (raw(""), "path: "),
        (raw(7), "path: "),
        ({"verb": "request"}, "request needs path"),
        (raw("/v1/x", body=[1]), "body: "),
        (raw("/v1/x", body={"model": "other"}), "leave model out"),
        (raw("/v1/x", body={"image": "http://127.0.0.1:1/"}), "nothing is fetched"),
        (raw("/v1/chat/completions", body={"stream": True}), "beside path"),
        (raw("/v1/chat/completions", body={"stream": False}, stream=True), "beside path"),
        (raw("/v1/chat/completions", body={"stream_options": {}}), "beside path"),
        (raw("/v1/x", sauce=1), "request takes no 'sauce'; it takes path, body, stream"),
        (raw("/v1/x", stream="yes"), "stream: "),
    ],
)
def test_nonsense_is_refused(client: httpx2.Client, given: Any, match: str) -> None:
    answer = client.post("say", json=given)
    assert match in refused(answer, 400)
    assert answer.json()["error"]["code"] == "bad_input"


def test_who_asks_for_what_cannot_be_read_breaks_nothing_for_others(client: httpx2.Client, served: Served) -> None:
    talk = {"messages": [{"role": "user", "content": "a b"}]}
    wrong = [
        raw("/v1/chat/completions", body={**talk, "stream": True}),  # events where JSON is read
        raw("/v1/chat/completions", body={**talk, "stream": False}, stream=True),
        raw("/v1/embeddings", body={"input": "a"}, stream=True),  # of what answers in no events
    ]
    for _ in range(4):
        for body in wrong:
            assert client.post("spare", json=body).json()["error"]["code"] == "bad_input"
    answer = client.post("spare", json={"verb": "chat", "messages": "hello"})
    assert (answer.status_code, answer.json()["option"]) == (200, "stub"), answer.text

    async def inside() -> None:
        model = served.manager.handle("spare")
        with pytest.raises(errors.BadInput, match="no JSON"):
            await model.request("/v1/chat/completions", {**talk, "stream": True})
        with pytest.raises(errors.BadInput, match="no event stream"):
            await anext(model.stream_request("/v1/chat/completions", {**talk, "stream": False}))

    served.run(inside())


def test_a_task_that_no_engine_serves_has_no_server_to_ask(client: httpx2.Client) -> None:
    for stream in (False, True):
        answer = client.post("plain", json=raw("/v1/rerank", stream=stream))
        assert "no engine serves plain" in refused(answer, 400)
        assert answer.json()["error"]["code"] == "unsupported_verb"
    assert "there is no GET /v1/rerank" in refused(client.post("say", json=raw("/v1/rerank")), 400)
    assert client.post("routed", json=raw("/v1/embeddings", body={"input": "x"})).json()["option"] == "stub"
    refused(client.post("routed", json=raw("/stub/state")), 403)


def test_a_client_asks_as_a_handle_of_the_library_does(served: Served) -> None:
    body = {"input": "hello"}
    talk = {"messages": [{"role": "user", "content": "a b"}]}

    async def events(model: Any) -> list[Any]:
        return [each["choices"] async for each in model.stream_request("/v1/chat/completions", talk)]

    async def main() -> None:
        async with connect(served.url, api_key=API_KEY) as client:
            model = client.handle("say")
            assert await model.request("/v1/embeddings", body) == there
            assert await events(model) == pieces
            assert model.option == "it"
            for path in ("/stub/state", "/v1/%2e%2e/stub/state"):
                with pytest.raises(errors.ServerRefused, match="can't be asked for over HTTP") as caught:
                    await model.request(path)
                assert (caught.value.status, caught.value.code) == (403, "path_not_allowed")
                with pytest.raises(errors.ServerRefused):
                    await anext(model.stream_request(path, {}))
            for kind, task, path in (
                (errors.UnsupportedVerb, "plain", "/v1/rerank"),
                (errors.UnsupportedVerb, "say", "/v1/rerank"),
                (errors.BadInput, "say", "http://127.0.0.1/"),
            ):
                with pytest.raises(errors.TaskRouterError) as failed:
                    await client.handle(task).request(path)
                assert type(failed.value) is kind, failed.value

            async with client.lease("routed", option="stub") as held:
                assert (await held.request("/v1/embeddings", body))["stub"]["got"]["input"] == "hello"
                assert len(await events(held)) == len(pieces)
                with pytest.raises(errors.ServerRefused, match="can't be asked for over HTTP"):
                    await held.request("/stub/state")
            async with client.lease("routed") as held:  # the selected one, which no engine serves
                with pytest.raises(errors.UnsupportedVerb):
                    await held.request("/v1/rerank")

    handle = served.manager.handle("say")
    there = served.run(handle.request("/v1/embeddings", body))
    pieces = served.run(events(handle))
    asyncio.run(asyncio.wait_for(main(), 60))
    with connect(served.url, api_key=API_KEY).blocking() as blocking:
        model = blocking.handle("say")
        assert model.request("/v1/embeddings", body) == there
        assert [each["choices"] for each in model.stream_request("/v1/chat/completions", talk)] == pieces
