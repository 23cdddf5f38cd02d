"""Timing that survives a noisy machine: the two sides take turns, and the best of several rounds counts."""

from __future__ import annotations

import asyncio
import gc
import platform
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was measured, against what, and the target."""

    what: str
    measured: float
    unit: str
    baseline: str
    base: float | None
    target: str

    @property
    def ratio(self) -> float | None:
        return None if not self.base else self.measured / self.base


def show(title: str, rows: list[Row]) -> None:
    table = Table(title=f"{title} ({datetime.now(UTC):%Y-%m-%d}, {machine()})", title_justify="left")
    for column in ("what", "measured", "baseline", "ratio", "target"):
        table.add_column(column, justify="left" if column in ("what", "baseline") else "right")
    for row in rows:
        base = row.baseline if row.base is None else f"{row.baseline}: {row.base:.3g} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ×"
        table.add_row(row.what, f"{row.measured:.3g} {row.unit}", base, ratio, row.target)
    Console(width=150).print(table)


def machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, Python {platform.python_version()}"


async def baseline_lock(count: int) -> float:
    """Seconds for one ``async with asyncio.Lock()`` around one ``OrderedDict.move_to_end``."""
    lock, models = asyncio.Lock(), OrderedDict((str(number), number) for number in range(10))
    start = time.perf_counter()
    for _ in range(count):
        async with lock:
            models.move_to_end("3")
    return (time.perf_counter() - start) / count


async def in_turns(*sides: Callable[[], Awaitable[float]], rounds: int = ROUNDS) -> list[float]:
    """The best of several rounds of each side, measured in turns."""
    best = [float("inf")] * len(sides)
    for _ in range(rounds):
        for place, side in enumerate(sides):
            gc.collect()
            gc.disable()
            try:
                best[place] = min(best[place], await side())
            finally:
                gc.enable()
    return best
