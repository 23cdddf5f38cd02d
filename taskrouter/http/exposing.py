"""``GET /metrics``: what is counted, and what the manager's books say, in Prometheus' text format."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from taskrouter.http.exchange import Exchange
from taskrouter.http.metrics import SECONDS, Histogram, Metrics
from taskrouter.http.status import NO_DEVICES
from taskrouter.manager import Statistics
from taskrouter.residency import State as Life

if TYPE_CHECKING:
    from taskrouter.http.state import State

DEVICE_STATES = ("capacity", "charged", "promised", "residue", "foreign", "overhead", "free")
_OF_MODELS: Mapping[str, str] = {
    "loads": "Loads begun.",
    "load_failures": "Loads that failed, those refused before they began among them.",
    "unloads": "Models that were unloaded.",
    "evictions": "Models that were unloaded or put to sleep to make room.",
    "sleeps": "Models that were put to sleep.",
    "wakes": "Models that were woken.",
}


async def metrics(state: State, exchange: Exchange) -> None:
    """``GET /metrics``."""
    # Its package brings much that isn't needed here, and takes a tenth of a second: not at the start, nor on the loop.
    text_of = await asyncio.to_thread(_writer)
    data, kind = text_of(_Everything(state))
    await exchange.answer_bytes(data, kind.encode())


def _writer() -> Any:
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

    def text_of(collector: Any) -> tuple[bytes, str]:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4

    return text_of


class _Everything:
    """The collector: everything of one moment."""

    def __init__(self, state: State) -> None:
        self._state = state

    def describe(self) -> Iterable[Any]:
        return ()

    def collect(self) -> Iterator[Any]:
        state = self._state
        yield from _of_manager(state.manager.statistics(), draining=state.draining)
        yield from _of_models(state.metrics)
        yield from _of_requests(state.metrics)


def _of_manager(seen: Statistics, *, draining: bool) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily as Gauge

    device_bytes = Gauge("taskrouter_device_bytes", "Bytes of each device.", labels=("device", "state"))
    for device, books in seen.devices.items():
        if device not in NO_DEVICES:
            for name in DEVICE_STATES:
                device_bytes.add_metric((device, name), getattr(books, name))
    yield device_bytes
    models = Gauge("taskrouter_models", "Models, by their state.", labels=("state",))
    lives = Counter(model.state for model in seen.models.values())
    for life in Life:
        models.add_metric((life.value,), lives[life])
    yield models
    leases = sum(model.leases for model in seen.models.values())
    yield Gauge("taskrouter_leases", "Calls and leases that hold a model.", value=leases)
    yield Gauge("taskrouter_queue_depth", "Callers that wait for a model.", value=seen.waiting)
    yield Gauge("taskrouter_queue_oldest_seconds", "How long the oldest has waited.", value=seen.oldest_wait_s)
    yield Gauge("taskrouter_healthy", "0 where a caller waits past its bound.", value=int(seen.healthy))
    yield Gauge("taskrouter_draining", "1 while new work is refused.", value=int(draining))


def _of_models(counts: Metrics) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    for name, said in _OF_MODELS.items():
        family = CounterMetricFamily(f"taskrouter_{name}", said, labels=("model", "reason"))
        for pair, number in counts.models[name].items():
            family.add_metric(pair, number)
        yield family
    deaths = CounterMetricFamily("taskrouter_deaths", "Models that died while they served.", labels=("model",))
    for model, number in counts.deaths.items():
        deaths.add_metric((model,), number)
    yield deaths
    refusals = CounterMetricFamily("taskrouter_refusals", "Callers refused a model.", labels=("reason",))
    for reason, number in counts.refusals.items():
        refusals.add_metric((reason,), number)
    yield refusals
    loads = HistogramMetricFamily("taskrouter_load_seconds", "How long loads took.", labels=("model",))
    for model, histogram in counts.loads.items():
        loads.add_metric((model,), _buckets(histogram), histogram.sum)
    yield loads


def _of_requests(counts: Metrics) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    labels = ("task", "option")
    requests = CounterMetricFamily("taskrouter_requests", "HTTP requests.", labels=(*labels, "status"))
    for task, option, kind, number in counts.requests():
        requests.add_metric((task, option, kind), number)
    yield requests
    seconds = HistogramMetricFamily("taskrouter_request_seconds", "How long requests took.", labels=labels)
    first = HistogramMetricFamily("taskrouter_first_token_seconds", "Until streams began.", labels=labels)
    tokens = CounterMetricFamily("taskrouter_tokens", "Tokens, as models counted them.", labels=(*labels, "direction"))
    for pair, answers in counts.answers.items():
        seconds.add_metric(pair, _buckets(answers.seconds), answers.seconds.sum)
        first.add_metric(pair, _buckets(answers.first), answers.first.sum)
        tokens.add_metric((*pair, "in"), answers.tokens_in)
        tokens.add_metric((*pair, "out"), answers.tokens_out)
    yield from (seconds, first, tokens)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    found, so_far = [], 0
    for bound, count in zip((*map(str, SECONDS), "+Inf"), histogram.counts, strict=True):
        so_far += count
        found.append((bound, float(so_far)))
    return found
