"""One trace ties a request to the eviction and the load it caused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from taskrouter import errors
from taskrouter.types import GIB

from .stage import Stage, play, settle, spawn

TWO = {"a": {"vram_gb": 8}, "b": {"vram_gb": 8, "load_s": 3}}


def known(span: ReadableSpan) -> dict[str, object]:
    return {key.removeprefix("taskrouter."): value for key, value in (span.attributes or {}).items()}


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def test_a_request_its_eviction_and_its_load_are_one_trace(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a"):
            pass
        stage.exporter.clear()
        with stage.tracer.start_as_current_span("request"):
            async with stage.manager.lease("b"):
                pass
        (request,), (waiting,) = stage.spans("request"), stage.spans("get_model")
        (evicting,), (unloading,) = stage.spans("evict_lru_model"), stage.spans("unload_model")
        (loading,) = stage.spans("load_model")
        assert parent(waiting) == ids(request)
        assert parent(evicting) == parent(loading) == ids(waiting)
        assert parent(unloading) == ids(evicting)
        assert {ids(span)[0] for span in stage.exporter.get_finished_spans()} == {ids(request)[0]}
        a, b = (known(unloading)["model"], known(loading)["model"])
        assert known(waiting) == {
            "task": "b",
            "option": "b",
            "model": b,
            "framework": "fake",
            "waited_s": pytest.approx(3),
        }
        assert known(evicting) == {
            "task": "b",
            "wanted": b,
            "victims": (a,),
            "victims.considered": 1,
            "reason": "room_needed",
        }
        assert known(unloading) == {
            "task": "b",
            "option": "a",
            "model": a,
            "framework": "fake",
            "device": "cuda:0",
            "generation": 1,
            "reason": "room_needed",
            "wanted": b,
            "bytes.freed": 8 * GIB,
            "bytes.residue": 0,
        }
        assert known(loading) == {
            "task": "b",
            "option": "b",
            "model": b,
            "framework": "fake",
            "device": "cuda:0",
            "generation": 1,
            "reason": "request",
            "bytes.needed": 8 * GIB,
            "bytes.measured": 8 * GIB,
        }
        assert all(span.status.status_code is StatusCode.UNSET for span in stage.exporter.get_finished_spans())

    play(Stage(tmp_path, TWO, memory={"claim_s": 0}), main)


def test_others_that_wait_for_the_same_load_are_linked_to_it(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        early = [spawn(stage.manager.get_model("b")) for _ in range(2)]
        await asyncio.sleep(1)
        late = spawn(stage.manager.get_model("b"))
        await asyncio.gather(*early, late)
        (loading,) = stage.spans("load_model")
        first, *others = sorted(stage.spans("get_model"), key=lambda span: span.start_time or 0)
        assert parent(loading) == ids(first)
        linked = {(link.context.trace_id, link.context.span_id) for link in loading.links}
        assert linked == {ids(span) for span in others}
        back = others[-1].links
        assert [(link.context.trace_id, link.context.span_id) for link in back] == [ids(loading)]

    play(Stage(tmp_path, TWO), main)


def test_a_call_to_a_resident_model_opens_no_span_and_annotates_the_callers(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        stage.exporter.clear()
        with stage.tracer.start_as_current_span("request"):
            await model.chat("hello")
        (request,) = stage.exporter.get_finished_spans()
        assert {key: known(request)[key] for key in ("task", "option", "framework")} == {
            "task": "a",
            "option": "a",
            "framework": "fake",
        }
        stage.exporter.clear()
        with stage.tracer.start_as_current_span("request"):
            async with stage.manager.lease("a"):
                pass
        (request,) = stage.exporter.get_finished_spans()
        assert known(request)["task"] == "a"

    play(Stage(tmp_path, TWO), main)


def test_a_load_that_fails_is_recorded_with_its_error(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(errors.LoadFailed):
            await stage.manager.get_model("a")
        for name in ("load_model", "get_model"):
            (span,) = stage.spans(name)
            assert span.status.status_code is StatusCode.ERROR
            assert known(span)["error.type"] == "LoadFailed"
            (event,) = span.events
            assert event.name == "exception"
            assert "scripted to fail" in str((event.attributes or {})["exception.message"])

    play(Stage(tmp_path, {"a": {"fail": "error"}}), main)


def test_a_refusal_before_any_load_is_recorded_too(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(errors.InsufficientMemory):
            await stage.manager.get_model("a")
        (span,) = stage.exporter.get_finished_spans()
        assert span.name == "get_model"
        assert known(span)["error.type"] == "InsufficientMemory"

    play(Stage(tmp_path, {"a": {"vram_gb": 99}}), main)


def test_a_caller_that_gave_up_is_no_error(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        waiting = spawn(stage.manager.get_model("b"))
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.wait([waiting])
        await settle()
        (span,) = stage.spans("get_model")
        assert [event.name for event in span.events] == ["gave_up"]
        assert span.status.status_code is StatusCode.UNSET
        assert known(span)["waited_s"] == pytest.approx(1)
        assert len(stage.spans("load_model")) == 1

    play(Stage(tmp_path, TWO), main)


def test_an_unload_by_request_belongs_to_who_asked(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        with stage.tracer.start_as_current_span("operator"):
            await stage.manager.unload_model("a")
        (operator,), (unloading,) = stage.spans("operator"), stage.spans("unload_model")
        assert parent(unloading) == ids(operator)
        assert known(unloading)["reason"] == "unloaded_by_request"
        await stage.manager.get_model("a")
        stage.exporter.clear()
        with stage.tracer.start_as_current_span("operator"):
            assert await stage.manager.evict_lru_model() == "a"
        (operator,), (evicting,) = stage.spans("operator"), stage.spans("evict_lru_model")
        (unloading,) = stage.spans("unload_model")
        assert parent(evicting) == ids(operator)
        assert parent(unloading) == ids(evicting)

    play(Stage(tmp_path, TWO), main)


def test_an_unload_of_nothing_lends_its_trace_to_no_later_unload(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        with stage.tracer.start_as_current_span("operator"):
            await stage.manager.unload_model("a")
        await stage.manager.get_model("a")
        await asyncio.sleep(31)
        (unloading,) = stage.spans("unload_model")
        assert parent(unloading) is None
        assert known(unloading)["reason"] == "keep_alive_passed"

    play(Stage(tmp_path, {"a": {"keep_alive_s": 20}}, memory={"claim_s": 0}), main)


def test_work_that_was_not_asked_for_belongs_to_no_request(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        with stage.tracer.start_as_current_span("request"):
            await stage.manager.get_model("a")
        stage.others_use(5)
        await asyncio.sleep(8)
        (unloading,) = stage.spans("unload_model")
        assert parent(unloading) is None
        assert known(unloading)["reason"] == "device_shrank"

    play(Stage(tmp_path, TWO), main)


def test_no_prompt_and_no_answer_stands_in_a_trace(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        with stage.tracer.start_as_current_span("request"):
            model = await stage.manager.get_model("a")
            await model.chat("the password is swordfish")
            with pytest.raises(errors.BadInput):
                await model.chat("swordfish", stop=[""])
            async for _ in model.stream_chat("swordfish"):
                pass
        text = " ".join(span.to_json() for span in stage.exporter.get_finished_spans())
        assert "swordfish" not in text
        assert "tuna" not in text

    play(Stage(tmp_path, {"a": {"answer": "tuna"}}), main)
