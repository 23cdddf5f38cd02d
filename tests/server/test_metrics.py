"""``GET /metrics``, read by Prometheus' own parser."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from taskrouter.backends.fake import FakeBackend, FakeScript
from taskrouter.http.asked import Asked
from taskrouter.http.exchange import Exchange
from taskrouter.http.keys import Keys
from taskrouter.http.metrics import SECONDS, Metrics
from taskrouter.http.naming import Named
from taskrouter.http.passing import End, usage_in
from taskrouter.verbs import Usage

from .administering import GIB, ask, call, hang_up, ok, wait_for
from .serving import ADMIN_KEY, API_KEY, Served, keys, serving, written

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(served: Served, key: str | None = API_KEY) -> Series:
    request = urllib.request.Request(f"{served.url}/metrics")
    if key is not None:
        request.add_header("authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples), "a series is there twice"
    return found


def value(series: Series, name: str, **labels: str) -> float:
    """0 for a series that isn't there."""
    return series.get((f"taskrouter_{name}", frozenset(labels.items())), 0.0)


def test_the_books_are_told_device_by_device_and_state_by_state(served: Served) -> None:
    before = scraped(served)
    assert value(before, "device_bytes", device="cpu", state="capacity") == 8 * GIB
    assert value(before, "device_bytes", device="cpu", state="charged") == 0
    assert ask(served)[0] == 200
    after = scraped(served)
    assert value(after, "device_bytes", device="cpu", state="charged") == GIB
    assert value(after, "device_bytes", device="cpu", state="free") == 7 * GIB
    states = {dict(labels)["state"] for name, labels in after if name == "taskrouter_device_bytes"}
    assert states == {"capacity", "charged", "promised", "residue", "foreign", "overhead", "free"}
    assert (value(after, "models", state="ready"), value(after, "models", state="disk")) == (1, 4)
    assert (value(after, "healthy"), value(after, "draining"), value(after, "queue_depth")) == (1, 0, 0)
    ok(served, "/admin/drain", {"draining": True})
    assert value(scraped(served), "draining") == 1


def test_who_waits_is_told_with_the_oldest_age(file: Path) -> None:
    backend = FakeBackend({"it": FakeScript(hang="load", bytes=GIB)})
    with serving(file, keys(), fake=backend) as served:
        _, found, _ = call(served, "/admin/tasks/write/load", {"timeout_s": 60})
        oldest = 0.0
        while not oldest:
            series = scraped(served)
            oldest = value(series, "queue_oldest_seconds")
        assert value(series, "queue_depth") == 1
        assert value(series, "models", state="loading") == 1
        served.loop.call_soon_threadsafe(backend.resume, "it")
        while ok(served, f"/admin/operations/{found['operation']}")["state"] == "loading":
            pass
        assert value(scraped(served), "queue_depth") == 0


def test_loads_evictions_failures_and_refusals_are_counted_by_reason(served: Served) -> None:
    assert ask(served)[0] == 200
    assert ask(served, "say/two")[0] == 200
    ok(served, "/admin/tasks/write/load", {"wait": True})
    assert ask(served, "huge")[0] == 507
    assert ask(served, "bad")[0] == 502
    ok(served, "/admin/tasks/write/unload", {})
    found = scraped(served)
    assert value(found, "loads_total", model="one", reason="request") == 1
    assert value(found, "evictions_total", model="two", reason="room_needed") == 1
    assert value(found, "unloads_total", model="two", reason="room_needed") == 1
    assert value(found, "unloads_total", model="it", reason="unloaded_by_request") == 1
    assert value(found, "evictions_total", model="it", reason="unloaded_by_request") == 0
    assert value(found, "load_failures_total", model="broken", reason="load_failed") == 1
    assert value(found, "refusals_total", reason="too_large") == 1
    assert value(found, "load_seconds_count", model="one") == 1
    assert value(found, "load_seconds_bucket", model="one", le="+Inf") == 1


