"""``taskrouter validate``: is the file right, and does it fit the machine (this one, or one that isn't here)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from taskrouter.backends.registry import Registry
from taskrouter.cli.budget import budget_data, budget_tables, judged, verdict
from taskrouter.cli.exits import Exit, complain, problem_data
from taskrouter.cli.needs import find_needs
from taskrouter.cli.printing import console, print_json, waiting
from taskrouter.cli.which_file import which_file
from taskrouter.config import Catalog, parse_size
from taskrouter.errors import BadInput
from taskrouter.manager import Budget, Machine, ModelManager, StillMachine, ThisMachine
from taskrouter.manager.keys import KeyCheck
from taskrouter.manager.keys import check_keys as ask_providers
from taskrouter.manager.specs import sharing_warnings, uses
from taskrouter.types import CPU, DeviceId


def validate(
    file: Path | None, devices: Sequence[str], *, all_resident: bool, keys: bool = False, as_json: bool
) -> int:
    """Print the file's warnings and its budget, and what became of its keys. Raises ``ConfigError`` for a bad file."""
    path = which_file(file)
    machine = machine_of(devices) if devices else ThisMachine()
    catalog, budget, checks = asyncio.run(_examine(path, machine, elsewhere=bool(devices), keys=keys))
    # RAM that nobody gave is taken as enough, and no figure of the answer.
    hidden = (CPU,) if devices and not any(item.startswith("cpu=") for item in devices) else ()
    fits = budget.all_resident if all_resident else budget.servable
    yes = fits and all(check.ok for check in checks)
    if as_json:
        warnings = [problem_data(warning) for warning in catalog.warnings]
        warnings += [{"file": path, "message": text} for text in sharing_warnings(uses(catalog))]
        data = {"ok": yes, "file": path, "warnings": warnings, **budget_data(budget, hidden)}
        print_json({**data, "keys": [_key_data(check) for check in checks]} if keys else data)
    else:
        _print(catalog, budget, hidden)
        if keys:
            _print_keys(checks)
    if all_resident and not fits and budget.servable:
        complain("not all selected options are known to fit at once")
    return Exit.OK if yes else Exit.NO


async def _examine(
    path: str, machine: Machine, *, elsewhere: bool, keys: bool
) -> tuple[Catalog, Budget, list[KeyCheck]]:
    registry = Registry()
    manager = ModelManager(path, registry=registry, machine=machine)
    catalog = manager.catalog
    with waiting("checking the models' files"):
        needs = await find_needs(catalog, registry, machine, elsewhere=elsewhere)
    checks: list[KeyCheck] = []
    if keys:
        with waiting("asking the providers"):
            checks = await ask_providers(catalog, registry)
    try:
        return catalog, judged(manager.budget(needs.known), catalog, needs), checks
    finally:
        await manager.shutdown()
        await registry.close()


def _key_data(check: KeyCheck) -> dict[str, object]:
    return {
        "provider": check.provider,
        "variable": check.variable,
        "options": list(check.options),
        "state": check.state.value,
        "message": check.text,
    }


def _print_keys(checks: Sequence[KeyCheck]) -> None:
    print()
    if not checks:
        print("no option of this file needs a key")
    for check in checks:
        text = f": {check.text}" if check.text else ""
        print(f"key {check.variable} of {check.provider} ({', '.join(check.options)}): {check.state.value}{text}")


def machine_of(devices: Sequence[str]) -> StillMachine:
    """A machine of the given sizes: each is the next GPU's, ``cpu=SIZE`` is RAM. Raises ``BadInput``."""
    sizes: dict[str, int] = {}
    for item in devices:
        name, _, text = item.rpartition("=")
        name = name or f"cuda:{sum(known != CPU for known in sizes)}"
        try:
            amount = parse_size(text)
        except ValueError as error:
            raise BadInput(f"--device {item}: {text!r} is no size; write {error}, or cpu=64GiB for RAM") from None
        if not re.fullmatch(r"cpu|cuda:[0-9]{1,3}", name) or name in sizes or not amount:
            raise BadInput(f"--device {item}: write a GPU's size such as 24GiB, once for each, or cpu=64GiB for RAM")
        sizes[name] = amount
    return StillMachine(sizes)


def _print(catalog: Catalog, budget: Budget, hidden: tuple[DeviceId, ...]) -> None:
    options = sum(len(task.options) for task in catalog.tasks.values())
    print(f"{catalog.path}: {len(catalog.tasks)} tasks, {options} options")
    for warning in catalog.warnings:
        print(f"warning: {warning}")
    for text in sharing_warnings(uses(catalog)):
        print(f"warning: {text}")
    here = {device.device for device in budget.devices}
    for named in catalog.memory.devices:
        if named not in here:
            print(f"warning: memory.devices.{named}: the machine has no such device")
    out = console()
    for table in budget_tables(budget, hidden):
        print()
        out.print(table)
    print()
    for line in verdict(budget):
        print(line)
