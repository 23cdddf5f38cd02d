"""A request to the server is a span: under its client's, above what it led to."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.test_otlp import Collector

from .clients import CHAT, Raw, chat, status_of
from .serving import written
from .test_serve import program

TASKS = {"say": {"selected": "parrot", "options": {"parrot": {"framework": "fake", "model_id": "p", "vram_gb": 1}}}}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.slow
def test_traces_go_where_the_file_says_under_the_name_it_says(tmp_path: Path) -> None:
    collector = Collector()
    section = {"otlp_endpoint": collector.address, "service_name": "my-service"}
    with program(written(tmp_path, TASKS, telemetry=section), "--port", "0", NO_PROXY="*") as server:
        for headers in ({"traceparent": f"00-{TRACE}-{PARENT}-01"}, {"traceparent": "nonsense"}):
            with Raw(server.url) as client:
                client.ask(CHAT, chat(), headers)
                assert status_of(client.until(b"}}")) == 200
        with Raw(server.url) as client:
            client.ask(CHAT, chat("nobody"))
            assert status_of(client.until(b"}}")) == 404
        assert server.end() == 0
    collector.close()
    spans: list[Span] = []
    for _, _, body in collector.posts:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {item.key: item.value.string_value for item in resource.resource.attributes}
            assert names["service.name"] == "my-service"
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    requests = [span for span in spans if span.name == f"POST {CHAT}"]
    assert len(requests) == 3
    first = requests[0]
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert all(not other.parent_span_id for other in requests[1:])
    told = [{item.key: item.value for item in span.attributes} for span in requests]
    assert [each["http.response.status_code"].int_value for each in told] == [200, 200, 404]
    assert told[0]["taskrouter.task"].string_value == "say"
    assert told[0]["taskrouter.option"].string_value == "parrot"
    waits = [span for span in spans if span.name == "get_model"]
    assert waits[0].parent_span_id == first.span_id
    assert {span.name for span in spans if span.trace_id.hex() == TRACE} >= {"load_model", "get_model"}
