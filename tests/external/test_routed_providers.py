"""One task over two real SDKs: the first provider fails in many ways, the second answers or must not be asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.manager import StillMachine
from taskrouter.spend import SpendLedger
from taskrouter.types import GIB
from taskrouter.verbs import Why

from .subjects import SUBJECTS, Subject
from .wire import Reply, Wire, answer, serving

pytestmark = pytest.mark.anyio
ANTHROPIC, OPENAI = (next(each for each in SUBJECTS if each.name == name) for name in ("anthropic", "openai"))


def option(subject: Subject, wire: Wire) -> dict[str, Any]:
    return {
        "model_id": subject.model,
        "framework": "external_api",
        "provider": subject.name,
        "api_endpoint": wire.url + subject.base,
        "requires_api_key": True,
        "api_key_env": "OUR_KEY",
        "max_retries": 0,
        "timeout_s": 10,
        "price": {"input_per_mtok": 1.0, "output_per_mtok": 2.0},
    }


@asynccontextmanager
async def two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[ModelManager, Wire, Wire]]:
    monkeypatch.setenv("OUR_KEY", "test-key-1")
    async with serving() as first, serving() as second:
        options = {"first": option(ANTHROPIC, first), "second": option(OPENAI, second)}
        tasks = {"t": {"kind": "chat", "selected": "first", "fallback": ["second"], "options": options}}
        (folder / "models.yaml").write_text(json.dumps({"tasks": tasks}))
        ledger = SpendLedger(folder / "spend.db")
        machine = StillMachine({"cpu": GIB})
        async with ModelManager(folder / "models.yaml", machine=machine, spend=ledger) as manager:
            yield manager, first, second


def whole(subject: Subject, text: str) -> Reply:
    return answer(subject.text(text))


@pytest.mark.parametrize(
    ("status", "why"),
    [(529, Why.OVERLOADED), (500, Why.OVERLOADED), (401, Why.AUTH), (429, Why.RATE_LIMIT), (404, Why.FAILED)],
)
async def test_the_second_provider_answers_what_the_first_can_not(
    status: int, why: Why, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(tmp_path, monkeypatch) as (manager, first, second):
        first.script(answer(ANTHROPIC.error(status, "not now"), status))
        second.script(whole(OPENAI, "here"))
        found = await (await manager.get_model("t")).chat("hello")
        assert (found.text, found.routed is not None and found.routed.option) == ("here", "second")
        assert found.routed is not None
        assert [each.why for each in found.routed.passed] == [why]
        assert (len(first.requests), len(second.requests)) == (1, 1)
        assert "test-key-1" not in manager.explain("t")


async def test_a_bad_request_is_not_sent_to_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(tmp_path, monkeypatch) as (manager, first, second):
        first.script(answer(ANTHROPIC.error(400, "no such role"), 400))
        with pytest.raises(errors.BadInput, match="no such role"):
            await (await manager.get_model("t")).chat("hello")
        assert second.requests == []


@pytest.mark.parametrize(
    ("text", "why"),
    [("Your credit balance is too low", Why.RATE_LIMIT), ("claude-x is not a multimodal model", Why.UNABLE)],
)
async def test_what_is_a_bad_request_to_the_first_only_is_sent_to_the_second(
    text: str, why: Why, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(tmp_path, monkeypatch) as (manager, first, second):
        first.script(answer(ANTHROPIC.error(400, text), 400))
        second.script(whole(OPENAI, "here"))
        found = await (await manager.get_model("t")).chat("hello")
        assert found.text == "here"
        assert found.routed is not None
        assert [each.why for each in found.routed.passed] == [why]


async def test_a_refusal_is_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two(tmp_path, monkeypatch) as (manager, first, second):
        first.script(answer(ANTHROPIC.refusal("I won't")))
        found = await (await manager.get_model("t")).chat("hello")
        assert found.finish_reason == "content_filter"
        assert second.requests == []


async def test_a_stream_that_is_cut_before_its_first_piece_is_begun_elsewhere_and_after_it_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(tmp_path, monkeypatch) as (manager, first, second):
        first.script(Reply(drop=True))
        second.script(OPENAI.stream(OPENAI.streamed_text(["he", "re"])))
        async with (await manager.get_model("t")).stream_chat("hello") as chunks:
            assert "".join([chunk.text async for chunk in chunks]) == "here"
            assert chunks.routed is not None
            assert chunks.routed.option == "second"
        events = ANTHROPIC.streamed_text(["th", "ere"])
        first.script(ANTHROPIC.cut(events[:3], cut=True))
        text = ""
        with pytest.raises(errors.ProviderFailed):
            async with (await manager.get_model("t")).stream_chat("hello") as chunks:
                async for chunk in chunks:
                    text += chunk.text
        assert text == "th"
        assert len(second.requests) == 1


async def test_what_calls_cost_is_on_disk_once_they_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(tmp_path, monkeypatch) as (manager, first, second):
        for _ in range(3):
            first.script(whole(ANTHROPIC, "here"))
            found = await (await manager.get_model("t")).chat("hello")
            assert found.usage is not None
            another = SpendLedger(tmp_path / "spend.db")
            rows = another.report()
            await another.close()
            tokens = 3 * found.usage.prompt_tokens, 3 * found.usage.completion_tokens
        (row,) = rows
        assert (row.provider, row.task, row.option, row.requests) == ("anthropic", "t", "first", 3)
        assert (row.input_tokens, row.output_tokens) == tokens
        assert row.usd == pytest.approx((row.input_tokens + 2 * row.output_tokens) / 1e6)
        assert second.requests == []


@pytest.mark.parametrize("tokens", ["x", 10**15])
async def test_a_count_that_makes_no_sense_costs_nobody_the_answer(
    tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with two(tmp_path, monkeypatch) as (manager, first, _):
        first.script(answer({**ANTHROPIC.text("here"), "usage": {"input_tokens": 7, "output_tokens": tokens}}))
        assert (await (await manager.get_model("t")).chat("hello")).text == "here"
    assert "what t/first cost can't be counted" in caplog.text


async def test_a_local_model_that_is_not_ready_in_time_leaves_the_answer_to_a_provider_on_a_real_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real clock is a little past the deadline when the refusal comes; a virtual one never is."""
    monkeypatch.setenv("OUR_KEY", "test-key-1")
    async with serving() as wire:
        near = {"model_id": "near", "framework": "fake", "vram_gb": 0.1, "engine_args": {"bytes": "1MiB", "load_s": 60}}
        options = {"near": near, "far": option(ANTHROPIC, wire)}
        task = {"kind": "chat", "selected": "near", "fallback": ["far"], "max_wait_s": 0.2, "options": options}
        (tmp_path / "models.yaml").write_text(json.dumps({"tasks": {"t": task}}))
        machine = StillMachine({"cpu": GIB})
        ledger = SpendLedger(tmp_path / "spend.db")
        async with ModelManager(tmp_path / "models.yaml", machine=machine, spend=ledger) as manager:
            wire.script(whole(ANTHROPIC, "here"), whole(ANTHROPIC, "again"))
            found = await (await manager.get_model("t")).chat("hello")
            assert found.routed is not None
            assert [each.why for each in found.routed.passed] == [Why.NOT_READY]
            assert found.text == "here"


