"""What a run of ``chaos`` may take, and what it found."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Bounds:
    """Seconds. ``call_s`` is the longest a call may take, a death that is noticed by its silence included."""

    call_s: float = 5.0
    margin_s: float = 3.0
    rest_s: float = 30.0
    shutdown_s: float = 40.0
    clean_s: float = 5.0


@dataclass
class Report:
    """How many calls ended how, which faults there were, and what was wrong."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    loads: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    gap: float = 0.0

    def __str__(self) -> str:
        right = sum(count for outcome, count in self.outcomes.items() if outcome.endswith("right"))
        lines = [
            f"{sum(self.faults.values())} faults in {self.seconds:.0f} s, {self.loads} loads; "
            f"{right} of {sum(self.outcomes.values())} calls right; the slowest ended after {self.slowest:.1f} s; "
            f"the event loop's longest gap {self.gap:.2f} s",
            "faults: " + ", ".join(f"{name} {count}" for name, count in self.faults.most_common()),
            "calls: " + ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common()),
            *self.wrong,
        ]
        return "\n".join(lines)


async def watch_gaps(report: Report) -> None:
    """The longest time in which nobody got a turn on the event loop."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.02)
        report.gap = max(report.gap, time.monotonic() - before - 0.02)


class Complaints(logging.Handler):
    """An exception that was only logged is wrong too: a promise broke, and somebody swallowed it."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.ERROR)
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            text = logging.Formatter().format(record)
            self.report.wrong.append(f"logged: {text}")

    def __enter__(self) -> None:
        logging.getLogger().addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)
