"""Anthropic's Messages API, by the ``anthropic`` SDK over a real socket."""

from __future__ import annotations

import base64
import http.client
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import pytest

from taskrouter.backends import fake_model
from taskrouter.backends.fake_script import answer
from taskrouter.http import streaming
from taskrouter.verbs import ChatRequest

from .noting import Noting
from .serving import API_KEY, Served, keys, serving, written
from .test_anthropic_words import BAD, PDF, WEATHER, user

STUB = Path(__file__).parents[1] / "engines" / "stub.py"
PNG = base64.b64encode(b"\x89PNG none").decode()
pytestmark = pytest.mark.xdist_group("engines")  # one of its models is a real process


def option(name: str, **engine_args: Any) -> dict[str, Any]:
    return {"framework": "fake", "model_id": name, "vram_gb": 0.5, "engine_args": engine_args}


TASKS: dict[str, Any] = {
    "say": {
        "kind": "chat",
        "selected": "parrot",
        "options": {
            "parrot": option("p"),
            "giant": {"framework": "fake", "model_id": "g", "vram_gb": 100},
            "blind": option("b", lacks=["image", "tools"]),
            "doomed": option("d", fail="die"),
            "stuck": option("s", hang="call"),
        },
    },
    "one": {"kind": "chat", "selected": "it", "options": {"it": {**option("o"), "max_concurrency": 1}}},
    "embed": {"kind": "embedding", "selected": "it", "options": {"it": option("e")}},
    "engine": {
        "kind": "chat",
        "selected": "stub",
        "options": {
            "stub": {
                "framework": "command", "model_id": "stub", "vram_gb": 0.5,
                "command": [sys.executable, str(STUB), "--port", "{port}", "--ready-after", "0"],
            }
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        with serving(
            written(folder, TASKS, default_task="say", media={"max_bytes": "1MiB"}), keys(), fake=Noting()
        ) as server:
            yield server


@pytest.fixture
def client(served: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.url, api_key=API_KEY, max_retries=0) as found:
        yield found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ChatRequest]:
    """What models are asked."""
    found: list[ChatRequest] = []

    def noted(label: str, script: Any, verb: str, request: Any) -> Any:
        found.append(request)
        return answer(label, script, verb, request)

    monkeypatch.setattr(fake_model, "answer", noted)
    return found


def ask(client: anthropic.Anthropic, model: str = "say", content: Any = "hello there", **more: Any) -> Any:
    return client.messages.create(**{"model": model, "max_tokens": 100, "messages": user(content), **more})


@pytest.mark.parametrize("model", ["say", "say/parrot", "default"])
def test_a_message_is_answered(client: anthropic.Anthropic, model: str) -> None:
    raw = client.messages.with_raw_response.create(model=model, max_tokens=100, messages=user("hello there"))
    answer = raw.parse()
    assert answer.id.startswith("msg_")
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "say" if model == "default" else model)
    assert [(each.type, each.text) for each in answer.content if each.type == "text"] == [
        ("text", "parrot: hello there")
    ]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (2, 3)
    assert raw.headers["x-taskrouter-option"] == "parrot"
    assert raw.headers["x-taskrouter-reason"] == ("named" if model == "say/parrot" else "selected")
    assert 0 <= float(raw.headers["x-taskrouter-waited"]) < 30


def test_tasks_and_their_options_are_models(client: anthropic.Anthropic) -> None:
    found = client.models.list()
    assert [each.id for each in found][:3] == ["say", "say/parrot", "say/giant"]
    assert not found.has_more
    assert (found.first_id, found.last_id) == ("say", "engine/stub")
    one = client.models.retrieve("say/parrot")
    assert (one.type, one.id, one.display_name) == ("model", "say/parrot", "say/parrot")
    assert one.created_at.year >= 2024
    with pytest.raises(anthropic.NotFoundError, match="no task 'nobody'"):
        client.models.retrieve("nobody")


def test_an_answer_that_is_cut_says_so(client: anthropic.Anthropic) -> None:
    assert ask(client, max_tokens=1).stop_reason == "max_tokens"


def test_a_message_comes_in_events(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="say", max_tokens=100, messages=user("hello there")) as stream:
        events = [each.type for each in stream if each.type != "text"]
        whole = stream.get_final_message()
        assert stream.response.headers["x-taskrouter-option"] == "parrot"
    assert events == [
        "message_start", "content_block_start", *["content_block_delta"] * 3, "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    assert [each.text for each in whole.content if each.type == "text"] == ["parrot: hello there"]
    assert whole.stop_reason == "end_turn"
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (2, 3)
    again = ask(client, stream=True)
    assert [each.type for each in again] == events


def post(served: Served, body: Any, path: str = "/v1/messages") -> tuple[int, bytes]:
    """A body as it is."""
    parts = urlsplit(served.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request("POST", path, data, {"x-api-key": API_KEY, "content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_events_are_named_on_the_wire(served: Served) -> None:
    status, data = post(served, {"model": "say", "max_tokens": 5, "messages": user("hi"), "stream": True})
    assert status == 200
    blocks = [each.split(b"\n") for each in data.split(b"\n\n") if each]
    assert all(len(each) == 2 for each in blocks)
    named = [
        (each[0].removeprefix(b"event: ").decode(), json.loads(each[1].removeprefix(b"data: "))) for each in blocks
    ]
    assert all(name == read["type"] for name, read in named)
    assert [name for name, _ in named][:2] == ["message_start", "content_block_start"]
    assert named[-1] == ("message_stop", {"type": "message_stop"})


def test_what_a_message_says_reaches_the_model(client: anthropic.Anthropic, asked: list[ChatRequest]) -> None:
    ask(
        client,
        content=[
            {"type": "text", "text": "look", "cache_control": {"type": "ephemeral"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            {"type": "document", "source": {**PDF, "data": PNG}, "title": "t"},
        ],
        system=[{"type": "text", "text": "be brief"}, {"type": "text", "text": "be kind"}],
        stop_sequences=["END"],
        metadata={"user_id": "u"},
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 3, "thinking": {"type": "disabled"}},
    )  # fmt: skip
    (request,) = asked
    assert request.messages == (
        {"role": "system", "content": "be brief\n\nbe kind"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "file", "file": {"filename": "t", "file_data": f"data:application/pdf;base64,{PNG}"}},
            ],
        },
    )
    assert (request.max_tokens, request.temperature, request.top_p, request.stop) == (100, 0.5, 0.9, ("END",))
    assert request.extra == {"top_k": 3}
    assert request.limits is not None


def test_an_engine_calls_tools(client: anthropic.Anthropic) -> None:
    answer = ask(client, "engine", "Paris", tools=[WEATHER], tool_choice={"type": "auto"})
    (block,) = answer.content
    assert (block.type, block.id, block.name, block.input) == ("tool_use", "call-1", "weather", {"text": "Paris"})
    assert answer.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "rainy", "is_error": False}
    talk: Any = [*user("Paris"), {"role": "assistant", "content": [block.model_dump()]}, *user([result])]
    after = ask(client, "engine", messages=talk, tools=[WEATHER], tool_choice={"type": "none"})
    assert after.content[0].text == "stub heard: rainy"
    assert after.stop_reason == "end_turn"


def test_an_engines_calls_come_in_events(client: anthropic.Anthropic) -> None:
    told: Any = {"model": "engine", "max_tokens": 100, "messages": user("Paris"), "tools": [WEATHER]}
    with client.messages.stream(**told) as stream:
        events = [each.type for each in stream if each.type != "input_json"]
        whole = stream.get_final_message()
    assert events == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    (block,) = whole.content
    assert block.type == "tool_use"
    assert (block.name, block.input, whole.stop_reason) == ("weather", {"text": "Paris"}, "tool_use")
    assert whole.usage.output_tokens == 1
    with client.messages.stream(model="engine", max_tokens=2, messages=user("what a day")) as stream:
        assert stream.get_final_text() == "stub heard:"
        assert stream.get_final_message().stop_reason == "max_tokens"


def test_errors_are_the_sdks_own(client: anthropic.Anthropic, served: Served) -> None:
    with pytest.raises(anthropic.NotFoundError, match="there is no task 'nobody'") as missing:
        ask(client, "nobody")
    assert missing.value.body["type"] == "error"  # type: ignore[index]
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.NotFoundError, match="nothing"):
        ask(client, "say/nothing")
    with pytest.raises(anthropic.InternalServerError) as full:
        ask(client, "say/giant")
    assert full.value.status_code == 507
    with pytest.raises(anthropic.BadRequestError, match="of kind embedding, which can't chat"):
        ask(client, "embed")
    with pytest.raises(anthropic.UnprocessableEntityError, match="takes no tools"):
        ask(client, "say/blind", tools=[WEATHER])
    other = anthropic.Anthropic(base_url=served.url, api_key="not-the-key", max_retries=0)
    with other, pytest.raises(anthropic.AuthenticationError, match="not an API key of this server"):
        ask(other)
    with pytest.raises(anthropic.RequestTooLargeError, match="the request's body has"):
        ask(client, content="x" * (3 << 20))


def test_an_error_in_mid_stream_is_an_event(client: anthropic.Anthropic) -> None:
    said: list[str] = []
    with pytest.raises(anthropic.APIStatusError, match="died"):
        said.extend(event.type for event in ask(client, "say/doomed", stream=True))
    assert said[:3] == ["message_start", "content_block_start", "content_block_delta"]
    assert "message_stop" not in said


@pytest.mark.parametrize(("more", "said"), BAD, ids=[said[:40] for _, said in BAD])
def test_what_makes_no_sense_is_refused(client: anthropic.Anthropic, more: dict[str, Any], said: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=said) as caught:
        ask(client, extra_body=more)
    assert caught.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/messages"), ("POST", "/v1/models")])
def test_a_method_that_a_path_does_not_have_is_refused_in_the_clients_shape(
    served: Served, method: str, path: str
) -> None:
    address = urlsplit(served.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    try:
        connection.request(method, path, b"{}", {"x-api-key": API_KEY, "anthropic-version": "2023-06-01"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
    finally:
        connection.close()
    assert (answer.status, told["type"], told["error"]["type"]) == (405, "error", "invalid_request_error")
    assert answer.getheader("allow")


def test_nonsense_that_no_sdk_would_send(served: Served) -> None:
    def deep(times: int, of: str) -> bytes:
        return b'{"a":' * times + of.encode() + b"}" * times

    head = b'{"model":"say","max_tokens":5,"messages":[{"role":"user","content":"x"}],'
    for body in (
        b"", b"[]", b"{", b"\xff", b"null",
        head + b'"tools":[{"name":"t","input_schema":' + deep(600, "1") + b"}]}",
        head + b'"output_config":{"format":{"type":"json_schema","schema":' + deep(600, "1") + b"}}}",
        deep(100_000, "1"),
    ):  # fmt: skip
        status, text = post(served, body)
        assert status == 400, (body[:80], text)
        assert json.loads(text)["error"]["type"] == "invalid_request_error"


def test_tokens_are_not_guessed(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="tokens can't be counted for say"):
        client.messages.count_tokens(model="say", messages=user("x"))
    with pytest.raises(anthropic.NotFoundError, match="there is no task 'nobody'"):
        client.messages.count_tokens(model="nobody", messages=user("x"))
    with pytest.raises(anthropic.BadRequestError, match="which can't chat"):
        client.messages.count_tokens(model="embed", messages=user("x"))


def test_pings_are_sent_while_a_model_is_waited_for(
    client: anthropic.Anthropic, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.01)

    async def held() -> Any:
        lease = served.manager.lease("one")
        await lease.__aenter__()
        return lease

    lease = served.run(held())
    let_go = threading.Event()
    try:
        with client.messages.with_streaming_response.create(
            model="one", max_tokens=9, messages=user("hi"), stream=True
        ) as response:
            lines = response.iter_lines()
            assert [next(lines) for _ in range(3)] == ["event: ping", 'data: {"type":"ping"}', ""]
            served.run(lease.__aexit__(None, None, None))
            let_go.set()
            rest = list(lines)
    finally:
        if not let_go.is_set():
            served.run(lease.__aexit__(None, None, None))
    assert "event: message_start" in rest
    assert rest[-3:-1] == ["event: message_stop", 'data: {"type":"message_stop"}']


def test_who_goes_away_ends_the_call(client: anthropic.Anthropic, served: Served) -> None:
    backend = served.backend
    assert isinstance(backend, Noting)
    backend.event("call-cancelled").clear()
    stream = ask(client, "say/stuck", stream=True)
    assert next(stream).type == "message_start"
    stream.close()
    assert backend.event("call-cancelled").wait(30)


def test_a_timeout_of_the_callers_own_is_held(client: anthropic.Anthropic, served: Served) -> None:
    async def held() -> Any:
        lease = served.manager.lease("one")
        await lease.__aenter__()
        return lease

    lease = served.run(held())
    try:
        with pytest.raises(anthropic.APIStatusError) as caught:
            ask(client, "one", extra_headers={"x-taskrouter-timeout": "0.05"})
        assert caught.value.status_code == 503
        assert caught.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
    finally:
        served.run(lease.__aexit__(None, None, None))
