"""Ten thousand callers of one cold model, against ten thousand bare tasks that await one future."""

from __future__ import annotations

import asyncio
import time

from bench.measure import Row, in_turns, show
from bench.setting import fake_manager

CALLERS = 10_000


async def bare() -> float:
    """Seconds for bare tasks, from the first task's start until the last is done."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def caller() -> None:
        await future

    start = time.perf_counter()
    tasks = [asyncio.create_task(caller()) for _ in range(CALLERS)]
    await asyncio.sleep(0)
    future.set_result(None)
    await asyncio.gather(*tasks)
    return time.perf_counter() - start


async def main() -> None:
    async with fake_manager() as manager:

        async def caller() -> None:
            async with manager.lease("cold"):
                pass

        async def herd() -> float:
            await manager.unload_model("cold")
            start = time.perf_counter()
            await asyncio.gather(*[caller() for _ in range(CALLERS)])
            return time.perf_counter() - start

        base, all_of_them = await in_turns(bare, herd)
    show(
        f"{CALLERS:,} callers of one cold model",
        [Row("lease, one load", all_of_them * 1e3, "ms", "bare tasks on one future", base * 1e3, "≤ 3 ×")],
    )
