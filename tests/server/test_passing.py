"""Requests that an engine answers go through as they are, and what happens to the engine is told in the API's words."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from taskrouter.samples.manifest import MEDIA

from .clients import CHAT, Raw, chat, json_of, status_of
from .serving import Served, serving, written
from .test_streams import seen

pytestmark = pytest.mark.xdist_group("engines")
STUB = Path(__file__).parents[1] / "engines" / "stub.py"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    command = [sys.executable, str(STUB), "--port", "{port}", "--ready-after", "0", "--token-s", "0.02"]
    option = {"framework": "command", "model_id": "stub", "vram_gb": 0.5, "command": command}
    tasks = {"say": {"selected": "it", "options": {"it": option}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        with serving(written(folder, tasks, media={"roots": [str(MEDIA)]})) as server:
            yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def info(served: Served) -> Any:
    (found,) = served.manager.statistics().info.values()
    return found


def fault(served: Served, **told: Any) -> None:
    async def tell() -> None:
        async with served.manager.lease("say") as lease:
            await lease.request("/stub/fault", told)

    served.run(tell())


def test_the_body_goes_through_as_it_is_but_for_the_models_name(client: openai.OpenAI) -> None:
    told: Any = {"top_k": 3, "min_p": 0.1, "nested": {"a": [1, None, "ü"]}}
    answer = client.chat.completions.create(
        model="say/it", messages=[{"role": "user", "content": "hello"}], temperature=0.3, extra_body=told
    )
    assert answer.choices[0].message.content == "stub heard: hello"
    got = answer.model_extra["stub"]["got"]  # type: ignore[index]
    assert got == {"messages": [{"role": "user", "content": "hello"}], "model": "stub", "temperature": 0.3, **told}


def test_pieces_come_as_they_come(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="say", messages=[{"role": "user", "content": "a b c"}], stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == "stub heard: a b c"
    assert chunks[-1].usage is not None


def test_completions_and_embeddings_go_through(client: openai.OpenAI) -> None:
    assert client.completions.create(model="say", prompt="hello").choices[0].text == "stub heard: hello"
    vectors = [each.embedding for each in client.embeddings.create(model="say", input=["a", "b"]).data]
    assert len(vectors) == 2
    assert vectors[0] != vectors[1]


def test_media_are_read_here_and_urls_not_fetched(client: openai.OpenAI) -> None:
    def ask(url: str) -> Any:
        content: Any = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
        return client.chat.completions.create(model="say", messages=[{"role": "user", "content": content}])

    got = ask(str(MEDIA / "red-circle.png")).model_extra["stub"]["got"]["messages"][0]["content"][0]
    assert got["image_url"]["url"].startswith("data:image/png;base64,")
    for url in ("http://169.254.169.254/latest", "file:///etc/passwd", "//example.com/a.png"):
        with pytest.raises(openai.BadRequestError, match="isn't fetched"):
            ask(url)
    with pytest.raises(openai.BadRequestError, match=r"media\.roots"):
        ask("/etc/passwd")


def test_a_sound_whose_base64_begins_like_a_url_goes_through(client: openai.OpenAI) -> None:
    def ask(data: str) -> Any:
        content: Any = [{"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}}]
        return client.chat.completions.create(model="say", messages=[{"role": "user", "content": content}])

    mp3 = base64.b64encode(b"\xff\xfb\x90\x44" + bytes(100)).decode()
    assert mp3.startswith("//")
    assert ask(mp3).model_extra["stub"]["got"]["messages"][0]["content"][0]["input_audio"]["data"] == mp3
    for url in ("http://169.254.169.254/latest", "//example.com/a.mp3", "file:/etc/passwd"):
        with pytest.raises(openai.BadRequestError, match="isn't fetched"):
            ask(url)


def test_no_other_body_hides_what_the_engine_would_fetch(client: openai.OpenAI) -> None:
    """vLLM takes an embedding's body with messages in it for a conversation."""
    picture = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    hidden: dict[str, Any] = {"messages": [{"role": "user", "content": [picture]}], "add_generation_prompt": True}
    tool = {"type": "mcp", "server_url": "http://169.254.169.254/"}
    hello: Any = [{"role": "user", "content": "hello"}]
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    for ask in (
        lambda: client.embeddings.create(model="say", input=["x"], extra_body=hidden),
        lambda: client.completions.create(model="say", prompt="x", extra_body=hidden),
        lambda: client.chat.completions.create(model="say", messages=hello, extra_body={"tools": [tool]}),
        lambda: client.chat.completions.create(model="say", messages=parts, extra_body={"tools": [tool]}),
        lambda: client.chat.completions.create(model="say", messages=hello, stream=True, extra_body={"x": picture}),
    ):
        with pytest.raises(openai.BadRequestError, match="nothing is fetched"):
            ask()
    texts = ["http://example.com", "a"]
    got = client.embeddings.create(model="say", input=texts, user="https://example.com/me").model_extra
    assert got["stub"]["got"]["input"] == texts  # type: ignore[index]


