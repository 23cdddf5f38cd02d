"""Which requests are traced where there are more of them than anybody wants to pay for."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from taskrouter import telemetry
from taskrouter.sampling import RequestsBounded

CLIENT = "0af7651916cd43dd8448eb211c80319c"


class Recorded:
    """Spans of a server's requests, at a time that is told."""

    def __init__(self, per_second: int) -> None:
        self.now = 0.0
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(RequestsBounded(per_second, lambda: self.now), shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = telemetry.tracer(self.provider)

    def request(self, *, traceparent: str | None = None, loads: bool = False) -> None:
        headers = {} if traceparent is None else {b"traceparent": traceparent.encode()}
        span, context = telemetry.start_request_span(self.tracer, headers, "POST", "/v1/chat/completions")
        if loads:
            telemetry.start_wait_span(self.tracer, context, task="say").end()
        telemetry.end_request_span(span, 200, task="say")

    def spans(self) -> tuple[ReadableSpan, ...]:
        found = self._exporter.get_finished_spans()
        self._exporter.clear()
        return found

    def names(self) -> list[str]:
        return [span.name for span in self.spans()]


def test_the_first_requests_of_each_second_are_recorded() -> None:
    recorded = Recorded(3)
    for _ in range(10):
        recorded.request()
    assert len(recorded.names()) == 3
    recorded.now = 0.99
    recorded.request()
    assert not recorded.names()
    recorded.now = 1.0
    for _ in range(10):
        recorded.request()
    assert len(recorded.names()) == 3


def test_who_waits_for_a_load_is_recorded_all_the_same() -> None:
    recorded = Recorded(0)
    for _ in range(5):
        recorded.request(loads=True)
    assert recorded.names() == ["get_model"] * 5


@pytest.mark.parametrize(("flags", "count"), [("01", 5), ("00", 0)])
def test_a_client_that_traces_decides_for_its_own_requests(flags: str, count: int) -> None:
    recorded = Recorded(1)
    for _ in range(5):
        recorded.request(traceparent=f"00-{CLIENT}-b7ad6b7169203331-{flags}")
    spans = recorded.spans()
    assert len(spans) == count
    assert all(span.context is not None and f"{span.context.trace_id:032x}" == CLIENT for span in spans)


def test_a_server_bounds_them_and_a_command_does_not_nor_who_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def sampler(*, serves: bool) -> str:
        provider = telemetry.setup_otlp("http://127.0.0.1:9", serves=serves)
        try:
            return provider.sampler.get_description()
        finally:
            provider.shutdown()

    before = trace.get_tracer_provider()
    monkeypatch.delenv("OTEL_TRACES_SAMPLER", raising=False)
    assert sampler(serves=True) == "RequestsBounded(100/s)"
    assert "AlwaysOn" in sampler(serves=False)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    assert "AlwaysOff" in sampler(serves=True)
    assert trace.get_tracer_provider() is before
