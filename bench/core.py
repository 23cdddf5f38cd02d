"""The residency core: what one granted lease costs, at few and at many known models, and one decision that evicts."""

from __future__ import annotations

import time

from bench.measure import Row, baseline_lock, in_turns, show
from taskrouter.residency import Residency, Settings
from taskrouter.residency.actions import Preflight, Unload
from taskrouter.residency.events import Acquire, Loaded, Preflighted, Release, Unloaded
from taskrouter.types import GIB, DeviceId, DeviceSpec, Footprint, ModelKey, ModelSpec, TicketId

GPU = DeviceId("cuda:0")
COUNT = 50_000


def house(known: int, room: int, settings: Settings) -> Residency:
    names = [f"m{number}" for number in range(known)]
    specs = [ModelSpec(ModelKey(name), name, Footprint(GIB), ((GPU,),)) for name in names]
    return Residency([DeviceSpec(GPU, room * GIB, budget=room * GIB)], specs, settings)


def load(core: Residency, number: int, now: float) -> None:
    key, ticket = ModelKey(f"m{number}"), TicketId(1_000_000 + number)
    core.handle(Acquire(ticket, key, 1e9), now=now)
    core.handle(Preflighted(key, 1), now=now)
    core.handle(Loaded(key, 1), now=now)
    core.handle(Release(ticket), now=now)


async def lease(known: int) -> float:
    core = house(known, 100, Settings())
    load(core, 3, 0.0)
    key, ticket = ModelKey("m3"), TicketId(5)
    start = time.perf_counter()
    for _ in range(COUNT):
        core.handle(Acquire(ticket, key, 1e9), now=1.0)
        core.handle(Release(ticket), now=1.0)
    return (time.perf_counter() - start) / COUNT


async def eviction(policy: str = "lru", resident: int = 100) -> float:
    """Seconds for the event that finds a victim among so many resident models, commits and evicts; the median."""
    core = house(2 * resident, resident, Settings(min_residency_s=0, policy=policy))
    for number in range(resident):
        load(core, number, 0.0)
    taken = []
    for turn in range(400 if resident <= 1000 else 60):
        key, ticket, now = ModelKey(f"m{(resident + turn) % (2 * resident)}"), TicketId(turn), 10.0 + turn
        actions = core.handle(Acquire(ticket, key, 1e9), now=now)
        (generation,) = (action.generation for action in actions if isinstance(action, Preflight))
        start = time.perf_counter()
        actions = core.handle(Preflighted(key, generation), now=now)
        taken.append(time.perf_counter() - start)
        (unload,) = (action for action in actions if isinstance(action, Unload))
        core.handle(Unloaded(unload.key, unload.generation), now=now)
        core.handle(Loaded(key, generation), now=now)
        core.handle(Release(ticket), now=now)
    return sorted(taken)[len(taken) // 2]


async def main() -> None:
    table = [
        Row(
            f"decisions a second, {resident:,} resident", 1 / await eviction("cost_aware", resident), "", "lru",
            1 / await eviction("lru", resident), "≥ 10,000 at 100" if resident == 100 else "",
        )
        for resident in (10, 100, 1_000, 10_000)
    ]  # fmt: skip
    base, few, many, evict, weigh = await in_turns(
        lambda: baseline_lock(COUNT), lambda: lease(10), lambda: lease(10_000), eviction,
        lambda: eviction("cost_aware"),
    )  # fmt: skip
    name = "asyncio.Lock + move_to_end"
    show(
        "residency core",
        [
            Row("Acquire + Release, 10 known models", few * 1e6, "µs", name, base * 1e6, "≤ 5 ×"),
            Row("Acquire + Release, 10,000 known models", many * 1e6, "µs", "10 known models", few * 1e6, "about 1 ×"),
            Row("a decision that evicts, 100 resident", evict * 1e6, "µs", "", None, "≤ 100 µs"),
            Row("the same under cost_aware", weigh * 1e6, "µs", "lru", evict * 1e6, "≤ 100 µs"),
        ],
    )
    show("decisions that evict, under cost_aware", table)
