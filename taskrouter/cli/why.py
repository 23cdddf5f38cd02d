"""``taskrouter why``: what was decided for a task's models and by which rule, from a trace."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from taskrouter.cli.exits import Exit
from taskrouter.cli.printing import note, print_json
from taskrouter.cli.rehearse import Source, rehearsal, trace_of
from taskrouter.cli.which_file import which_file
from taskrouter.residency.decisions import Decided
from taskrouter.simulate import simulate

EPOCH = 1e9
"""Seconds since 1970 in 2001: a trace that counts from its own beginning doesn't get there."""


def why(task: str, file: Path | None, source: Source, *, devices: Sequence[str], last: int, as_json: bool) -> int:
    """Tell the decisions that a trace recorded; where it holds requests only, those of a rehearsal.

    Raises ``UnknownTask``, and what reading the file and the trace raises.
    """
    source.check()
    found = rehearsal(which_file(file), devices)
    task = found.catalog.find(task).task_name
    trace = trace_of(source, found.house)
    rehearsed = not trace.told
    if rehearsed:
        keys = {found.keys.get((task, option)) for option in found.catalog.tasks[task].options}
        lines: list[tuple[float, str]] = []

        def tell(at: float, decided: Decided) -> None:
            if decided.key in keys or any(victim.key in keys for victim in decided.victims):
                lines.append((trace.origin + at, str(decided)))  # on the trace's own clock, as what is recorded

        simulate(found.house, trace.requests, on_decided=tell)
    else:
        lines = [(each.at, each.text) for each in trace.told if task in each.tasks]
    shown = lines[-last:]
    if as_json:
        told = [{"at": at, "text": text} for at, text in shown]
        print_json({"ok": True, "task": task, "rehearsed": rehearsed, "of": len(lines), "decisions": told})
        return Exit.OK
    if rehearsed:
        note("the trace holds no decisions, so these are those of a rehearsal")
    for at, text in shown:
        print(f"{_when(at)}  {text}")
    if not shown:
        refused = found.house.tasks[task].refused
        print(f"nothing was decided for {task}" + (": its selected option can't be used here" if refused else ""))
    elif len(lines) > len(shown):
        note(f"the last {len(shown)} of {len(lines)}; --last shows more")
    return Exit.OK


def _when(at: float) -> str:
    """Local time where a trace counts seconds since 1970, as recorded ones do; else its seconds."""
    if not EPOCH <= at <= 100 * EPOCH:
        return f"{at:12.3f} s"
    return datetime.fromtimestamp(at, UTC).astimezone().isoformat(" ", "milliseconds")