def test_what_the_engine_refuses_is_the_callers_mistake(client: openai.OpenAI, served: Served) -> None:
    fault(served, name="status", status=400, message="no such sampler", times=1)
    with pytest.raises(openai.BadRequestError, match="no such sampler"):
        client.chat.completions.create(model="say", messages=[{"role": "user", "content": "x"}])


def test_nesting_that_nobody_can_write_is_a_bad_request(served: Served) -> None:
    for depth in (300, 100_000):
        with Raw(served.url) as raw:
            deep = (
                b'{"model":"say","messages":[{"role":"user","content":"x"}],"x":' + b"[" * depth + b"]" * depth + b"}"
            )
            raw.ask(CHAT, deep)
            answer = raw.until(b"}}")
            assert status_of(answer) == 400, answer


def test_a_client_that_goes_away_stops_the_engine(served: Served) -> None:
    fault(served, name="hang", times=1)
    with Raw(served.url) as raw:
        raw.ask(CHAT, chat())
        seen(lambda: any(status.leases for status in served.manager.statistics().models.values()))
    seen(lambda: all(status.leases == 0 for status in served.manager.statistics().models.values()))
    with Raw(served.url) as raw:
        raw.ask(CHAT, chat())
        assert status_of(raw.until(b"}}}")) == 200


def test_whoever_stops_reading_a_stream_does_not_hold_its_model(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of 120 kB, of which a few fit between here and there."""
    monkeypatch.setattr(served.manager, "stream_idle_s", 0.2)
    text = " ".join(["w" * 120_000] * 100)
    with Raw(served.url, room=4096) as stalled:
        stalled.ask(CHAT, chat(text=text, stream=True))
        seen(lambda: any(status.leases for status in served.manager.statistics().models.values()))
        seen(lambda: all(status.leases == 0 for status in served.manager.statistics().models.values()))
        with Raw(served.url) as another:
            another.ask(CHAT, chat())
            assert status_of(another.until(b"}}}")) == 200


@pytest.mark.parametrize("stream", [1, "true", 0, [True]])
def test_a_stream_that_is_neither_true_nor_false_is_refused(client: openai.OpenAI, stream: Any) -> None:
    """An engine may take it for true, and answer in events that nobody told the client of."""
    with pytest.raises(openai.BadRequestError, match="stream is"):
        client.chat.completions.create(
            model="say", messages=[{"role": "user", "content": "x"}], extra_body={"stream": stream}
        )
    with pytest.raises(openai.BadRequestError, match="stream is"):
        client.completions.create(model="say", prompt="x", extra_body={"stream": stream})


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_dies_in_its_answer_is_an_error_and_there_for_the_next(served: Served, stream: bool) -> None:
    """Case 17 over HTTP."""
    with Raw(served.url) as raw:
        raw.ask(CHAT, chat())
        raw.until(b"}}}")
    fault(served, name="cut_stream" if stream else "hang", **({"after": 1} if stream else {}), times=1)
    with Raw(served.url) as raw:
        raw.ask(CHAT, chat(text="one two three", stream=stream))
        if not stream:
            seen(lambda: any(status.leases for status in served.manager.statistics().models.values()))
            os.kill(info(served)["pid"], signal.SIGKILL)
        answer = raw.until(b"0\r\n\r\n" if stream else b"}}")
        if stream:
            assert status_of(answer) == 200
            assert b'"error"' in answer
            assert b"[DONE]" not in answer
        else:
            assert status_of(answer) == 502
            body = json_of(answer)["error"]
            assert body["code"] == "model_died"
            assert "log" in body["message"]
            assert ".log" not in body["message"], "no paths"
    seen(lambda: all(status.leases == 0 for status in served.manager.statistics().models.values()))
    request = urllib.request.Request(
        f"{served.url}{CHAT}", json.dumps(chat()).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as again:
        assert json.load(again)["choices"][0]["message"]["content"] == "stub heard: hello"
