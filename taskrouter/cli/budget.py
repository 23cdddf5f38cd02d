"""The memory budget as people and programs see it: what fits together, what by swapping, what never."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from taskrouter.cli.needs import Needs
from taskrouter.cli.printing import amount
from taskrouter.config import Catalog, ModelConfig
from taskrouter.manager import Budget, Fit, OptionFit
from taskrouter.manager.specs import uses
from taskrouter.types import DeviceId
from taskrouter.verbs import VERBS_OF_KIND

if TYPE_CHECKING:
    from rich.table import Table

WORDS = {
    Fit.TOGETHER: "together",
    Fit.SWAPPING: "by swapping",
    Fit.NEVER: "never",
    Fit.UNKNOWN: "not known",
    Fit.EXTERNAL: "external",
    Fit.UNAVAILABLE: "can't be used here",
}
"""How an option fits, in the word that stands in tables and in JSON."""

_BAD = (Fit.NEVER, Fit.UNAVAILABLE)


def judged(budget: Budget, catalog: Catalog, needs: Needs) -> Budget:
    """The budget with what checking the models found: those that can't be loaded, and those whose need isn't known."""
    keys = {(use.task, use.option): use.request.key for use in uses(catalog)}
    most = catalog.inference.max_bytes_per_model

    def judge(fit: OptionFit) -> OptionFit:
        fit = replace(fit, about=about(catalog.tasks[fit.task].options[fit.option]))
        key = keys.get((fit.task, fit.option))
        if key in needs.barred and fit.fit is not Fit.NEVER:
            return replace(fit, fit=Fit.UNAVAILABLE, devices=(), why=needs.barred[key])
        kind = catalog.tasks[fit.task].kind
        can = needs.verbs.get(key) if key is not None else None
        if kind is not None and can and not can & VERBS_OF_KIND[kind] and fit.fit is not Fit.NEVER:
            why = f"the task is of kind {kind}, and this model can only {', '.join(sorted(can))}"
            return replace(fit, fit=Fit.UNAVAILABLE, devices=(), why=why)
        if fit.fit is Fit.UNKNOWN and key in needs.unknown:
            return replace(fit, why=needs.unknown[key])
        if most is not None and fit.need > most and fit.fit not in _BAD:
            why = f"it needs {amount(fit.need)}, and inference.max_memory_per_model allows {amount(most)}"
            return replace(fit, fit=Fit.NEVER, devices=(), why=why)
        return fit

    options = tuple(judge(fit) for fit in budget.options)
    bad = tuple(fit for fit in options if fit.selected and fit.fit in _BAD)
    unknown = any(fit.selected and fit.fit is Fit.UNKNOWN for fit in options)
    return replace(
        budget,
        options=options,
        problems=tuple(f"{fit.task}/{fit.option} {_how(fit)}: {fit.why}" for fit in bad),
        servable=not bad,
        all_resident=budget.all_resident and not bad and not unknown,
    )


def about(option: ModelConfig) -> str:
    """What the file says of an option to people: ``fast, 52 fps: the words of its description``."""
    facts = [option.speed] if "speed" in option.model_fields_set else []
    facts += [f"{option.fps} fps"] if option.fps is not None else []
    return ": ".join(part for part in (", ".join(facts), option.description) if part)


def _how(fit: OptionFit) -> str:
    return "can never fit" if fit.fit is Fit.NEVER else WORDS[fit.fit]


def budget_data(budget: Budget, hidden: Collection[DeviceId] = ()) -> dict[str, Any]:
    """The budget for programs, without ``hidden`` devices. Sizes are bytes; a need counts on each of its devices."""
    return {
        "servable": budget.servable,
        "all_resident": budget.all_resident,
        "problems": list(budget.problems),
        "devices": [
            {
                "device": device.device,
                "total_bytes": device.total,
                "budget_bytes": device.capacity,
                "selected_bytes": device.selected,
                "pinned_bytes": device.pinned,
                "together": _names(budget, Fit.TOGETHER, device.device, selected=True),
                "by_swapping": _names(budget, Fit.SWAPPING, device.device),
            }
            for device in budget.devices
            if device.device not in hidden
        ],
        "never": _names(budget, Fit.NEVER, None),
        "options": [
            {
                "task": fit.task,
                "option": fit.option,
                "selected": fit.selected,
                "need_bytes": None if fit.source in ("unknown", "external") else fit.need,
                "source": fit.source,
                "devices": list(fit.devices),
                "fit": WORDS[fit.fit],
                "why": fit.why,
                "about": fit.about,
            }
            for fit in budget.options
        ],
    }


def _names(budget: Budget, kind: Fit, device: DeviceId | None, *, selected: bool = False) -> list[str]:
    return [
        f"{fit.task}/{fit.option}"
        for fit in budget.options
        if fit.fit is kind and (device is None or device in fit.devices) and (fit.selected or not selected)
    ]


def budget_tables(budget: Budget, hidden: Collection[DeviceId] = ()) -> tuple[Table, Table]:
    """The options' table and the devices'. ``hidden`` devices are left out."""
    options = _table("task", "option", "need", "", "fits", "")
    options.columns[2].justify = "right"
    last = None
    for fit in budget.options:
        where = " on " + ", ".join(fit.devices) if fit.devices else ""
        need = "" if fit.source == "external" else "?" if fit.source == "unknown" else amount(fit.need)
        source = "" if fit.source in ("external", "unknown") else fit.source
        task = fit.task if fit.task != last else ""
        style = "" if fit.selected else "dim"
        mark = "● " if fit.selected else "  "
        options.add_row(
            task, mark + fit.option, need, source, WORDS[fit.fit] + where, fit.why or fit.about, style=style
        )
        last = fit.task
    devices = _table("device", "has", "budget", "selected", "pinned", "together", "by swapping")
    for column in devices.columns[1:5]:
        column.justify = "right"
    for device in budget.devices:
        if device.device in hidden:
            continue
        sizes = (device.total, device.capacity, device.selected, device.pinned)
        together = _names(budget, Fit.TOGETHER, device.device, selected=True)
        swapping = _names(budget, Fit.SWAPPING, device.device)
        lists = ("\n".join(names) or "–" for names in (together, swapping))
        devices.add_row(str(device.device), *(amount(size) if size else "–" for size in sizes), *lists)
    return options, devices


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def verdict(budget: Budget) -> list[str]:
    """The answer in sentences: can each selected option be served, and can all be resident at once."""
    lines = [f"no: {problem}" for problem in budget.problems]
    if not lines:
        lines.append("yes: every selected option can be served")
    never = _names(budget, Fit.NEVER, None)
    if never:
        lines.append(f"never fits: {', '.join(never)}")
    unknown = [f"{fit.task}/{fit.option}" for fit in budget.options if fit.selected and fit.fit is Fit.UNKNOWN]
    if unknown:
        lines.append(f"not counted, because the need isn't known: {', '.join(unknown)}")
    if budget.all_resident:
        lines.append("all selected options fit at once: nothing has to be swapped")
    elif budget.servable and not unknown:
        lines.append("not all selected options fit at once: the least recently used makes room")
    return lines
