"""The only place that names spans and attribute keys, and the only one that talks to OpenTelemetry.

How the spans hang together::

    the caller's span
    └─ get_model                  only when the request waits; the caller's task
       ├─ evict_lru_model         the decision to make room for it
       │  └─ unload_model         one per victim
       └─ load_model              its parent is the request that triggered it; the others that wait for it get links

Evictions and loads run in the manager's own task, where no span is current: their parent is handed over as a context
(``context_of``). A call to a resident model opens no span (an empty one costs more than the whole lease): it annotates
the caller's. Spans carry names, sizes and reasons, never what was asked or answered.
"""

from __future__ import annotations

import logging
import threading
from asyncio import CancelledError
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, TypedDict, Unpack
from urllib.parse import urlsplit

from opentelemetry import propagate, trace
from opentelemetry.context import Context, attach, create_key, get_current, set_value
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

from taskrouter.errors import BadInput, CallFailed, MissingDependency

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider

SCOPE = "taskrouter"
"""The instrumentation scope of every span."""

GET_MODEL = "get_model"
LOAD_MODEL = "load_model"
UNLOAD_MODEL = "unload_model"
SLEEP_MODEL = "sleep_model"
WAKE_MODEL = "wake_model"
EVICT_LRU_MODEL = "evict_lru_model"

GAVE_UP = "gave_up"
"""The event of a waiting span whose caller went away."""

_REQUEST = create_key("taskrouter-request")
"""The server's span of the request that a context is of."""

EXPORT_TIMEOUT_S = 3.0
FLUSH_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


class Facts(TypedDict, total=False):
    """What a span may say. ``None`` leaves the attribute out.

    ``device`` joins several with a comma. Bytes are sums over all devices. ``reason`` is a value of
    ``residency.events.Reason``. ``wanted`` is the model that room is made for, ``victims`` the models that go.
    """

    task: str | None
    option: str | None
    model: str | None
    framework: str | None
    device: str | Sequence[str] | None
    generation: int | None
    reason: str | None
    wanted: str | None
    victims: Sequence[str] | None
    victims_considered: int | None
    bytes_needed: int | None
    bytes_measured: int | None
    bytes_freed: int | None
    bytes_residue: int | None
    waited_s: float | None
    passed: Sequence[str] | None


KEYS: Mapping[str, str] = {
    "task": "taskrouter.task",
    "option": "taskrouter.option",
    "model": "taskrouter.model",
    "framework": "taskrouter.framework",
    "device": "taskrouter.device",
    "generation": "taskrouter.generation",
    "reason": "taskrouter.reason",
    "wanted": "taskrouter.wanted",
    "victims": "taskrouter.victims",
    "victims_considered": "taskrouter.victims.considered",
    "bytes_needed": "taskrouter.bytes.needed",
    "bytes_measured": "taskrouter.bytes.measured",
    "bytes_freed": "taskrouter.bytes.freed",
    "bytes_residue": "taskrouter.bytes.residue",
    "waited_s": "taskrouter.waited_s",
    "passed": "taskrouter.passed",
}
"""The attribute key of each fact."""

ERROR_TYPE = "error.type"

Attributes = Mapping[str, str | int | float | Sequence[str]]


def attributes(**facts: Unpack[Facts]) -> Attributes:
    """The facts under their attribute keys; made once, for callers that say the same thing often."""
    return _attributes(facts)


def _attributes(facts: Facts) -> dict[str, str | int | float | Sequence[str]]:
    found: dict[str, str | int | float | Sequence[str]] = {}
    for name, value in facts.items():
        if value is None:
            continue
        if name == "device" and not isinstance(value, str):
            value = ",".join(value)  # type: ignore[arg-type]
        found[KEYS[name]] = value  # type: ignore[assignment]
    return found


# --- spans ------------------------------------------------------------------------------------------------------------


def tracer(provider: TracerProvider | None = None) -> Tracer:
    """A tracer of the given provider, else of the application's own, whenever it sets one up; sets none itself."""
    return trace.get_tracer(SCOPE, _version(), tracer_provider=provider)


