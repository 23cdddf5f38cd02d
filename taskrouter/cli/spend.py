"""``taskrouter spend``: what calls to external providers cost, from the ledger on disk, which it only reads."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskrouter.cli.exits import Exit
from taskrouter.cli.printing import console, print_json
from taskrouter.spend import Spent, default_path, read_spent

if TYPE_CHECKING:
    from rich.table import Table

DAY_S = 86400

COLUMNS = {
    "day": ("day",),
    "provider": ("provider",),
    "task": ("task",),
    "option": ("task", "option", "provider", "model_id"),
}
"""What is told apart, by what ``--by`` says; an option's model may be another one than it was last week."""


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


def spend(file: Path | None, *, days: int, by: str, as_json: bool) -> int:
    """Print the spend of the last ``days`` days, today included. Raises ``SpendUnreadable``; creates nothing."""
    path = file if file is not None else default_path()
    since = first_day(days, now=time.time())
    spent = read_spent(path, since_day=since)
    lines, total = grouped(spent, COLUMNS[by]), summed((), spent)
    if as_json:
        rows = [dict(zip(COLUMNS[by], line.names, strict=True)) | line.data() for line in lines]
        print_json({"ok": True, "file": str(path), "since": since, "by": by, "spend": rows, "total": total.data()})
    elif not spent:
        there = (
            "holds no call to a provider since then"
            if path.exists()
            else "isn't there: no call to a provider was recorded yet"
        )
        print(f"nothing was spent since {since} (UTC): {path} {there}")
    else:
        console().print(_table(COLUMNS[by], lines, total))
        print(f"since {since} (UTC), from {path}")
    return Exit.OK


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


def dollars(usd: float) -> str:
    """Dollars for people: cents where there are any, else as many digits as say something."""
    if usd >= 1 or usd == 0:
        return f"${usd:,.2f}"
    if usd < 1e-6:
        return "<$0.000001"
    return f"${usd:.4f}" if usd >= 0.01 else f"${usd:.6f}"


def _table(columns: Sequence[str], lines: Sequence[Line], total: Line) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column("model" if column == "model_id" else column, overflow="fold")
    for column in ("requests", "input tokens", "output tokens", "spent"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line.names, *_figures(line))
    table.add_row("total", *[""] * (len(columns) - 1), *_figures(total), style="bold")
    return table


def _figures(line: Line) -> tuple[str, ...]:
    return f"{line.requests:,}", f"{line.input_tokens:,}", f"{line.output_tokens:,}", dollars(line.usd)
