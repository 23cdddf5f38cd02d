"""``taskrouter spend``: what calls to external providers cost, from the ledger on disk, which it only reads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taskrouter.cli.exits import Exit
from taskrouter.cli.printing import console, print_json
from taskrouter.spend import default_path, read_spent
from taskrouter.spend.grouping import COLUMNS, Line, first_day, grouped, rows_of, summed

if TYPE_CHECKING:
    from rich.table import Table


def spend(file: Path | None, *, days: int, by: str, as_json: bool) -> int:
    """Print the spend of the last ``days`` days, today included. Raises ``SpendUnreadable``; creates nothing."""
    path = file if file is not None else default_path()
    since = first_day(days, now=time.time())
    spent = read_spent(path, since_day=since)
    lines, total = grouped(spent, COLUMNS[by]), summed((), spent)
    if as_json:
        rows = rows_of(lines, by)
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
