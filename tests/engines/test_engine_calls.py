"""What is sent to an engine, what its answers mean, and how each thing that can be wrong with them is told apart."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.backends.engines.openai import answer_of, body_of, chunks_of, parse_event
from taskrouter.manager import StillMachine
from taskrouter.types import GIB
from taskrouter.verbs import ChatRequest, EmbedRequest, GenerateRequest, RawRequest

from .subjects import STUB

HELLO = ({"role": "user", "content": "hello"},)


# --- words, without a server ------------------------------------------------------------------------------------------


CHAT = "/v1/chat/completions"
SAMPLED = {"max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "stop": ["x"], "seed": 3, "logprobs": True}


@pytest.mark.parametrize(
    ("request_", "path", "body"),
    [
        (ChatRequest(HELLO), CHAT, {"messages": [*HELLO], "temperature": 0.0}),
        (ChatRequest(HELLO, 5, 0.7, 0.9, ("x",), 3, {"logprobs": True}), CHAT, {"messages": [*HELLO], **SAMPLED}),
        (ChatRequest(HELLO, top_p=0.5), CHAT, {"messages": [*HELLO], "top_p": 0.5, "temperature": 1.0}),
        (GenerateRequest("go", 2), "/v1/completions", {"prompt": "go", "max_tokens": 2, "temperature": 0.0}),
        (EmbedRequest(("a", "b"), {"dimensions": 8}), "/v1/embeddings", {"input": ["a", "b"], "dimensions": 8}),
        (RawRequest("/v1/rerank", {"query": "q"}), "/v1/rerank", {"query": "q"}),
    ],
)
def test_a_request_becomes_the_apis_words(request_: Any, path: str, body: dict[str, Any]) -> None:
    assert body_of("chat", request_, "m") == (path, {"model": "m", **body})


def test_a_body_may_name_its_own_model_and_no_body_is_a_get() -> None:
    assert body_of("request", RawRequest("/x", {"model": "lora"}), "m") == ("/x", {"model": "lora"})
    assert body_of("request", RawRequest("/x"), "m") == ("/x", None)


@pytest.mark.parametrize("name", ["model", "messages", "stream", "prompt", "input", "stream_options"])
def test_extra_can_not_replace_what_the_verb_writes(name: str) -> None:
    with pytest.raises(errors.BadInput, match=f"extra has {name}, which the verb itself writes"):
        body_of("chat", ChatRequest(HELLO, extra={name: 1}), "m")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"type": "image_url", "image_url": "file:///etc/passwd"},
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
        {"type": "audio_url", "audio_url": {"url": "//example.com/a.wav"}},
        {"type": "input_image", "image_url": "http://169.254.169.254/x"},
        {"type": "new_kind", "sources": [{"href": " HTTP://example.com/"}]},
    ],
)
def test_a_remote_url_is_refused_since_the_engine_would_fetch_it(part: dict[str, Any]) -> None:
    with pytest.raises(errors.BadInput, match="isn't fetched; send the bytes as a data: URL"):
        body_of("chat", ChatRequest(({"role": "user", "content": [part]},)), "m")


def test_media_inside_the_message_pass() -> None:
    parts = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]
    _, body = body_of("chat", ChatRequest(({"role": "user", "content": parts},)), "m")
    assert body is not None
    assert body["messages"][0]["content"] == parts


@pytest.mark.parametrize(
    ("verb", "data"),
    [
        ("chat", {}),
        ("chat", {"choices": []}),
        ("chat", []),
        ("chat", {"choices": [{"finish_reason": "stop"}]}),
        ("generate", {"choices": [{"message": {}}]}),
        ("embed", {"data": [{"index": 0, "embedding": ["a"]}]}),
        ("embed", {"data": [{"embedding": [1]}]}),
    ],
)
def test_an_answer_that_is_none_is_a_failed_call(verb: str, data: Any) -> None:
    with pytest.raises(errors.CallFailed, match=f"m answered {verb} with something else than the OpenAI API has"):
        answer_of(verb, data, "m")


def test_embeddings_come_in_the_order_of_their_texts() -> None:
    rows = [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [1, 2]}]
    answer = answer_of("embed", {"data": rows, "usage": {"prompt_tokens": 4, "total_tokens": 4}}, "m")
    assert answer.vectors == ((1.0, 2.0), (3.0, 4.0))
    assert answer.usage.prompt_tokens == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{oops", "streamed what is no JSON"),
        (b'{"error": {"message": "cuda broke"}}', "ended the stream with an error: cuda broke"),
        (b'{"error": "cuda broke"}', "ended the stream with an error: cuda broke"),
    ],
)
def test_an_event_that_is_garbage_or_an_error_is_a_failed_call(line: bytes, said: str) -> None:
    with pytest.raises(errors.CallFailed, match=said):
        parse_event(line, "m")


def test_a_streams_last_piece_carries_reason_and_usage_and_thoughts_are_told_apart() -> None:
    async def events() -> Any:
        for delta in ({"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "yes"}):
            yield {"choices": [{"delta": delta, "finish_reason": None, "logprobs": None}]}
        yield {"choices": [{"delta": {}, "finish_reason": "stop"}]}
        yield {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}

    async def main() -> list[Any]:
        return [chunk async for chunk in chunks_of(events(), "m")]

    thought, text, last = asyncio.run(main())
    assert (thought.reasoning, thought.text) == ("hm", "")
    assert (text.text, text.finish_reason) == ("yes", None)
    assert (last.finish_reason, last.usage.total_tokens) == ("stop", 5)


# --- with a server ----------------------------------------------------------------------------------------------------


class Stage:
    def __init__(self, manager: ModelManager, model: Any) -> None:
        self.manager = manager
        self.model = model

    async def fault(self, name: str, **more: Any) -> None:
        await self.model.request("/stub/fault", {"name": name, **more})

    async def state(self) -> Any:
        return await self.model.request("/stub/state")

    async def pid(self) -> int:
        async with self.manager.lease("a") as lease:
            return int(lease.info["pid"])


def play(folder: Path, main: Callable[[Stage], Coroutine[Any, Any, None]], **keys: Any) -> None:
    command = [sys.executable, str(STUB), "--port", "{port}", "--api-key", "{api_key}", "--ready-after", "0"]
    option = {"model_id": "stub", "framework": "command", "command": command, "vram_gb": 0.2, **keys}
    file = folder / "models.yaml"
    tasks = {"a": {"selected": "a", "options": {"a": option}}}
    file.write_text(json.dumps({"tasks": tasks}), encoding="utf-8")

    async def whole() -> None:
        async with ModelManager(file, machine=StillMachine({"cpu": GIB})) as manager:
            await main(Stage(manager, await manager.get_model("a")))
            seen = manager.statistics()
            assert not any(model.leases for model in seen.models.values())

    asyncio.run(whole())


def test_every_verb_reaches_the_server_and_unknown_fields_go_through(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        answer = await stage.model.chat("hello", extra={"top_k": 7, "chat_template_kwargs": {"thinking": False}})
        assert answer.text == "stub heard: hello"
        got = answer.raw["stub"]["got"]
        assert (got["top_k"], got["chat_template_kwargs"], got["model"]) == (7, {"thinking": False}, "stub")
        assert (await stage.model.generate("go on")).text == "stub heard: go on"
        assert len((await stage.model.embed(["a", "bb"])).vectors) == 2
        assert (await stage.model.request("/v1/models"))["data"][0]["id"] == "stub"
        body = {"messages": list(HELLO), "stream_options": {"include_usage": True}}
        events = [event async for event in stage.model.stream_request("/v1/chat/completions", body)]
        assert events[-1]["usage"]["total_tokens"] > 0
        tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
        called = await stage.model.chat("hello", extra={"tools": tools})
        assert called.finish_reason == "tool_calls"
        assert called.tool_calls[0]["function"]["name"] == "look"
        pieces = [chunk async for chunk in stage.model.stream_chat("hello", extra={"tools": tools})]
        assert [chunk.tool_calls[0]["function"]["name"] for chunk in pieces if chunk.tool_calls] == ["look"]

    play(tmp_path, main)


def test_synchronous_callers_have_the_same_verbs(tmp_path: Path) -> None:
    command = [sys.executable, str(STUB), "--port", "{port}", "--ready-after", "0"]
    option = {"model_id": "stub", "framework": "command", "command": command, "vram_gb": 0.2}
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"tasks": {"a": {"selected": "a", "options": {"a": option}}}}), encoding="utf-8")
    with ModelManager(file, machine=StillMachine({"cpu": GIB})).blocking() as manager:
        model = manager.get_model("a")
        assert model.generate("go on").text == "stub heard: go on"
        assert "".join(chunk.text for chunk in model.stream_chat("hi")) == "stub heard: hi"
        events = list(model.stream_request("/v1/chat/completions", {"messages": list(HELLO)}))
        assert events[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ({"name": "status", "status": 400}, errors.BadInput, "refused /v1/chat/completions with 400"),
        ({"name": "status", "status": 422}, errors.BadInput, "with 422"),
        ({"name": "status", "status": 413}, errors.BadInput, "with 413"),
        ({"name": "status", "status": 404}, errors.UnsupportedVerb, "with 404"),
        ({"name": "status", "status": 429}, errors.CallFailed, "with 429"),
        ({"name": "status", "status": 500}, errors.CallFailed, "with 500"),
        ({"name": "status", "status": 503}, errors.CallFailed, "with 503"),
        ({"name": "garbage"}, errors.CallFailed, "what is no JSON|no event stream"),
        ({"name": "cut"}, errors.CallFailed, "broke the connection off and lives on"),
    ],
)
def test_what_is_wrong_with_a_call_is_told_apart_and_the_engine_serves_on(
    tmp_path: Path, fault: dict[str, Any], error: type[Exception], said: str
) -> None:
    async def main(stage: Stage) -> None:
        pid = await stage.pid()
        await stage.fault(**fault, times=1)
        with pytest.raises(error, match=said):
            await stage.model.chat("hello")
        await stage.fault("none")
        assert (await stage.model.chat("hello")).text == "stub heard: hello"
        assert await stage.pid() == pid

    play(tmp_path, main)


@pytest.mark.slow
def test_a_call_that_broke_before_its_first_byte_is_sent_once_more_and_not_twice(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.fault("cut_stream", after=0, times=1)
        text = "".join([chunk.text async for chunk in stage.model.stream_chat("hello")])
        assert text == "stub heard: hello"
        await stage.fault("cut_stream", after=0, times=2)
        with pytest.raises(errors.CallFailed, match="broke the connection off and lives on"):
            await anext(stage.model.stream_chat("hello"))

    play(tmp_path, main)


@pytest.mark.slow
def test_a_stream_that_is_cut_gives_what_it_has_and_then_an_error(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.fault("cut_stream", after=2, times=1)
        stream = stage.model.stream_chat("one two three four five")
        with pytest.raises(errors.CallFailed, match=r"broke the connection off|ended before the answer did"):
            while True:
                await anext(stream)
        text = "".join([chunk.text async for chunk in stage.model.stream_chat("again")])
        assert text == "stub heard: again"

    play(tmp_path, main)


def test_an_answer_that_never_comes_ends_when_its_caller_does(tmp_path: Path) -> None:
    """The connection is closed, which is what tells an engine to stop."""

    async def main(stage: Stage) -> None:
        await stage.fault("hang", times=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await stage.model.chat("hello")
        for _ in range(100):
            state = await stage.state()
            if state["aborted"] and not state["running"]:
                break
            await asyncio.sleep(0.02)
        assert (state["aborted"], state["running"]) == (1, 0)

    play(tmp_path, main)


def test_a_hundred_streams_at_once_are_all_whole(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async def one(number: int) -> str:
            return "".join([chunk.text async for chunk in stage.model.stream_chat(f"number {number} of many")])

        texts = await asyncio.gather(*[one(number) for number in range(100)])
        assert texts == [f"stub heard: number {number} of many" for number in range(100)]

    play(tmp_path, main)


def test_a_connection_that_idled_too_long_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server closes it just as we send: the call goes out again on a new one."""

    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a") as lease:
            assert lease.resident is not None
            assert lease.resident.model is not None
            session = lease.resident.model.api._session  # type: ignore[attr-defined]
        await stage.model.chat("hello")
        for _, pool in list(session.connector._conns.items()):
            for entry in pool:
                entry[0].transport.get_extra_info("socket").shutdown(2)
        assert (await stage.model.chat("hello")).text == "stub heard: hello"

    play(tmp_path, main)
