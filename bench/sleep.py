"""Putting a Transformers-like module of a gigabyte to sleep and waking it, against plain copies of the same bytes.

The copies are of one tensor into another whose pages are there already (pinned where there is a GPU): nothing copies
faster. On a GPU (``bench/gpu/swap_in.py``) they go over the bus; here the CPU stands for the device, so what is
measured is what moving costs beside copying: finding storages, letting tensors go, and above all allocating, as every
sleep has RAM of its own and gives it back.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from bench.measure import Row, show
from taskrouter.backends.hf.arena import Arena

GIB = 1 << 30
ROUNDS = 7
LAYERS = 64


def module(device: str) -> Any:
    """A gigabyte of bfloat16 in as many tensors as a small language model has."""
    import torch

    made = torch.nn.Module()
    for number in range(LAYERS * 9):
        values = torch.ones(GIB // (2 * LAYERS * 9), dtype=torch.bfloat16, device=device)
        made.register_parameter(f"w{number}", torch.nn.Parameter(values, requires_grad=False))
    return made


def measure(device: str) -> tuple[float, float, float, float, int]:
    """Median seconds of a sleep, a wake, a plain copy there and back of as many bytes; and the bytes."""
    import torch

    def done() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    subject = module(device)
    size = sum(parameter.nbytes for parameter in subject.parameters())
    source = torch.ones(size, dtype=torch.uint8, device=device)
    host = torch.ones(size, dtype=torch.uint8, pin_memory=device != "cpu")
    taken: list[list[float]] = [[], [], [], []]
    for _ in range(ROUNDS):
        begun = done()
        arena = Arena(subject)
        arena.let_go()
        slept = done()
        arena.wake()
        woken = done()
        arena.close()
        del arena
        start = done()
        host.copy_(source)
        there = done()
        source.copy_(host)
        back = done()
        for all_, one in zip(taken, (slept - begun, woken - slept, there - start, back - there), strict=True):
            all_.append(one)
    sleep, wake, there_s, back_s = (statistics.median(each) for each in taken)
    return sleep, wake, there_s, back_s, size


def rows(device: str) -> list[Row]:
    sleep, wake, there, back, size = measure(device)
    where = "RAM" if device == "cpu" else "pinned RAM"
    return [
        Row(f"putting {size / GIB:.2f} GiB to sleep ({device})", sleep, "s", f"copy_ to {where}", there, "reported"),
        Row("waking it", wake, "s", "copy_ back", back, "reported"),
        Row("swap-in against copy_", back / wake, "×", "", None, "≥ 0.8 on a GPU"),
    ]


async def main() -> None:
    show("sleep", await asyncio.to_thread(rows, "cpu"))


if __name__ == "__main__":
    asyncio.run(main())
