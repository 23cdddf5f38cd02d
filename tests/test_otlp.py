"""Spans arrive at a collector, a missing one harms nobody, and the shipped configuration is sound."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from taskrouter import telemetry
from taskrouter.errors import BadInput, MissingDependency, OutOfMemory

OTEL = Path(__file__).parents[1] / "otel"


@pytest.fixture(autouse=True)
def nobody_touches_the_global_provider() -> Iterator[None]:
    before = trace.get_tracer_provider()
    yield
    assert trace.get_tracer_provider() is before


# --- OTLP -------------------------------------------------------------------------------------------------------------


class Collector:
    """Takes OTLP/HTTP on a free port of this machine, as a collector does."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, str, bytes]] = []
        posts = self.posts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                posts.append((self.path, self.headers["content-type"], body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("NO_PROXY", "*")
    receiver = Collector()
    yield receiver
    receiver.close()


def test_spans_arrive_at_a_collector_over_otlp_http(collector: Collector) -> None:
    provider = telemetry.setup_otlp(collector.address, "my-service")
    tracer = telemetry.tracer(provider)
    wait = telemetry.start_wait_span(tracer, task="chat", waited_s=0.5)
    load = telemetry.start_load_span(tracer, telemetry.context_of(wait), model="qwen", bytes_needed=9)
    telemetry.end_span(load, OutOfMemory("no room"))
    telemetry.end_span(wait)
    provider.shutdown()
    provider.shutdown()

    ((path, content_type, body),) = collector.posts
    assert (path, content_type) == ("/v1/traces", "application/x-protobuf")
    (resource_spans,) = ExportTraceServiceRequest.FromString(body).resource_spans
    resource = {item.key: item.value.string_value for item in resource_spans.resource.attributes}
    assert resource["service.name"] == "my-service"
    (scope_spans,) = resource_spans.scope_spans
    assert scope_spans.scope.name == "taskrouter"
    spans = {span.name: span for span in scope_spans.spans}
    assert set(spans) == {"get_model", "load_model"}
    assert spans["load_model"].parent_span_id == spans["get_model"].span_id
    assert spans["load_model"].trace_id == spans["get_model"].trace_id
    assert spans["load_model"].status.message == "OutOfMemory: no room"
    said = {item.key: item.value for item in spans["get_model"].attributes}
    assert said["taskrouter.task"].string_value == "chat"
    assert said["taskrouter.waited_s"].double_value == 0.5


def test_an_unreachable_collector_costs_the_spans_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(telemetry, "EXPORT_TIMEOUT_S", 0.2)
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        provider = telemetry.setup_otlp(address)
        tracer = telemetry.tracer(provider)
        with caplog.at_level(logging.DEBUG, "taskrouter"), caplog.at_level(logging.WARNING):
            for _ in range(1500):  # three batches: only the first is tried
                telemetry.end_span(telemetry.start_wait_span(tracer))
            provider.shutdown()
    assert [record.getMessage() for record in caplog.records] == [
        f"no traces: nothing takes them at {address}/v1/traces"
    ]


def test_a_collector_that_never_answers_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(telemetry, "EXPORT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(telemetry, "FLUSH_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        provider = telemetry.setup_otlp(f"http://127.0.0.1:{silent.getsockname()[1]}")
        telemetry.end_span(telemetry.start_wait_span(telemetry.tracer(provider)))
        provider.shutdown()
        (flushing,) = [thread for thread in threading.enumerate() if thread.name == "taskrouter-otlp-flush"]
        assert flushing.daemon
        assert "traces may be missing" in caplog.text
    flushing.join(20)
    assert not flushing.is_alive()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://localhost:4318", "http://localhost:4318/v1/traces"),
        ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
        (" https://otel.example/tenant/ ", "https://otel.example/tenant/v1/traces"),
        ("http://[::1]:4318/v1/traces", "http://[::1]:4318/v1/traces"),
    ],
)
def test_a_collectors_address_may_leave_out_the_path(given: str, url: str) -> None:
    assert telemetry.traces_url(given) == url


@pytest.mark.parametrize("given", ["", "localhost:4318", "grpc://localhost:4317", "http://", "http://x:port"])
def test_an_address_that_is_none_is_refused_with_an_example(given: str) -> None:
    with pytest.raises(BadInput, match="such as http://localhost:4318"):
        telemetry.setup_otlp(given)


def test_without_the_exporter_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingDependency, match=r"taskrouter\[otlp\]"):
        telemetry.setup_otlp("http://localhost:4318")


# --- otel/ ------------------------------------------------------------------------------------------------------------


def read(*names: str) -> dict[str, Any]:
    """The collector's view of several files: mappings are merged, anything else is replaced."""

    def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
        merged = dict(under)
        for key, value in over.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = merge(merged[key], value) if both else value
        return merged

    config: dict[str, Any] = {}
    for name in names:
        config = merge(config, yaml.safe_load((OTEL / name).read_text()))
    return config


@pytest.mark.parametrize(
    "files", [("collector.yaml",), ("collector.yaml", "jaeger.yaml"), ("collector.yaml", "file.yaml")]
)
def test_the_collectors_pipelines_refer_to_what_is_defined_and_use_all_of_it(files: tuple[str, ...]) -> None:
    config = read(*files)
    assert "traces" in config["service"]["pipelines"]
    for part in ("receivers", "processors", "exporters"):
        used = {name for pipeline in config["service"]["pipelines"].values() for name in pipeline[part]}
        assert used == set(config[part])


def test_the_collector_listens_on_loopback_at_the_ports_that_clients_expect() -> None:
    protocols = read("collector.yaml")["receivers"]["otlp"]["protocols"]
    assert protocols["http"]["endpoint"] == "${env:OTLP_HOST:-127.0.0.1}:4318"
    assert protocols["grpc"]["endpoint"] == "${env:OTLP_HOST:-127.0.0.1}:4317"


def test_the_readme_shows_every_span_and_every_key() -> None:
    page = (OTEL / "README.md").read_text()
    spans = (telemetry.GET_MODEL, telemetry.LOAD_MODEL, telemetry.UNLOAD_MODEL, telemetry.EVICT_LRU_MODEL)
    missing = [word for word in (*spans, *telemetry.KEYS.values(), telemetry.ERROR_TYPE) if f"`{word}`" not in page]
    assert missing == []
