"""``async with manager.lease(task)`` on a resident model, and a whole call through a handle."""

from __future__ import annotations

import time

from bench.measure import Row, baseline_lock, in_turns, show
from bench.setting import fake_manager
from taskrouter.manager import ModelManager

COUNT = 20_000


async def main() -> None:
    async with (
        fake_manager() as manager, fake_manager(known=8_000) as large, fake_manager(recorded=True) as recorded,
    ):  # fmt: skip
        model = await manager.get_model("hot")

        await large.get_model("hot")
        await recorded.get_model("hot")

        async def leases(manager: ModelManager) -> float:
            start = time.perf_counter()
            for _ in range(COUNT):
                async with manager.lease("hot"):
                    pass
            return (time.perf_counter() - start) / COUNT

        async def calls() -> float:
            count = COUNT // 10
            start = time.perf_counter()
            for _ in range(count):
                await model.chat("x")
            return (time.perf_counter() - start) / count

        base, lease, many, traced, call = await in_turns(
            lambda: baseline_lock(COUNT), lambda: leases(manager), lambda: leases(large), lambda: leases(recorded),
            calls,
        )  # fmt: skip
    name = "asyncio.Lock + move_to_end"
    show(
        "manager, resident model",
        [
            Row("async with manager.lease(task)", lease * 1e6, "µs", name, base * 1e6, "≤ 10 ×"),
            # A file holds 50,000 values, so hardly more models than these.
            Row("the same, 8,000 known models", many * 1e6, "µs", "2 known models", lease * 1e6, "about 1 ×"),
            Row(
                "the same, recorded (telemetry.record_trace)", traced * 1e6, "µs", "not recorded", lease * 1e6, "+ 2 µs"
            ),
            Row("model.chat() on a fake model", call * 1e6, "µs", name, base * 1e6, "reported"),
        ],
    )
