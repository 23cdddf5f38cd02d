"""Which requests become spans where there are more of them than anybody wants to pay for."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from taskrouter import telemetry
from taskrouter.http import serving as serves
from taskrouter.http import tracing
from taskrouter.http.keys import Keys
from taskrouter.http.tracing import Tracing
from taskrouter.manager import ModelManager

from .administering import shared
from .clients import CHAT, Raw, chat
from .serving import API_KEY, keys, serving, written

SENT = {b"traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, {"say": {"selected": "it", "options": {"it": {"framework": "fake", "model_id": "m"}}}})


def wanted(tracing: Tracing, times: int, headers: dict[bytes, bytes] | None = None) -> int:
    return sum(tracing.wants(headers or {}) for _ in range(times))


def test_the_first_of_each_second_and_whoever_traces_already(file: Path) -> None:
    clock = Clock()
    traced = Tracing(ModelManager(file, tracer_provider=TracerProvider(shutdown_on_exit=False)), 3, clock)
    assert wanted(traced, 10) == 3
    assert wanted(traced, 10, SENT) == 10, "the client has decided"
    clock.now = 0.99
    assert wanted(traced, 10) == 0
    clock.now = 1.0
    assert wanted(traced, 10) == 3


def test_all_where_nobody_bounds_them(file: Path) -> None:
    traced = Tracing(ModelManager(file, tracer_provider=TracerProvider(shutdown_on_exit=False)))
    assert wanted(traced, 1000) == 1000


def test_none_where_nobody_looks_until_somebody_does(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = Clock(), [False]
    monkeypatch.setattr(telemetry, "is_set_up", lambda: looks[0])
    traced = Tracing(ModelManager(file), clock=clock)
    assert wanted(traced, 3, SENT) == 0
    looks[0] = True
    clock.now = 0.5
    assert wanted(traced, 3) == 0, "it is looked once a second"
    clock.now = 1.0
    assert wanted(traced, 3) == 3


@pytest.mark.anyio
@pytest.mark.parametrize(("sampler", "bound"), [(None, tracing.PER_SECOND), ("always_on", None)])
async def test_a_server_bounds_them_unless_a_sampler_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, sampler: str | None, bound: int | None
) -> None:
    made = []

    class Stop(Exception):
        pass

    def create_app(*_: object, traced_per_second: int | None) -> None:
        made.append(traced_per_second)
        raise Stop

    monkeypatch.setattr(serves, "create_app", create_app)
    monkeypatch.delenv(serves.SAMPLER, raising=False)
    if sampler is not None:
        monkeypatch.setenv(serves.SAMPLER, sampler)
    with serves.listen("127.0.0.1", 0) as listening, pytest.raises(Stop):
        await serves.serve(ModelManager(file), Keys(), listening)
    assert made == [bound]


def test_the_next_request_on_the_connection_is_a_trace_of_its_own(file: Path) -> None:
    """Both are sent at once: the server begins the second from within the end of the first, whose span is current."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with serving(file, keys()) as served:
        traced = shared(served).tracing
        traced.tracer, traced._on = provider.get_tracer("test"), True
        with Raw(served.url) as client:
            for model in ("say", "nobody"):
                client.ask(CHAT, chat(model), {"authorization": f"Bearer {API_KEY}"})
            client.until(b"unknown_task")
    spans: tuple[ReadableSpan, ...] = exporter.get_finished_spans()
    assert [(each.name, each.parent) for each in spans] == [(f"POST {CHAT}", None)] * 2


def test_only_the_span_of_another_request_is_left() -> None:
    """What isn't a span has none either, and what a middleware began for it counts."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    token = attach(Context())
    try:
        span, context = telemetry.start_request_span(tracer, {}, "POST", "/there")
        attach(context)
        assert trace.get_current_span() is span
        telemetry.leave_request()
        assert not get_current()
        attach(context)
        outer = tracer.start_span("a middleware's")
        attach(trace.set_span_in_context(outer))
        telemetry.leave_request()
        assert trace.get_current_span() is outer
    finally:
        detach(token)
