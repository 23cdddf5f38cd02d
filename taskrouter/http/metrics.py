"""What is counted, for Prometheus: requests by task and option, and what happened to models.

Plain numbers in dicts, on one loop: counting a request costs a few microseconds. Only names of the file become labels,
so there are never more series than the file has options. ``exposing.py`` writes them out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from taskrouter.manager import Happened
from taskrouter.residency.events import Reason

if TYPE_CHECKING:
    from taskrouter.http.exchange import Exchange

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Bounds of the buckets of requests; of loads the same."""
EVICTS = frozenset({Reason.ROOM.value, Reason.SHRUNK.value, Reason.HOST_ROOM.value})
"""Why a model goes whose room is needed."""

KINDS = ("gone", "1xx", "2xx", "3xx", "4xx", "5xx")
"""How requests end: the class of their status, by its first digit; or their client went away."""
Pair = tuple[str, str]


class Histogram:
    """Seconds, by bucket; the last is of all that are longer."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds


class Answers:
    """Requests to one option of one task; ``kinds``: how many of each of ``KINDS``."""

    __slots__ = ("first", "kinds", "seconds", "tokens_in", "tokens_out")

    def __init__(self) -> None:
        self.kinds = [0] * len(KINDS)
        self.seconds = Histogram()
        self.first = Histogram()
        self.tokens_in = 0
        self.tokens_out = 0


class Metrics:
    """One server's counts."""

    def __init__(self) -> None:
        self.nameless = [0] * len(KINDS)
        """Requests whose task was never found, or that were to none."""
        self.answers: dict[Pair, Answers] = {}
        """By task and option."""
        self.models: dict[str, Counter[Pair]] = {
            name: Counter() for name in ("loads", "load_failures", "unloads", "evictions", "sleeps", "wakes")
        }
        """By model and reason."""
        self.deaths: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.loads: dict[str, Histogram] = {}

    def requests(self) -> Iterator[tuple[str, str, str, int]]:
        """How many requests ended how: task, option, kind and number. Those of no task have empty names."""
        for (task, option), counts in (*((pair, each.kinds) for pair, each in self.answers.items()),
                                       (("", ""), self.nameless)):  # fmt: skip
            for kind, number in zip(KINDS, counts, strict=True):
                if number:
                    yield task, option, kind, number

    def count(self, exchange: Exchange, seconds: float) -> None:
        """A request has ended."""
        # Whoever goes away early has no status, or one that never came to its end.
        kind = 0 if exchange.gone and not exchange.lasts else exchange.status // 100
        asked = exchange.asked
        if asked is None:
            self.nameless[kind] += 1
            return
        name = (asked.target.task, asked.option)
        known = self.answers.get(name)
        if known is None:
            known = self.answers[name] = Answers()
        known.kinds[kind] += 1
        if exchange.lasts:
            return
        known.seconds.add(seconds)
        if asked.first_at is not None:
            known.first.add(max(asked.first_at - asked.begun, 0.0))
        usage = asked.usage
        if usage is not None:
            known.tokens_in += max(usage.prompt_tokens, 0)
            known.tokens_out += max(usage.completion_tokens, 0)

    def happened(self, happened: Happened) -> None:
        """Something happened to a model."""
        facts = happened.facts
        model, reason = facts.get("model", ""), facts.get("reason", "")
        match happened.what:
            case "loading":
                self.models["loads"][model, reason] += 1
            case "loaded":
                if "seconds" in facts:
                    self.loads.setdefault(model, Histogram()).add(facts["seconds"])
            case "load_failed" | "preflight_failed":
                self.models["load_failures"][model, reason] += 1
            case "unloading" | "sleeping":
                self.models["unloads" if happened.what == "unloading" else "sleeps"][model, reason] += 1
                if reason in EVICTS or "wanted" in facts:
                    self.models["evictions"][model, reason] += 1
            case "waking":
                self.models["wakes"][model, reason] += 1
            case "died":
                self.deaths[model] += 1
            case "refused":
                self.refusals[reason] += facts["callers"]
