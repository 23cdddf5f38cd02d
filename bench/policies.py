"""Policies by the seconds of loading they cost: on synthetic traffic, and against the offline optimum on small houses.

Requests come one after another, each done before the next, so that all that differs is who was evicted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench import optimum
from bench.measure import Row, show
from taskrouter.residency import Residency, Settings
from taskrouter.residency.actions import Load, Preflight, Unload
from taskrouter.residency.events import Acquire, Event, Loaded, Preflighted, Release, Unloaded
from taskrouter.types import GIB, DeviceId, DeviceSpec, Footprint, ModelKey, ModelSpec, TicketId

GPU = DeviceId("cuda:0")
SEEDS = (7, 8, 9)
SIZES = (1, 2, 4, 7, 9, 14, 16)
Trace = list[tuple[float, int]]


def traffic(models: int, zipf: float, gap_s: float, count: int, seed: int, *, shifts: int = 0) -> Trace:
    """When which model is asked for: popularity by Zipf's law, exponential gaps; ``shifts``: new ranks so often."""
    rng = random.Random(seed)
    weights = [1 / (rank + 1) ** zipf for rank in range(models)]
    ranks = list(range(models))
    rng.shuffle(ranks)
    now, found = 0.0, []
    for number in range(count):
        if shifts and number and number % shifts == 0:
            rng.shuffle(ranks)
        now += rng.expovariate(1 / gap_s)
        found.append((now, ranks[rng.choices(range(models), weights)[0]]))
    return found


def house(models: int, seed: int) -> tuple[list[int], list[float]]:
    """GiB and load seconds of each model: from its bytes, and some start much slower than others."""
    rng = random.Random(seed)
    sizes = [rng.choice(SIZES) for _ in range(models)]
    return sizes, [size * rng.uniform(0.7, 1.5) + rng.choice([2, 2, 30]) for size in sizes]


def spent(policy: str, sizes: Sequence[int], load_s: Sequence[float], room: int, trace: Trace) -> float:
    """Seconds of loading under a policy."""
    specs = [ModelSpec(ModelKey(str(n)), str(n), Footprint(size * GIB), ((GPU,),)) for n, size in enumerate(sizes)]
    device = DeviceSpec(GPU, room * GIB, budget=room * GIB)
    core = Residency([device], specs, Settings(policy=policy, min_residency_s=0))
    clock, total = 0.0, 0.0
    for number, (when, model) in enumerate(trace):
        clock = max(clock, when)
        todo: list[Event] = [Acquire(TicketId(number), ModelKey(str(model)), clock + 1e9)]
        while todo:
            event = todo.pop(0)
            if isinstance(event, Loaded):
                clock += load_s[model]
                total += load_s[model]
            for action in core.handle(event, now=clock):
                match action:
                    case Preflight(key, generation):
                        todo.append(Preflighted(key, generation))
                    case Unload(key, generation):
                        todo.append(Unloaded(key, generation))
                    case Load(key, generation):
                        todo.append(Loaded(key, generation))
        core.handle(Release(TicketId(number)), now=clock)
    return total


CASES = [
    ("10 models, Zipf 1.1, 24 GiB", 10, 1.1, 20.0, 0, 24),
    ("10 models, Zipf 1.5, 24 GiB", 10, 1.5, 10.0, 0, 24),
    ("10 models, Zipf 1.1, 24 GiB, shifting", 10, 1.1, 20.0, 200, 24),
    ("30 models, Zipf 1.1, 48 GiB, shifting", 30, 1.1, 10.0, 500, 48),
    ("50 models, Zipf 1.1, 80 GiB", 50, 1.1, 5.0, 0, 80),
    ("100 models, Zipf 0.9, 160 GiB", 100, 0.9, 2.0, 0, 160),
]


async def main() -> None:
    table, ratios = [], []
    for name, models, zipf, gap_s, shifts, room in CASES:
        lru = aware = 0.0
        for seed in SEEDS:
            sizes, load_s = house(models, seed)
            trace = traffic(models, zipf, gap_s, 2000, seed, shifts=shifts)
            lru += spent("lru", sizes, load_s, room, trace)
            aware += spent("cost_aware", sizes, load_s, room, trace)
        ratios.append(aware / lru)
        table.append(Row(name, aware, "s", "lru", lru, ""))
    table.append(Row("the mean of these ratios", sum(ratios) / len(ratios), "×", "", None, "≤ 0.85 ×"))
    least = {"lru": 0.0, "cost_aware": 0.0, "optimum": 0.0}
    for seed in range(40):
        sizes, load_s = house(6, seed)
        trace = traffic(6, 1.1, 60.0, 120, seed)
        room = max(*sizes, sum(sizes) // 2)
        for policy in ("lru", "cost_aware"):
            least[policy] += spent(policy, sizes, load_s, room, trace)
        least["optimum"] += optimum.least(sizes, load_s, room, [model for _, model in trace])
    small = [
        Row(f"{policy}: 40 houses of 6 models, 120 requests each", least[policy], "s", "offline optimum",
            least["optimum"], "")
        for policy in ("lru", "cost_aware")
    ]  # fmt: skip
    show("seconds of loading by policy", table)
    show("against knowing the future", small)
