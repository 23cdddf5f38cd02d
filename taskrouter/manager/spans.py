"""Which spans are open: one trace ties a request to the eviction and the load it caused, though those run elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import Span, TracerProvider

from taskrouter import telemetry
from taskrouter.residency import HOST_BUDGET, MODEL_SLOTS
from taskrouter.residency.actions import Action, Demote, Load, Promote, Unload
from taskrouter.types import Charges, DeviceId, Footprint, ModelKey, ModelRequest, TicketId

MOST_LINKS = 128
NO_DEVICES = (MODEL_SLOTS, HOST_BUDGET)
"""Budgets that are kept like devices and are none."""


def total_bytes(charges: Charges) -> int:
    """Bytes over all devices; the count of models is no bytes, and the budget of sleepers counts RAM once more."""
    return sum(amount for device, amount in charges.items() if device not in NO_DEVICES)


def real(charges: Charges) -> tuple[DeviceId, ...]:
    """The devices among what is charged."""
    return tuple(device for device in charges if device not in NO_DEVICES)


class Eviction(NamedTuple):
    """An eviction's span, and the victims that are still unloading."""

    span: Span
    left: set[ModelKey]


class Request(NamedTuple):
    """A request that waits: its span, and the task it asked for."""

    span: Span
    task: str


class Spans:
    """The spans of one manager."""

    def __init__(self, provider: TracerProvider | None, requests: Mapping[ModelKey, ModelRequest]) -> None:
        self._given = provider is not None
        self.on = False
        """Whether anything records; looked at now and then, as asking costs as much as a future."""
        self.look()
        self._tracer = telemetry.tracer(provider)
        self._requests = requests
        self._waiting: dict[TicketId, Request] = {}
        self._loading: dict[ModelKey, tuple[Span, int]] = {}
        self._unloading: dict[ModelKey, Span] = {}
        self._resting: dict[ModelKey, Span] = {}
        self._evictions: dict[ModelKey, Eviction] = {}
        self._asked: dict[ModelKey, Context] = {}

    def look(self, now: float = 0.0) -> None:
        """See whether the application has set up tracing meanwhile."""
        self.on = self._given or telemetry.is_set_up()

    # --- a request waits ----------------------------------------------------------------------------------------------

    def waiting(self, ticket: TicketId, key: ModelKey, *, task: str, option: str) -> bool:
        """Open a request's span; ``False`` where nothing records."""
        span = telemetry.start_wait_span(
            self._tracer, task=task, option=option, model=key, framework=self._requests[key].framework
        )
        if span.is_recording():
            self._waiting[ticket] = Request(span, task)
            if key in self._loading:
                telemetry.link(span, self._loading[key][0])
        return span.is_recording()

    def waited(self, ticket: TicketId, error: BaseException | None, **facts: Any) -> None:
        request = self._waiting.pop(ticket, None)
        if request is not None:
            telemetry.end_span(request.span, error, **facts)

    def _context(self, ticket: TicketId | None) -> Context | None:
        request = self._waiting.get(ticket) if ticket is not None else None
        return telemetry.context_of(request.span) if request is not None else None

    def _task(self, ticket: TicketId | None) -> str | None:
        request = self._waiting.get(ticket) if ticket is not None else None
        return request.task if request is not None else None

    # --- room is made -------------------------------------------------------------------------------------------------

    def deciding(self, actions: Iterable[Action]) -> None:
        """Open one span for each eviction among these actions: all the models that go for one that comes."""
        batches: dict[ModelKey, list[Unload | Demote]] = {}
        for action in actions:
            if isinstance(action, (Unload, Demote)) and action.why.wanted is not None:
                batches.setdefault(action.why.wanted, []).append(action)
        for wanted, unloads in batches.items():
            span = telemetry.start_evict_span(
                self._tracer,
                self._context(unloads[0].why.ticket),
                task=self._task(unloads[0].why.ticket),
                wanted=wanted,
                victims=[unload.key for unload in unloads],
                victims_considered=max(unload.why.considered for unload in unloads),
                reason=unloads[0].why.reason.value,
            )
            eviction = Eviction(span, {unload.key for unload in unloads})
            self._evictions.update(dict.fromkeys(eviction.left, eviction))

    def asked(self, key: ModelKey, context: Context) -> None:
        """Somebody asks for this model to be unloaded: its span will belong to theirs."""
        self._asked[key] = context

    def unloading(self, action: Unload, request: ModelRequest) -> None:
        eviction = self._evictions.get(action.key)
        asked = self._asked.pop(action.key, None)
        self._unloading[action.key] = telemetry.start_unload_span(
            self._tracer,
            telemetry.context_of(eviction.span) if eviction else asked or self._context(action.why.ticket),
            task=self._task(action.why.ticket),
            model=action.key,
            option=request.label,
            framework=request.framework,
            device=real(action.charges),
            generation=action.generation,
            reason=action.why.reason.value,
            wanted=action.why.wanted,
        )

    # --- a model sleeps and wakes -------------------------------------------------------------------------------------

    def resting(self, action: Demote, request: ModelRequest) -> None:
        eviction = self._evictions.get(action.key)
        self._resting[action.key] = telemetry.start_sleep_span(
            self._tracer,
            telemetry.context_of(eviction.span) if eviction else self._context(action.why.ticket),
            task=self._task(action.why.ticket), model=action.key, option=request.label, framework=request.framework,
            device=real(action.charges), generation=action.generation, reason=action.why.reason.value,
            wanted=action.why.wanted, bytes_needed=action.ram_bytes,
        )  # fmt: skip

    def waking(self, action: Promote, request: ModelRequest) -> None:
        self._resting[action.key] = telemetry.start_wake_span(
            self._tracer, self._context(action.ticket), task=self._task(action.ticket), model=action.key,
            option=request.label, framework=request.framework, device=action.devices, generation=action.generation,
            reason=action.reason.value, bytes_needed=total_bytes(action.charges),
        )  # fmt: skip

    def rested(self, key: ModelKey, error: BaseException | None) -> None:
        """It sleeps, or is awake, or neither came of it."""
        telemetry.end_span(self._resting.pop(key), error)
        self._gone(key)

    def unloaded(self, key: ModelKey, charges: Charges, residue: Charges) -> None:
        span = self._unloading.pop(key, None)
        missing = total_bytes(residue)
        if span is not None:
            telemetry.end_span(span, bytes_freed=total_bytes(charges) - missing, bytes_residue=missing)
        self._gone(key)

    def _gone(self, key: ModelKey) -> None:
        eviction = self._evictions.pop(key, None)
        if eviction is not None:
            eviction.left.discard(key)
            if not eviction.left:
                telemetry.end_span(eviction.span)

    # --- a model comes ------------------------------------------------------------------------------------------------

    def loading(self, action: Load, request: ModelRequest, waiting: Iterable[TicketId]) -> None:
        others = (self._waiting[t].span for t in waiting if t != action.ticket and t in self._waiting)
        span = telemetry.start_load_span(
            self._tracer,
            self._context(action.ticket),
            list(islice(others, MOST_LINKS)) if self._waiting else (),
            task=self._task(action.ticket),
            model=action.key,
            option=request.label,
            framework=request.framework,
            device=action.devices,
            generation=action.generation,
            reason=action.reason.value,
            bytes_needed=total_bytes(action.charges),
        )
        self._loading[action.key] = (span, len(action.devices))

    def loaded(self, key: ModelKey, error: BaseException | None, measured: Footprint | None) -> None:
        span, devices = self._loading.pop(key)
        size = None if measured is None else measured.device_bytes * devices + measured.ram_bytes
        telemetry.end_span(span, error, bytes_measured=size)
