"""Which spans are recorded where thousands of requests come a second: a span costs a third of what a request does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

REQUESTS_PER_SECOND = 100


class RequestsBounded(Sampler):
    """Of the requests that come to a server the first ``per_second`` of each second; of all else everything.

    So every load and every eviction is recorded, and whoever waited for one. A client that sends a ``traceparent``
    decides for its own requests.
    """

    def __init__(self, per_second: int = REQUESTS_PER_SECOND, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock()
        self._count = 0

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if kind is SpanKind.SERVER:
            parent = trace.get_current_span(parent_context).get_span_context()
            sampled = parent.trace_flags.sampled if parent.is_valid else self._take()
        else:
            sampled = True
        return SamplingResult(Decision.RECORD_AND_SAMPLE if sampled else Decision.DROP, attributes, trace_state)

    def get_description(self) -> str:
        return f"RequestsBounded({self._per_second}/s)"

    def _take(self) -> bool:
        now = self._clock()
        with self._lock:
            if now - self._since >= 1.0:
                self._since, self._count = now, 0
            self._count += 1
            return self._count <= self._per_second