def start_request_span(tracer: Tracer, headers: Mapping[bytes, bytes], method: str, route: str) -> tuple[Span, Context]:
    """A request to the server: a span of that kind, and the context it is current in.

    Its parent is what the client sent (W3C's ``traceparent``), its attributes are of OpenTelemetry's HTTP conventions.
    """
    parent = None
    if b"traceparent" in headers:
        names = (b"traceparent", b"tracestate", b"baggage")
        parent = propagate.extract(
            {name.decode(): headers[name].decode("latin-1") for name in names if name in headers}
        )
    span = tracer.start_span(
        f"{method} {route}", parent, kind=SpanKind.SERVER,
        attributes={"http.request.method": method, "http.route": route},
    )  # fmt: skip
    return span, set_value(_REQUEST, span, trace.set_span_in_context(span, parent))


def leave_request() -> None:
    """A request begins. Servers may begin it in the context of the one before it on the same connection, whose span is
    none of its own; what a middleware has begun for it is.
    """
    current = get_current()
    if current and trace.get_current_span(current) is current.get(_REQUEST):
        attach(Context())


def end_request_span(span: Span, status: int, **facts: Unpack[Facts]) -> None:
    """The request was answered with this status; 0: its client went away."""
    if span.is_recording():
        span.set_attributes(_attributes(facts))
        if status:
            span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
    span.end()


def is_set_up() -> bool:
    """Whether the application has a tracer provider of its own by now; cheaper than a span that records nothing."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def start_wait_span(
    tracer: Tracer, context: Context | None = None, *, start_ns: int | None = None, **facts: Unpack[Facts]
) -> Span:
    """``get_model``: a request begins to wait. Its parent is the caller's current span, or ``context``'s.

    ``start_ns`` (Unix time) is when the request arrived, where that was before it was known to wait.
    """
    return tracer.start_span(GET_MODEL, context, attributes=_attributes(facts), start_time=start_ns)


def start_evict_span(tracer: Tracer, parent: Context | None, **facts: Unpack[Facts]) -> Span:
    """``evict_lru_model``: room is made, for the request whose context is ``parent`` (``None``: for nobody's)."""
    return _start(tracer, EVICT_LRU_MODEL, parent, (), facts)


def start_unload_span(tracer: Tracer, parent: Context | None, **facts: Unpack[Facts]) -> Span:
    """``unload_model``: one model goes. The parent is the eviction it belongs to, or who asked for the unload."""
    return _start(tracer, UNLOAD_MODEL, parent, (), facts)


def start_sleep_span(tracer: Tracer, parent: Context | None, **facts: Unpack[Facts]) -> Span:
    """``sleep_model``: one model goes to sleep in host RAM, as one goes in ``unload_model``."""
    return _start(tracer, SLEEP_MODEL, parent, (), facts)


def start_wake_span(tracer: Tracer, parent: Context | None, links: Iterable[Span] = (), **facts: Unpack[Facts]) -> Span:
    """``wake_model``: one that sleeps is woken, as one comes in ``load_model``."""
    return _start(tracer, WAKE_MODEL, parent, links, facts)


def start_load_span(tracer: Tracer, parent: Context | None, links: Iterable[Span] = (), **facts: Unpack[Facts]) -> Span:
    """``load_model``: ``parent`` is the request that triggered it, ``links`` the others that already wait for it."""
    return _start(tracer, LOAD_MODEL, parent, links, facts)


def _start(tracer: Tracer, name: str, parent: Context | None, links: Iterable[Span], facts: Facts) -> Span:
    # An empty context, not None: with None the span would take whatever happens to be current for its parent.
    return tracer.start_span(
        name,
        Context() if parent is None else parent,
        attributes=_attributes(facts),
        links=[Link(other.get_span_context()) for other in links if other.get_span_context().is_valid],
    )


def context_of(span: Span, base: Context | None = None) -> Context:
    """The context that makes ``span`` a parent, also in another task; the baggage of ``base`` stays in it."""
    return trace.set_span_in_context(span, Context() if base is None else base)


def link(waiting: Span, work: Span) -> None:
    """Tie a request that waits for work another one triggered: each span gets a link to the other."""
    for one, other in ((waiting, work), (work, waiting)):
        if one.is_recording() and other.get_span_context().is_valid:
            one.add_link(other.get_span_context())


def end_span(span: Span, error: BaseException | None = None, **facts: Unpack[Facts]) -> None:
    """End a span, with what became known meanwhile, and with the error it ended in.

    A caller that went away is no failure: the span gets an event and keeps its status.
    """
    if not span.is_recording():
        return
    span.set_attributes(_attributes(facts))
    if isinstance(error, CancelledError):
        span.add_event(GAVE_UP)
    elif error is not None:
        name = type(error).__qualname__
        span.set_attribute(ERROR_TYPE, name)
        # The text of these, or of what caused them, may quote what the caller sent.
        if isinstance(error, BadInput | CallFailed):
            span.set_status(Status(StatusCode.ERROR, name))
        else:
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, f"{name}: {error}"))
    span.end()


