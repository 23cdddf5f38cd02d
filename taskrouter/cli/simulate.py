"""``taskrouter simulate``: a file rehearsed with a trace before it is deployed; nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskrouter.cli.exits import Exit
from taskrouter.cli.printing import amount, console, note, print_json
from taskrouter.cli.rehearse import Rehearsal, Source, rehearsal, trace_of
from taskrouter.cli.which_file import which_file
from taskrouter.errors import BadInput
from taskrouter.residency.policy import POLICIES
from taskrouter.simulate import House, Report, TaskReport, Trace
from taskrouter.simulate import simulate as play
from taskrouter.simulate.readers import TOKENS_PER_S

if TYPE_CHECKING:
    from rich.table import Table


def simulate(
    file: Path | None,
    source: Source,
    *,
    devices: Sequence[str],
    policy: str | None,
    compare: str | None,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Rehearse the file under ``policy``, each of ``compare`` (with commas), or its own, and print what was found.

    Raises ``ConfigError`` for the file, ``BadInput`` for a policy, a device or a trace that can't be used.
    """
    if policy is not None and compare is not None:
        raise BadInput("give either --policy or --compare")
    policies = (
        [name.strip() for name in compare.split(",")] if compare is not None else [policy] if policy is not None else []
    )
    for name in policies:
        if name not in POLICIES:
            raise BadInput(f"there is no policy {name!r}; there are {', '.join(POLICIES)}")
        if policies.count(name) > 1:
            raise BadInput(f"--compare {compare}: {name} stands there twice")
    source.check()
    if plot is not None:
        from taskrouter.cli.plot import check_plot

        check_plot(plot)
    found = rehearsal(which_file(file), devices)
    trace = trace_of(source, found.house)
    reports = [play(_under(found.house, name), trace.requests) for name in policies or [found.house.settings.policy]]
    if plot is not None:
        from taskrouter.cli.plot import draw

        draw(plot, reports)
    late = sum(report.late for report in reports)
    assumed = _assumed(found, source, devices)
    if as_json:
        print_json({"ok": not late, "assumed": assumed, "reports": list(map(_data, reports))})
    else:
        _print(found, source, trace, reports, assumed)
    if late:
        note(f"{late} requests were answered past their deadline, which is a fault of taskrouter: report it")
    return Exit.NO if late else Exit.OK


def _under(house: House, policy: str) -> House:
    return replace(house, settings=replace(house.settings, policy=policy))


def _assumed(found: Rehearsal, source: Source, devices: Sequence[str]) -> list[str]:
    """What the figures rest on."""
    said = [
        "a load takes its backend's start time and its bytes at 0.5 GiB/s, a wake 0.2 s and its bytes at 4 GiB/s, an "
        "unload 1 s: what is measured on a machine may differ, the ratios less",
        "requests go to the selected option; one that is external takes no memory",
    ]
    if source.trace is None:
        said.append(f"a request uses its model for {source.hold_s:g} s on average (--hold)")
    elif source.rules:
        said.append(
            f"a request uses its model for its written tokens at {source.tokens_per_s or TOKENS_PER_S:g} a second"
        )
    else:
        said.append(f"where the trace doesn't say, a request uses its model for {source.hold_s:g} s (--hold)")
    if found.house.load_s:
        measured = (spec.label for spec in found.house.models if spec.key in found.house.load_s)
        said.insert(1, f"loads of these take what they took on this machine: {', '.join(measured)}")
    if not all(spec.traits.keeps_weights for spec in found.house.models):
        said.insert(1, "who sleeps without its weights reads them at 0.5 GiB/s when it wakes")
    if devices and not any(item.startswith("cpu=") for item in devices):
        said.append("there is as much RAM as anybody wants (--device cpu=64GiB says how much there is)")
    if found.unsized:
        said.append(f"these take no memory, as their need isn't known (write vram_gb): {', '.join(found.unsized)}")
    return said


# --- for programs -----------------------------------------------------------------------------------------------------


def _data(report: Report) -> dict[str, Any]:
    return {
        "policy": report.policy,
        "span_s": report.span_s,
        "tasks": [_task_data(task) for task in report.tasks],
        "total": _task_data(report.total),
        "devices": [
            {"device": each.device, "budget_bytes": each.capacity, "mean_bytes": each.mean, "peak_bytes": each.peak}
            for each in report.devices
        ],
        "warmup": {"loads": report.warmup_loads, "load_s": report.warmup_s},
        "decisions": report.decisions,
        "late": report.late,
    }


def _task_data(task: TaskReport) -> dict[str, Any]:
    return {
        "task": task.task,
        "requests": task.requests,
        "granted": task.granted,
        "external": task.external,
        "refused": dict(task.refused),
        "cold_starts": task.cold,
        "wait_s": {"p50": task.p50_s, "p95": task.p95_s, "p99": task.p99_s, "longest": task.longest_s},
        "loads": task.loads,
        "load_s": task.load_s,
        "wakes": task.wakes,
        "evictions": task.evictions,
        "put_to_sleep": task.sleeps,
    }


# --- for people -------------------------------------------------------------------------------------------------------


def _print(found: Rehearsal, source: Source, trace: Trace, reports: Sequence[Report], assumed: Sequence[str]) -> None:
    out = console()
    what = source.synthetic or str(source.trace)
    print(f"{found.catalog.path}: {len(trace.requests):,} requests of {what}")
    for report in reports:
        print(f"\npolicy {report.policy}, {report.span_s:,.0f} s")
        out.print(_tasks(report))
        out.print(_devices(report))
        if report.warmup_loads:
            print(f"warm-up before the first request: {report.warmup_loads} loads, {report.warmup_s:,.1f} s")
    if len(reports) > 1:
        print()
        out.print(_compared(reports))
    print()
    for line in assumed:
        print(f"assumed: {line}")


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _tasks(report: Report) -> Table:
    table = _table(
        "task", "requests", "refused", "cold", "wait p50", "p95", "p99", "load s", "wakes", "evicted", "slept"
    )
    for task in (*report.tasks, report.total):
        refused = ", ".join(f"{count:,} {why}" for why, count in task.refused.items()) or "–"
        waits = (f"{seconds:.2f}" for seconds in (task.p50_s, task.p95_s, task.p99_s))
        table.add_row(
            task.task, f"{task.requests:,}", refused, f"{task.cold:,}", *waits, f"{task.load_s:,.0f}",
            f"{task.wakes:,}", f"{task.evictions:,}", f"{task.sleeps:,}", style="bold" if task is report.total else "",
        )  # fmt: skip
    return table


def _devices(report: Report) -> Table:
    table = _table("device", "budget", "on average", "at most")
    for each in report.devices:
        if each.peak:
            table.add_row(each.device, *(_bytes(each.device, n) for n in (each.capacity, each.mean, each.peak)))
    return table


def _bytes(device: str, count: float) -> str:
    return f"{count:.1f}" if device == "models" else amount(int(count))


def _compared(reports: Sequence[Report]) -> Table:
    first = reports[0]
    table = _table("policy", "load s", f"× {first.policy}", "cold", "refused", "p95", "p99")
    for report in reports:
        total = report.total
        ratio = total.load_s / first.total.load_s if first.total.load_s else 1.0
        refused = sum(total.refused.values())
        table.add_row(
            report.policy, f"{total.load_s:,.0f}", f"{ratio:.2f}", f"{total.cold:,}", f"{refused:,}",
            f"{total.p95_s:.2f}", f"{total.p99_s:.2f}",
        )  # fmt: skip
    return table