def test_deaths_are_counted(file: Path) -> None:
    backend = FakeBackend({})
    with serving(file, keys(), fake=backend) as served:
        assert ask(served)[0] == 200
        served.loop.call_soon_threadsafe(backend.kill, "one")
        while not value(scraped(served), "deaths_total", model="one"):
            pass
        assert ask(served)[0] == 200
        assert value(scraped(served), "loads_total", model="one", reason="request") == 2


def test_requests_are_counted_by_task_option_and_status_with_tokens_and_seconds(served: Served) -> None:
    tokens_in = tokens_out = 0
    for model in ("say", "say/one"):
        status, found, _ = ask(served, model)
        assert status == 200
        tokens_in += found["usage"]["prompt_tokens"]
        tokens_out += found["usage"]["completion_tokens"]
    body = {"model": "say", "messages": [{"role": "user", "content": "hi"}], "max_tokens": -1}
    assert call(served, "/v1/chat/completions", body, key=API_KEY)[0] == 400
    assert ask(served, "huge")[0] == 507
    found = scraped(served)
    assert value(found, "requests_total", task="say", option="one", status="2xx") == 2
    assert value(found, "requests_total", task="say", option="one", status="4xx") == 1
    assert value(found, "requests_total", task="huge", option="giant", status="5xx") == 1
    assert value(found, "request_seconds_count", task="say", option="one") == 3
    assert 0 < value(found, "request_seconds_sum", task="say", option="one") < 30
    assert value(found, "tokens_total", task="say", option="one", direction="in") == tokens_in > 0
    assert value(found, "tokens_total", task="say", option="one", direction="out") == tokens_out > 0
    assert value(found, "first_token_seconds_count", task="say", option="one") == 0


def test_the_first_token_of_a_stream_is_timed(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=API_KEY, max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "hello there"}]
        list(client.chat.completions.create(model="say", messages=messages, stream=True))
    found = scraped(served)
    assert value(found, "first_token_seconds_count", task="say", option="one") == 1
    first = value(found, "first_token_seconds_sum", task="say", option="one")
    assert 0 < first <= value(found, "request_seconds_sum", task="say", option="one")
    assert value(found, "tokens_total", task="say", option="one", direction="out") > 0


def test_what_is_passed_through_from_an_engine_is_counted_just_so(tmp_path: Path) -> None:
    words = ["--port", "{port}", "--model", "{model_id}", "--api-key", "{api_key}", "--ready-after", "0.1"]
    command = [sys.executable, str(Path(__file__).parents[1] / "engines" / "stub.py"), *words]
    option = {"model_id": "stub", "framework": "command", "command": command, "vram_gb": 1}
    tasks = {"talk": {"kind": "chat", "selected": "stub", "options": {"stub": option}}}
    messages: Any = [{"role": "user", "content": "hello there"}]
    with (
        serving(written(tmp_path, tasks), keys()) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key=API_KEY, max_retries=0) as client,
    ):
        usage = client.chat.completions.create(model="talk", messages=messages).usage
        assert usage is not None
        for told in (True, False):
            list(client.chat.completions.create(
                model="talk", messages=messages, stream=True, stream_options={"include_usage": told}
            ))  # fmt: skip
        found = scraped(served)
    names = {"task": "talk", "option": "stub"}
    assert value(found, "requests_total", **names, status="2xx") == 3
    assert value(found, "first_token_seconds_count", **names) == 2
    # An engine that wasn't asked for its tokens says nothing of them.
    assert value(found, "tokens_total", **names, direction="in") == 2 * usage.prompt_tokens > 0
    assert value(found, "tokens_total", **names, direction="out") == 2 * usage.completion_tokens > 0


def test_names_that_are_not_in_the_file_are_no_labels(served: Served) -> None:
    for number in range(20):
        assert ask(served, f"nobody-{number}")[0] == 404
        assert ask(served, f"say/nothing-{number}")[0] == 404
        assert call(served, f"/nowhere-{number}")[0] == 404
        assert call(served, f"/admin/tasks/nobody-{number}/explain")[0] == 404
        assert call(served, "/v1/models", key=f"not-a-key-of-anybody-{number}")[0] == 401
    found = scraped(served)
    labels = {text for _, pairs in found for _, text in pairs}
    assert not [text for text in labels if "no" in text and text[-1].isdigit()]
    assert value(found, "requests_total", task="", option="", status="4xx") == 80
    assert {dict(pairs)["task"] for name, pairs in found if name.startswith("taskrouter_request")} == {""}


