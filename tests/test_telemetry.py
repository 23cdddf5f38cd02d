"""What the spans are called, what they say and how they hang together."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span, StatusCode, Tracer

from taskrouter import telemetry
from taskrouter.errors import BadInput, CallFailed, InsufficientMemory, OutOfMemory

OTEL = Path(__file__).parents[1] / "otel"


class Recorder:
    """A provider of the test's own, and what it recorded."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer: Tracer = telemetry.tracer(self.provider)

    def named(self, name: str) -> ReadableSpan:
        found = [span for span in self.exporter.get_finished_spans() if span.name == name]
        assert len(found) == 1, f"{len(found)} spans named {name}"
        return found[0]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(autouse=True)
def nobody_touches_the_global_provider() -> Iterator[None]:
    before = trace.get_tracer_provider()
    yield
    assert trace.get_tracer_provider() is before


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def id_of(span: ReadableSpan | Span) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def links_of(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


# --- names and attributes ---------------------------------------------------------------------------------------------


def test_spans_have_the_names_and_keys_that_dashboards_rely_on(recorder: Recorder) -> None:
    span = telemetry.start_wait_span(
        recorder.tracer, task="chat", option="small", model="qwen#1", framework="fake", bytes_needed=7
    )
    telemetry.end_span(span, waited_s=1.5, generation=2, reason="deadline")
    load = telemetry.start_load_span(
        recorder.tracer, None, device=("cuda:0", "cuda:1"), reason="request", bytes_needed=7
    )
    telemetry.end_span(load, bytes_measured=6)
    evict = telemetry.start_evict_span(
        recorder.tracer, None, wanted="qwen#1", victims=["a", "b"], victims_considered=3, device="cpu"
    )
    unload = telemetry.start_unload_span(recorder.tracer, telemetry.context_of(evict), model="a")
    telemetry.end_span(unload, bytes_freed=5, bytes_residue=0)
    telemetry.end_span(evict)

    assert {span.name: dict(span.attributes or {}) for span in recorder.exporter.get_finished_spans()} == {
        "get_model": {
            "taskrouter.task": "chat",
            "taskrouter.option": "small",
            "taskrouter.model": "qwen#1",
            "taskrouter.framework": "fake",
            "taskrouter.bytes.needed": 7,
            "taskrouter.waited_s": 1.5,
            "taskrouter.generation": 2,
            "taskrouter.reason": "deadline",
        },
        "load_model": {
            "taskrouter.device": "cuda:0,cuda:1",
            "taskrouter.reason": "request",
            "taskrouter.bytes.needed": 7,
            "taskrouter.bytes.measured": 6,
        },
        "unload_model": {"taskrouter.model": "a", "taskrouter.bytes.freed": 5, "taskrouter.bytes.residue": 0},
        "evict_lru_model": {
            "taskrouter.wanted": "qwen#1",
            "taskrouter.victims": ("a", "b"),
            "taskrouter.victims.considered": 3,
            "taskrouter.device": "cpu",
        },
    }
    for finished in recorder.exporter.get_finished_spans():
        assert finished.instrumentation_scope is not None
        assert finished.instrumentation_scope.name == "taskrouter"
        assert finished.status.status_code is StatusCode.UNSET


def test_every_fact_has_a_key_and_every_key_a_fact() -> None:
    assert set(telemetry.Facts.__annotations__) == set(telemetry.KEYS)
    assert len(set(telemetry.KEYS.values())) == len(telemetry.KEYS)
    assert all(key.startswith("taskrouter.") for key in telemetry.KEYS.values())


def test_what_is_not_known_is_left_out() -> None:
    assert telemetry.attributes(task="t", option=None, bytes_freed=0) == {
        "taskrouter.task": "t",
        "taskrouter.bytes.freed": 0,
    }


def test_a_wait_may_have_begun_before_its_span_was_opened(recorder: Recorder) -> None:
    telemetry.end_span(telemetry.start_wait_span(recorder.tracer, start_ns=1234))
    assert recorder.named("get_model").start_time == 1234


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_is_recorded_with_its_type_and_message(recorder: Recorder) -> None:
    span = telemetry.start_load_span(recorder.tracer, None)
    telemetry.end_span(span, OutOfMemory("qwen ran out of memory"), reason="out_of_memory")
    done = recorder.named("load_model")
    assert done.status.status_code is StatusCode.ERROR
    assert done.status.description == "OutOfMemory: qwen ran out of memory"
    assert (done.attributes or {})["error.type"] == "OutOfMemory"
    (event,) = done.events
    assert event.name == "exception"
    assert (event.attributes or {})["exception.message"] == "qwen ran out of memory"


@pytest.mark.parametrize("kind", [BadInput, CallFailed])
def test_what_was_asked_never_reaches_a_span_through_an_error(recorder: Recorder, kind: type[Exception]) -> None:
    span = telemetry.start_wait_span(recorder.tracer)
    try:
        raise kind("can't tokenize 'my secret question'") from ValueError("my secret question")
    except kind as error:
        telemetry.end_span(span, error)
    done = recorder.named("get_model")
    assert "secret" not in done.to_json()
    assert done.status.status_code is StatusCode.ERROR
    assert (done.attributes or {})["error.type"] == kind.__name__


def test_a_caller_that_went_away_is_no_failure(recorder: Recorder) -> None:
    telemetry.end_span(telemetry.start_wait_span(recorder.tracer), asyncio.CancelledError())
    done = recorder.named("get_model")
    assert done.status.status_code is StatusCode.UNSET
    assert [event.name for event in done.events] == ["gave_up"]


def test_ending_a_span_twice_keeps_its_first_end(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    span = telemetry.start_wait_span(recorder.tracer)
    telemetry.end_span(span, waited_s=1.0)
    telemetry.end_span(span, InsufficientMemory("late"), waited_s=2.0)
    assert (recorder.named("get_model").attributes or {})["taskrouter.waited_s"] == 1.0
    assert recorder.named("get_model").status.status_code is StatusCode.UNSET
    assert caplog.records == []


# --- parents and links ------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_one_trace_ties_a_request_to_the_eviction_and_the_load_it_caused(recorder: Recorder) -> None:
    tracer = recorder.tracer
    wanted: asyncio.Queue[Span] = asyncio.Queue()

    async def supervisor() -> None:
        first, second = await wanted.get(), await wanted.get()
        assert not trace.get_current_span().get_span_context().is_valid
        request = telemetry.context_of(first)
        evict = telemetry.start_evict_span(tracer, request, wanted="b")
        telemetry.end_span(telemetry.start_unload_span(tracer, telemetry.context_of(evict), model="a"))
        telemetry.end_span(evict)
        load = telemetry.start_load_span(tracer, request, [second], model="b")
        third = await wanted.get()
        telemetry.link(third, load)
        telemetry.end_span(load)

    async def caller(name: str) -> None:
        with tracer.start_as_current_span(name):
            span = telemetry.start_wait_span(tracer, task="t")
            wanted.put_nowait(span)
            await working
            telemetry.end_span(span)

    working = asyncio.get_running_loop().create_task(supervisor(), context=contextvars.Context())
    await asyncio.gather(*(caller(f"request {number}") for number in (1, 2, 3)))

    spans = {span.name: span for span in recorder.exporter.get_finished_spans()}
    waits = {parent_of(span): span for span in recorder.exporter.get_finished_spans() if span.name == "get_model"}
    first, second, third = (waits[id_of(spans[f"request {number}"])] for number in (1, 2, 3))
    load, evict, unload = spans["load_model"], spans["evict_lru_model"], spans["unload_model"]

    assert parent_of(load) == parent_of(evict) == id_of(first)
    assert parent_of(unload) == id_of(evict)
    assert first.context is not None
    assert {span.context.trace_id for span in (spans["request 1"], load, evict, unload) if span.context} == {
        first.context.trace_id
    }
    assert links_of(load) == [id_of(second), id_of(third)]
    assert links_of(third) == [id_of(load)]
    assert links_of(first) == []
    assert second.context is not None
    assert second.context.trace_id != first.context.trace_id


def test_work_that_nobody_asked_for_begins_a_trace_of_its_own(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("somebody else"):
        telemetry.end_span(telemetry.start_load_span(recorder.tracer, None, reason="warmup"))
        telemetry.end_span(telemetry.start_unload_span(recorder.tracer, None, reason="keep_alive_passed"))
    assert recorder.named("load_model").parent is None
    assert recorder.named("unload_model").parent is None


def test_the_callers_baggage_goes_along(recorder: Recorder) -> None:
    span = telemetry.start_wait_span(recorder.tracer)
    context = telemetry.context_of(span, baggage.set_baggage("tenant", "blue"))
    assert baggage.get_baggage("tenant", context) == "blue"
    assert trace.get_current_span(context) is span
    assert baggage.get_baggage("tenant", telemetry.context_of(span)) is None


# --- the resident call ------------------------------------------------------------------------------------------------


def test_a_resident_call_annotates_the_callers_span_and_opens_none(recorder: Recorder) -> None:
    with recorder.tracer.start_as_current_span("request"):
        telemetry.annotate_current(telemetry.attributes(task="t", model="m"), generation=3)
        telemetry.annotate_current(option="o")
    (done,) = recorder.exporter.get_finished_spans()
    assert dict(done.attributes or {}) == {
        "taskrouter.task": "t",
        "taskrouter.model": "m",
        "taskrouter.generation": 3,
        "taskrouter.option": "o",
    }


def test_without_a_provider_everything_works_and_nothing_is_recorded() -> None:
    nowhere = telemetry.tracer(trace.NoOpTracerProvider())
    wait = telemetry.start_wait_span(nowhere, task="t")
    load = telemetry.start_load_span(nowhere, telemetry.context_of(wait), [wait])
    telemetry.link(wait, load)
    telemetry.annotate_current(task="t")
    telemetry.end_span(load, OutOfMemory("x"))
    telemetry.end_span(wait)
    assert not wait.is_recording()
    assert not load.get_span_context().is_valid


def test_importing_it_brings_no_sdk_and_no_exporter() -> None:
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, taskrouter.telemetry as t; t.tracer(); "
            "heavy = ('opentelemetry.sdk', 'opentelemetry.exporter', 'requests'); "
            "print([name for name in sys.modules if name.startswith(heavy)])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"
