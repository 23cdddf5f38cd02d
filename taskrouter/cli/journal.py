"""What the manager did for a request (what it evicted and loaded, and why), read from its own spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from taskrouter import telemetry
from taskrouter.cli.printing import amount
from taskrouter.residency.events import Reason

WHY = {
    Reason.REQUEST.value: "it was asked for and not loaded",
    Reason.AHEAD.value: "it comes next in the pipeline",
    Reason.RESTORE.value: "it had been evicted for a load that failed",
    Reason.ROOM.value: "room was needed",
    Reason.IDLE.value: "it idled for its keep_alive_s",
    Reason.SHRUNK.value: "others took memory of its device",
    Reason.RETIRED.value: "it was unloaded by request",
    Reason.REMOVED.value: "the file names it no more",
}
"""Reasons as people say them; any other stands as it is."""


@dataclass(frozen=True, slots=True)
class Evicted:
    """One model that went. ``wanted`` is the option it made room for, ``considered`` how many could have gone."""

    option: str
    device: str
    reason: str
    wanted: str | None
    considered: int | None
    bytes_freed: int
    seconds: float

    def __str__(self) -> str:
        ahead = self.reason == Reason.AHEAD.value
        why = "room was made ahead of time" if ahead else WHY.get(self.reason, self.reason)
        if self.wanted is not None:
            among = f" of {self.considered} that could go" if (self.considered or 0) > 1 else ""
            why += f" for {self.wanted}, and it was the least recently used{among}"
        return f"evicted {self.option} from {self.device}, {amount(self.bytes_freed)} freed: {why}"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One model that came, or, with an ``error``, didn't."""

    option: str
    device: str
    reason: str
    bytes_needed: int
    bytes_measured: int | None
    seconds: float
    error: str | None

    def __str__(self) -> str:
        why = WHY.get(self.reason, self.reason)
        if self.error is not None:
            return f"load of {self.option} on {self.device} failed: {self.error}"
        sizes = f"{amount(self.bytes_needed)} needed"
        if self.bytes_measured is not None:
            sizes += f", measured {amount(self.bytes_measured)}"
        return f"loaded {self.option} on {self.device} in {self.seconds:.2f} s, {sizes}: {why}"


@dataclass(frozen=True, slots=True)
class Moves:
    """What came and went between two looks at the journal."""

    evicted: tuple[Evicted, ...]
    loaded: tuple[LoadedModel, ...]

    def data(self) -> dict[str, Any]:
        """For programs."""
        return {"evicted": [asdict(item) for item in self.evicted], "loaded": [asdict(item) for item in self.loaded]}


class Journal:
    """Listens to a provider. ``options`` names the option of each model key."""

    def __init__(self, provider: TracerProvider, options: Mapping[str, str]) -> None:
        self._exporter = InMemorySpanExporter()
        self._options = options
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def take(self) -> Moves:
        """What ended since the last look."""
        spans = self._exporter.get_finished_spans()
        self._exporter.clear()
        evictions = {s.context.span_id: s for s in spans if s.name == telemetry.EVICT_LRU_MODEL and s.context}
        evicted = tuple(self._evicted(span, evictions) for span in spans if span.name == telemetry.UNLOAD_MODEL)
        return Moves(evicted, tuple(self._loaded(span) for span in spans if span.name == telemetry.LOAD_MODEL))

    def _evicted(self, span: ReadableSpan, evictions: Mapping[int, ReadableSpan]) -> Evicted:
        eviction = evictions.get(span.parent.span_id) if span.parent else None
        wanted = _fact(span, "wanted")
        return Evicted(
            option=self._option(span),
            device=_fact(span, "device") or "",
            reason=_fact(span, "reason") or "",
            wanted=self._options.get(wanted, wanted) if wanted is not None else None,
            considered=_fact(eviction, "victims_considered") if eviction else None,
            bytes_freed=_fact(span, "bytes_freed") or 0,
            seconds=_seconds(span),
        )

    def _loaded(self, span: ReadableSpan) -> LoadedModel:
        return LoadedModel(
            option=self._option(span),
            device=_fact(span, "device") or "",
            reason=_fact(span, "reason") or "",
            bytes_needed=_fact(span, "bytes_needed") or 0,
            bytes_measured=_fact(span, "bytes_measured"),
            seconds=_seconds(span),
            error=None if span.status.is_ok or span.status.is_unset else span.status.description,
        )

    def _option(self, span: ReadableSpan) -> str:
        key = _fact(span, "model")
        return self._options.get(key, str(key))


def _fact(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(telemetry.KEYS[name])


def _seconds(span: ReadableSpan) -> float:
    return round(((span.end_time or 0) - (span.start_time or 0)) / 1e9, 4)