def test_a_client_that_leaves_is_counted_as_gone(file: Path) -> None:
    backend = FakeBackend({"one": FakeScript(hang="call")})
    with serving(file, keys(), fake=backend) as served:
        body = {"model": "say", "messages": [{"role": "user", "content": "hi"}]}
        leaves = hang_up(served, "/v1/chat/completions", body, key=API_KEY)
        wait_for(lambda: "call-start" in {what for what, _ in backend.events})
        leaves.close()
        wait_for(lambda: bool(value(scraped(served), "requests_total", task="say", option="one", status="gone")))


def test_metrics_want_a_key_where_there_are_any(file: Path, tmp_path: Path) -> None:
    held = tmp_path / "keys.yaml"
    held.write_text(json.dumps([{"name": "some", "key": "a-key-for-say-only", "tasks": ["say"]}]))
    with serving(file, keys(file=held)) as served:
        assert scraped(served, API_KEY)
        assert scraped(served, ADMIN_KEY)
        for key, status in ((None, 401), ("a-key-of-nobody-here", 401), ("a-key-for-say-only", 403)):
            assert call(served, "/metrics", key=key)[0] == status
    with serving(file, keys({"TASKROUTER_ADMIN_KEY": ADMIN_KEY})) as served:
        assert scraped(served, ADMIN_KEY)
        assert call(served, "/metrics", key=None)[0] == 401
    with serving(file, Keys()) as served:
        assert scraped(served, None)


@pytest.mark.parametrize(
    ("data", "usage"),
    [
        (b'{"choices": [], "usage": {"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3}}', (7, 3)),
        (b'data: {"usage":{"completion_tokens":3,"prompt_tokens":7,"prompt_tokens_details":{"x":1}}}', (7, 3)),
        (b'{"usage": {"prompt_tokens": 5}}', (5, 0)),
        (b'{"usage": null}', None),
        (b'{"text": "say \\"usage\\": {\\"prompt_tokens\\": 9}"}', None),
        (b"", None),
    ],
)
def test_an_engines_tokens_are_found_in_its_bytes(data: bytes, usage: tuple[int, int] | None) -> None:
    assert usage_in(data) == (None if usage is None else Usage(*usage))


def test_tokens_are_found_wherever_the_pieces_of_a_stream_end() -> None:
    last = b'data: {"choices":[],"usage":{"prompt_tokens":17,"total_tokens":20,"completion_tokens":3}}\n\n'
    whole = b'data: {"choices":[{"delta":{"content":"' + b"word " * 2000 + b'"}}]}\n\n' + last + b"data: [DONE]\n\n"
    for place in range(len(whole) - len(last) - 20, len(whole)):
        end = End()
        for piece in (whole[:5000], whole[5000:place], whole[place:]):
            end.take(piece)
        assert usage_in(end.data) == Usage(17, 3), whole[:place][-20:]
        assert len(end.data) < 5000


def test_requests_are_counted_by_how_they_ended(served: Served) -> None:
    exchange = Exchange({"headers": [], "path": "/", "method": "POST"}, None, None)  # type: ignore[arg-type]
    exchange.status = 200

    async def asked() -> Asked:
        found = Asked(served.manager, Named("say", None), served.manager.target("say"), None, None)
        found.usage = Usage(10, 20)
        found.first_at = found.begun
        return found

    exchange.asked = served.run(asked())
    metrics = Metrics()
    for _ in range(3):
        metrics.count(exchange, 0.1)
    exchange.status = 503
    metrics.count(exchange, 0.1)
    exchange.gone = True
    metrics.count(exchange, 0.1)
    exchange.asked = None
    metrics.count(exchange, 0.1)
    assert sorted(metrics.requests()) == [
        ("", "", "gone", 1), ("say", "one", "2xx", 3), ("say", "one", "5xx", 1), ("say", "one", "gone", 1),
    ]  # fmt: skip
    assert metrics.answers["say", "one"].seconds.counts[SECONDS.index(0.1)] == 5