def annotate_current(known: Attributes | None = None, **facts: Unpack[Facts]) -> None:
    """Put facts on the caller's current span; next to nothing where none is recorded.

    ``known`` is what ``attributes`` made before: the cheap way for what doesn't change from call to call.
    """
    if not get_current():
        return
    span = trace.get_current_span()
    if not span.is_recording():
        return
    if known is not None:
        span.set_attributes(known)
    if facts:
        span.set_attributes(_attributes(facts))


# --- sending them somewhere: the command line and the server ----------------------------------------------------------


def setup_otlp(endpoint: str, service_name: str = "taskrouter", *, gives_up: bool = True) -> SdkTracerProvider:
    """A provider that sends its spans to a collector over OTLP/HTTP (``http://localhost:4318``).

    An application brings its own provider. ``gives_up``: for good, on a collector that didn't answer once, as a command
    that runs for a minute had better do. The caller ends it with ``shutdown()``, which sends
    what is left and takes at most ``FLUSH_TIMEOUT_S``. A collector that can't be reached costs the spans and one
    warning line, never the run. Raises ``BadInput`` for an address that is none, ``MissingDependency`` without the
    extra ``otlp``.
    """
    url = traces_url(endpoint)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise MissingDependency(
            f"sending traces to {endpoint} needs the OTLP exporter: pip install 'taskrouter[otlp]'"
        ) from error
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class OnceWarned(SpanExporter):
        """Says once that nobody answers; and where it gives up, no queue full of batches waits for it one by one."""

        def __init__(self, inner: SpanExporter) -> None:
            self._inner = inner
            self._lost = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            if self._lost and gives_up:
                return SpanExportResult.FAILURE
            result = self._inner.export(spans)
            failed = result is not SpanExportResult.SUCCESS
            if failed and not self._lost:
                _log.warning("no traces: nothing takes them at %s%s", url, _port_hint(url))
            self._lost = failed
            return result

        def shutdown(self) -> None:
            self._inner.shutdown()

    class BoundedProvider(SdkTracerProvider):
        """Its shutdown takes a bounded time, whatever the exporter's own retries would like."""

        def shutdown(self) -> None:
            stop = super().shutdown

            def close() -> None:
                try:
                    stop()
                finally:
                    chatter.removeFilter(_silent)

            closing = threading.Thread(target=close, name="taskrouter-otlp-flush", daemon=True)
            closing.start()
            closing.join(FLUSH_TIMEOUT_S)
            if closing.is_alive():
                _log.warning("traces may be missing: %s did not take them in %g s", url, FLUSH_TIMEOUT_S)

    # The exporter logs every retry and failure on its own; one line of ours says it.
    chatter = logging.getLogger(OTLPSpanExporter.__module__)
    chatter.addFilter(_silent)
    resource = Resource.create({SERVICE_NAME: service_name, SERVICE_VERSION: _version()})
    provider = BoundedProvider(resource=resource, shutdown_on_exit=False)
    exporter = OnceWarned(OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S))
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    return provider


def traces_url(endpoint: str) -> str:
    """Where spans are posted to: the collector's address with ``/v1/traces`` behind it, unless it is there already."""
    try:
        parts = urlsplit(endpoint.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise BadInput(f"{endpoint!r} is no collector's address; write one such as http://localhost:4318")
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith("/v1/traces") else path + "/v1/traces").geturl()


def _port_hint(url: str) -> str:
    return " (4317 is the gRPC port; OTLP over HTTP is 4318)" if urlsplit(url).port == 4317 else ""


def _silent(record: logging.LogRecord) -> bool:
    return False


def _version() -> str:
    try:
        return metadata.version("taskrouter")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "0"
