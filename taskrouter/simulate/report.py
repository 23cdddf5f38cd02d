"""What a rehearsal found: counted while it runs, then figures by task and by device."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

from taskrouter.types import DeviceId


class Count:
    """One task while the rehearsal runs. Requests granted at once are only counted; of others the wait is kept."""

    __slots__ = ("cold", "evictions", "external", "instant", "load_s", "loads", "refused", "sleeps", "waits",
                 "wakes")  # fmt: skip

    def __init__(self) -> None:
        self.instant = self.external = self.cold = 0
        self.waits = array("d")
        self.refused: Counter[str] = Counter()
        self.loads = self.evictions = self.sleeps = self.wakes = 0
        self.load_s = 0.0


class Meter:
    """One device's charge over time. ``at`` and ``bytes`` are its steps."""

    __slots__ = ("_area", "at", "bytes", "capacity", "peak")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.at = array("d")
        self.bytes = array("q")
        self._area = 0.0
        self.peak = 0

    def step(self, now: float, charged: int) -> None:
        """From ``now`` on so much is charged."""
        if self.at:
            if charged == self.bytes[-1]:
                return
            self._area += self.bytes[-1] * (now - self.at[-1])
        self.at.append(now)
        self.bytes.append(charged)
        self.peak = max(self.peak, charged)

    def mean(self, end: float) -> float:
        """Bytes, on average over the time from its first step to ``end``."""
        if not self.at or end <= self.at[0]:
            return 0.0
        return (self._area + self.bytes[-1] * (end - self.at[-1])) / (end - self.at[0])


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task's figures.

    ``cold``: requests that were answered by a model which became ready only after they came. Waits are seconds from
    arrival to grant, of all granted; percentiles by nearest rank. ``load_s`` and ``loads`` count the loads that its
    requests set off (of loads that no request did, those of its model), ``wakes`` likewise; ``evictions`` and
    ``sleeps`` what befell its model to make room. ``waited`` holds the waits of all that had to wait.
    """

    task: str
    requests: int
    granted: int
    external: int
    refused: Mapping[str, int]
    cold: int
    p50_s: float
    p95_s: float
    p99_s: float
    longest_s: float
    loads: int
    load_s: float
    wakes: int
    evictions: int
    sleeps: int
    waited: array[float]


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device: bytes that may be charged, and that were, on average and at most; ``at`` and ``bytes`` are steps."""

    device: DeviceId
    capacity: int
    mean: float
    peak: int
    at: array[float]
    bytes: array[int]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole rehearsal under one policy.

    ``span_s`` is the time from the first request to the end of the last. ``warmup_loads`` and ``warmup_s`` are what was
    loaded before the first request, and count nowhere else. ``late`` are requests answered after their deadline: the
    core's promise is that there are none. ``decisions`` counts committed plans and refusals.
    """

    policy: str
    span_s: float
    tasks: tuple[TaskReport, ...]
    devices: tuple[DeviceReport, ...]
    total: TaskReport
    warmup_loads: int
    warmup_s: float
    late: int
    decisions: int


def percentile(instant: int, waits: Iterable[float], share: float) -> float:
    """The smallest wait that at least this share of all didn't exceed; ``instant`` of them are 0, ``waits`` sorted."""
    ordered = list(waits)
    rank = ceil(share * (instant + len(ordered))) - 1
    return ordered[rank - instant] if rank >= instant else 0.0


def task_report(task: str, counts: Iterable[Count]) -> TaskReport:
    """The figures of a task, or of several together."""
    every = list(counts)
    instant = sum(count.instant for count in every)
    external = sum(count.external for count in every)
    ordered = sorted(wait for count in every for wait in count.waits)
    refused: Counter[str] = Counter()
    waits = array("d")
    for count in every:
        refused.update(count.refused)
        waits.extend(count.waits)
    granted = instant + len(ordered)
    return TaskReport(
        task=task,
        requests=granted + external + refused.total(),
        granted=granted,
        external=external,
        refused=dict(refused),
        cold=sum(count.cold for count in every),
        p50_s=percentile(instant, ordered, 0.50),
        p95_s=percentile(instant, ordered, 0.95),
        p99_s=percentile(instant, ordered, 0.99),
        longest_s=ordered[-1] if ordered else 0.0,
        loads=sum(count.loads for count in every),
        load_s=sum(count.load_s for count in every),
        wakes=sum(count.wakes for count in every),
        evictions=sum(count.evictions for count in every),
        sleeps=sum(count.sleeps for count in every),
        waited=waits,
    )
