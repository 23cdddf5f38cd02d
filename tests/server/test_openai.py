"""The OpenAI API, by the ``openai`` SDK over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from .serving import API_KEY, Served, keys, serving, written

TASKS: dict[str, Any] = {
    "say": {
        "kind": "chat",
        "selected": "parrot",
        "options": {
            "parrot": {"framework": "fake", "model_id": "p", "vram_gb": 1},
            "giant": {"framework": "fake", "model_id": "g", "vram_gb": 100},
            "plain": {"framework": "fake", "model_id": "t", "vram_gb": 1, "engine_args": {"lacks": ["extra", "tools"]}},
        },
    },
    "write": {
        "selected": "it",
        "options": {"it": {"framework": "fake", "model_id": "w", "vram_gb": 1, "max_concurrency": 1}},
    },
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = written(tmp_path_factory.mktemp("served"), TASKS, default_task="say")
    with serving(file, keys()) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=API_KEY, max_retries=0) as found:
        yield found


def ask(client: openai.OpenAI, model: str = "say", text: str = "hello there", **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)


def test_tasks_and_their_options_are_models(client: openai.OpenAI) -> None:
    names = ["say", "say/parrot", "say/giant", "say/plain", "write", "write/it"]
    assert [each.id for each in client.models.list()] == names
    assert client.models.retrieve("say/parrot").id == "say/parrot"
    with pytest.raises(openai.NotFoundError, match="there is no task 'nobody'"):
        client.models.retrieve("nobody")


@pytest.mark.parametrize("model", ["say", "say/parrot", "default"])
def test_a_chat_is_answered(client: openai.OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=[{"role": "user", "content": "hello"}])
    answer = raw.parse()
    assert answer.choices[0].message.content == "parrot: hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == ("say" if model == "default" else model)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert raw.headers["x-taskrouter-option"] == "parrot"
    assert raw.headers["x-taskrouter-reason"] == ("named" if model == "say/parrot" else "selected")
    assert 0 <= float(raw.headers["x-taskrouter-waited"]) < 30


def test_a_chat_comes_in_pieces(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == "parrot: hello there"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [each.choices[0].finish_reason for each in chunks if each.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens > 0
    assert all(each.usage is None for each in list(ask(client, stream=True)))


def test_errors_are_the_sdks_own(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no task 'nobody'"):
        ask(client, "nobody")
    with pytest.raises(openai.NotFoundError, match="nothing"):
        ask(client, "say/nothing")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        ask(client, max_tokens=-1)
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, "say/giant")
    assert caught.value.status_code == 507
    with pytest.raises(openai.BadRequestError, match="of kind chat, which can't embed"):
        client.embeddings.create(model="say", input="x")
    other = openai.OpenAI(base_url=f"{served.url}/v1", api_key="not-the-key", max_retries=0)
    with other, pytest.raises(openai.AuthenticationError):
        ask(other)
    assert ask(client).choices[0].message.content == "parrot: hello there"


def test_a_timeout_of_the_callers_own_is_held(client: openai.OpenAI, served: Served) -> None:
    async def held() -> Any:
        lease = served.manager.lease("write")
        await lease.__aenter__()
        return lease

    lease = served.run(held())
    try:
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="write", prompt="x", extra_headers={"x-taskrouter-timeout": "0.05"})
        assert caught.value.status_code == 503
    finally:
        served.run(lease.__aexit__(None, None, None))
    for text in ("soon", "-1", "nan", "inf"):
        with pytest.raises(openai.BadRequestError, match="x-taskrouter-timeout"):
            ask(client, extra_headers={"x-taskrouter-timeout": text})
    assert ask(client, extra_headers={"x-taskrouter-timeout": "1e12"}).choices  # as the library's own timeout may be


@pytest.mark.parametrize(
    "more",
    [
        {"presence_penalty": 0.0, "frequency_penalty": 0.0, "n": 1.0},
        {"logprobs": False, "top_logprobs": 0, "logit_bias": {}},
        {"response_format": {"type": "text"}, "modalities": ["text"]},
        {"tool_choice": "auto", "parallel_tool_calls": False},
        {"tool_choice": "none", "tools": []},
    ],
)
def test_fields_that_ask_for_nothing_are_asked_of_no_model(client: openai.OpenAI, more: dict[str, Any]) -> None:
    assert ask(client, "say/plain", extra_body=more).choices[0].message.content == "plain: hello there"


@pytest.mark.parametrize(
    ("more", "said", "param"),
    [
        ({"n": 2}, "takes no n: ", "n"),
        ({"n": True}, "takes no n: ", "n"),
        ({"logprobs": 0}, "takes no logprobs: ", "logprobs"),
        ({"tool_choice": "required"}, "takes no tool_choice: ", "tool_choice"),
        ({"n": 2, "seeds": [1], "presence_penalty": 0}, "takes no n, seeds: ", None),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, "takes no tools, tool_choice: ", None),
    ],
)
def test_fields_that_a_model_does_not_know_are_named(
    client: openai.OpenAI, more: dict[str, Any], said: str, param: str | None
) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match=said) as caught:
        ask(client, "say/plain", extra_body=more)
    assert caught.value.param == param
