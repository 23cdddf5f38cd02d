"""``isolation: process`` against in-process: what a load of 1 GB costs who is served meanwhile, and what a call costs.

The same checkpoint as in ``loading``, loaded in turns beside the caller and in a process of its own, while a small real
model (the shipped classifier of shapes, in-process) is asked all the time. Then that small model itself, asked in both
places.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.loading import longest_gap, make_checkpoint, p99, settle
from bench.measure import Row, in_turns, show
from taskrouter.manager import Model, ModelManager
from taskrouter.samples.manifest import sample_dir

ROUNDS = 5
QUIET_CALLS = 300
CALLS = 100
SMALL = np.zeros((64, 64, 3), np.uint8)
LARGE = np.zeros((2000, 2000, 3), np.uint8)

FILE = """
tasks:
  here: {{selected: a, options: {{a: {{model_id: {big}, framework: transformers, dtype: float32}}}}}}
  apart:
    selected: a
    options: {{a: {{model_id: {big}, framework: transformers, dtype: float32, isolation: process}}}}
  hot:
    kind: image_classification
    selected: a
    options: {{a: {{model_id: {hot}, framework: transformers}}}}
  hot_apart:
    kind: image_classification
    selected: a
    options: {{a: {{model_id: {hot}, framework: transformers, isolation: process}}}}
inference: {{warmup_on_startup: false}}
"""


async def asked(model: Model, stop: asyncio.Event, least: int) -> list[float]:
    """Seconds of each of the calls that follow each other until told to stop."""
    taken: list[float] = []
    while not stop.is_set() or len(taken) < least:
        start = time.perf_counter()
        await model.classify(SMALL)
        taken.append(time.perf_counter() - start)
        await asyncio.sleep(0.001)
    return taken


class Loads:
    """The loads of one side: seconds, longest gaps, and the calls that were answered meanwhile."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.seconds: list[float] = []
        self.gaps: list[float] = []
        self.calls: list[float] = []

    async def once(self, manager: ModelManager, hot: Model) -> None:
        settle()
        stop = asyncio.Event()
        gap, calls = asyncio.create_task(longest_gap(stop)), asyncio.create_task(asked(hot, stop, 1))
        await asyncio.sleep(0.01)
        start = time.perf_counter()
        await manager.load_model(self.task)
        self.seconds.append(time.perf_counter() - start)
        stop.set()
        self.gaps.append(await gap)
        self.calls += await calls
        await manager.unload_model(self.task)


async def each_call(model: Model, picture: np.ndarray) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        await model.classify(picture)
    return (time.perf_counter() - start) / CALLS


async def main() -> None:
    here, apart = Loads("here"), Loads("apart")
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name) / "big")
        path = Path(name) / "models.yaml"
        path.write_text(FILE.format(big=Path(name) / "big", hot=sample_dir("shapes")), encoding="utf-8")
        async with ModelManager(path) as manager:
            hot = await manager.get_model("hot")
            # The first load imports torch's and transformers' lazy parts.
            await manager.load_model("here")
            await manager.unload_model("here")
            done = asyncio.Event()
            done.set()
            quiet = await asked(hot, done, QUIET_CALLS)
            for _ in range(ROUNDS):
                await here.once(manager, hot)
                await apart.once(manager, hot)
            hot_apart = await manager.get_model("hot_apart")
            small = await in_turns(lambda: each_call(hot, SMALL), lambda: each_call(hot_apart, SMALL))
            large = await in_turns(lambda: each_call(hot, LARGE), lambda: each_call(hot_apart, LARGE), rounds=3)
    still = p99(quiet) * 1e3
    show(
        "isolation: process, against in_process",
        [
            Row(f"longest gap of the event loop, best of {ROUNDS} loads", min(apart.gaps) * 1e3, "ms", "in_process",
                min(here.gaps) * 1e3, "reported"),
            Row("longest gap of the event loop, worst of them", max(apart.gaps) * 1e3, "ms", "in_process",
                max(here.gaps) * 1e3, "reported"),
            Row("p99 of calls to a resident model meanwhile", p99(apart.calls) * 1e3, "ms", "in_process",
                p99(here.calls) * 1e3, f"reported ({still:.3g} ms with no load)"),
            Row("load_model of 1 GB", min(apart.seconds), "s", "in_process", min(here.seconds), "reported"),
            Row("a call with a picture of 64 × 64", small[1] * 1e3, "ms", "in_process", small[0] * 1e3, "reported"),
            Row("a call with an array of 12 MB", large[1] * 1e3, "ms", "in_process", large[0] * 1e3, "reported"),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