async def test_a_limit_at_one_address_of_a_provider_is_none_at_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``provider: openai`` is any server that speaks its API."""
    monkeypatch.setenv("OUR_KEY", "test-key-1")
    async with serving() as first, serving() as second:
        options = {"first": option(OPENAI, first), "second": option(OPENAI, second)}
        tasks = {"t": {"kind": "chat", "selected": "first", "fallback": ["second"], "options": options}}
        (tmp_path / "models.yaml").write_text(json.dumps({"tasks": tasks}))
        ledger = SpendLedger(tmp_path / "spend.db")
        async with ModelManager(tmp_path / "models.yaml", machine=StillMachine({"cpu": GIB}), spend=ledger) as manager:
            first.script(answer(OPENAI.error(429, "slow down"), 429, {"retry-after": "60"}))
            second.script(whole(OPENAI, "here"), whole(OPENAI, "again"))
            for text in ("here", "again"):
                found = await (await manager.get_model("t")).chat("hello")
                assert found.text == text
                assert found.routed is not None
                assert [each.why for each in found.routed.passed] == [Why.RATE_LIMIT]
            assert len(first.requests) == 1
            await manager.clear_cooldown("t")
            first.script(whole(OPENAI, "first"))
            assert (await (await manager.get_model("t")).chat("hello")).text == "first"
