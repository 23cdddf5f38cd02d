"""Spend in lines: summed by day, provider, task or option."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from taskrouter.spend.books import Spent

DAY_S = 86400

COLUMNS = {
    "day": ("day",),
    "provider": ("provider",),
    "task": ("task",),
    "option": ("task", "option", "provider", "model_id"),
}
"""What is told apart, by what is asked for; an option's model may be another one than it was last week."""


@dataclass(frozen=True, slots=True)
class Line:
    """Spend that is shown as one line: its names, requests, tokens and dollars."""

    names: tuple[str, ...]
    requests: int
    input_tokens: int
    output_tokens: int
    usd: float

    def data(self) -> dict[str, Any]:
        """The figures for programs."""
        return {name: getattr(self, name) for name in ("requests", "input_tokens", "output_tokens", "usd")}


def first_day(days: int, *, now: float) -> str:
    """The first of so many UTC days that end with today's; ``now`` is Unix time. Never before 1970."""
    return time.strftime("%Y-%m-%d", time.gmtime(max(now - (days - 1) * DAY_S, 0)))


def grouped(spent: Sequence[Spent], columns: Sequence[str]) -> list[Line]:
    """One line for each combination of these columns: days newest first, all else by dollars."""
    groups: dict[tuple[str, ...], list[Spent]] = {}
    for item in spent:
        groups.setdefault(tuple(getattr(item, column) for column in columns), []).append(item)
    lines = [summed(names, items) for names, items in groups.items()]
    if "day" in columns:
        return sorted(lines, key=lambda line: line.names, reverse=True)
    return sorted(lines, key=lambda line: (-line.usd, line.names))


def summed(names: tuple[str, ...], spent: Sequence[Spent]) -> Line:
    return Line(
        names,
        sum(item.requests for item in spent),
        sum(item.input_tokens for item in spent),
        sum(item.output_tokens for item in spent),
        math.fsum(item.usd for item in spent),
    )


def rows_of(lines: Iterable[Line], by: str) -> list[dict[str, Any]]:
    """The lines for programs, each with its names."""
    return [dict(zip(COLUMNS[by], line.names, strict=True)) | line.data() for line in lines]
