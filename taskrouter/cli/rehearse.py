"""What a rehearsal needs of a file and a machine: a house for the simulator, and the trace it is fed with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from taskrouter.backends.registry import Registry
from taskrouter.cli.exits import complain
from taskrouter.cli.needs import Needs, find_needs
from taskrouter.cli.printing import waiting
from taskrouter.cli.validate import machine_of
from taskrouter.config import Catalog, load_catalog
from taskrouter.errors import BadInput
from taskrouter.manager import Machine, ThisMachine
from taskrouter.manager.pipelines import PATIENCE_S, behind
from taskrouter.manager.specs import devices as device_specs
from taskrouter.manager.specs import model_specs, settings, uses
from taskrouter.simulate import House, Reading, Request, Served, Trace, read_trace, rule, synthetic
from taskrouter.simulate.readers import TOKENS_PER_S
from taskrouter.simulate.synthetic import RATE
from taskrouter.types import Footprint, ModelKey, ModelSpec

REQUESTS = 10_000
"""That are made where nobody says how many."""
LONGEST_LINE = 1 << 20
"""Characters; what is longer is cut into pieces, none of which says anything."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where requests come from: a trace's file, or a kind that is made. ``None``: nothing was said."""

    trace: Path | None
    synthetic: str | None
    requests: int | None
    rate: float | None
    hold_s: float
    seed: int | None
    rules: Sequence[str]
    tokens_per_s: float | None
    skip_broken: bool

    def check(self) -> None:
        """Raise ``BadInput`` where there is no source, or one that something that was said is not for."""
        if (self.trace is None) == (self.synthetic is None):
            raise BadInput("give either --trace FILE or --synthetic KIND, such as zipf:1.1")
        idle: dict[str, object]
        if self.synthetic is None:
            kind, idle = "--synthetic", {"--requests": self.requests, "--rate": self.rate, "--seed": self.seed}
        else:
            kind, idle = "--trace", {"--map": self.rules or None, "--tokens-per-s": self.tokens_per_s}
            idle["--skip-broken"] = self.skip_broken or None
        for name, value in idle.items():
            if value is not None:
                raise BadInput(f"{name} is for {kind}, and means nothing here")


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A house that a file describes on a machine. ``unsized`` are models whose need isn't known, by their options."""

    catalog: Catalog
    house: House
    keys: Mapping[tuple[str, str], ModelKey]
    unsized: tuple[str, ...]


def rehearsal(path: str, devices: Sequence[str]) -> Rehearsal:
    """The house. Raises ``ConfigError`` for a bad file, ``BadInput`` for a bad device."""
    machine = machine_of(devices) if devices else ThisMachine()
    return asyncio.run(_furnish(path, machine, elsewhere=bool(devices)))


async def _furnish(path: str, machine: Machine, *, elsewhere: bool) -> Rehearsal:
    registry = Registry()
    try:
        catalog = load_catalog(path, frameworks=registry.frameworks())
        with waiting("checking the models' files"):
            needs = await find_needs(catalog, registry, machine, elsewhere=elsewhere)
        return _house(catalog, registry, machine, needs)
    finally:
        await registry.close()
        machine.close()


def _house(catalog: Catalog, registry: Registry, machine: Machine, needs: Needs) -> Rehearsal:
    every = uses(catalog)
    keys = {(use.task, use.option): use.request.key for use in every}
    selected = {name: task.selected for name, task in catalog.tasks.items()}
    specs = model_specs(catalog, every, selected, machine.devices, registry)
    specs = {key: _sized(spec, needs) for key, spec in specs.items()}
    tasks = {}
    for name, task in catalog.tasks.items():
        key, refused = keys.get((name, task.selected)), ""
        if key is not None and key not in specs:
            key, refused = None, "unavailable"
        wait = task.max_wait_s if task.max_wait_s is not None else catalog.inference.max_wait_s
        tasks[name] = Served(key, wait, task.priority, refused)
    warm = (
        sorted(catalog.tasks.values(), key=lambda task: -task.priority) if catalog.inference.warmup_on_startup else []
    )
    house = House(
        devices=device_specs(catalog, machine.devices),
        models=tuple(specs.values()),
        tasks=tasks,
        settings=settings(catalog, machine.devices),
        warm=tuple(task.task_name for task in warm),
        after=_after(catalog, tasks),
        patience_s=PATIENCE_S,
        load_s=needs.load_s,
    )
    unsized = tuple(f"{use.task}/{use.option}" for use in every
                    if use.request.key in specs and not specs[use.request.key].need.device_bytes)  # fmt: skip
    return Rehearsal(catalog, house, keys, unsized)


def _sized(spec: ModelSpec, needs: Needs) -> ModelSpec:
    known = needs.known.get(spec.key)
    if spec.declared or known is None:
        return spec
    return replace(spec, need=Footprint(known[0], spec.need.ram_bytes))


def _after(catalog: Catalog, tasks: Mapping[str, Served]) -> dict[str, tuple[tuple[str, tuple[ModelKey, ...]], ...]]:
    """For each task of a pipeline the models of the steps behind its first place."""

    def models(steps: Sequence[str]) -> tuple[ModelKey, ...]:
        return tuple(dict.fromkeys(key for step in steps if (key := tasks[step].key) is not None))

    return {
        task: tuple((name, models(steps)) for name, steps in each) for task, each in behind(catalog.pipelines).items()
    }


# --- the trace --------------------------------------------------------------------------------------------------------


def trace_of(source: Source, house: House) -> Trace:
    """The requests. Raises ``BadInput`` for what can't be read, and for broken lines unless they are to be skipped."""
    if source.synthetic is not None:
        return Trace(tuple(_made(source, source.synthetic, house)))
    assert source.trace is not None
    rules = [rule(text) for text in source.rules]
    how = Reading(frozenset(house.tasks), rules, source.hold_s, source.tokens_per_s or TOKENS_PER_S)
    try:
        trace = read_trace(_lines(source.trace), how)
    except OSError as error:
        raise BadInput(f"{source.trace} can't be read: {error.strerror or error}") from error
    for each in trace.broken:
        complain(f"{source.trace}:{each.line}: {each.why}")
    if trace.broken_lines > len(trace.broken):
        complain(f"and {trace.broken_lines - len(trace.broken)} more lines of {source.trace} that can't be used")
    if trace.broken_lines and not source.skip_broken:
        raise BadInput(f"{source.trace}: {_lines_of(trace.broken_lines)} can't be used; mend them, or --skip-broken")
    if not trace.requests and not trace.told:
        raise BadInput(f"{source.trace} holds no request")
    return trace


def _lines_of(count: int) -> str:
    return f"{count} line{'' if count == 1 else 's'}"


def _made(source: Source, kind: str, house: House) -> list[Request]:
    size = {spec.key: spec.need.device_bytes for spec in house.models}
    local = [name for name, task in house.tasks.items() if task.key is not None]
    if not local:
        raise BadInput("no task of this file selects a local model that could be loaded: there is nothing to rehearse")
    local.sort(key=lambda name: size[house.tasks[name].key or ModelKey("")])
    return synthetic(
        kind, local, requests=source.requests or REQUESTS, rate=source.rate or RATE, hold_s=source.hold_s,
        seed=source.seed or 0,
    )  # fmt: skip


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        while line := file.readline(LONGEST_LINE):
            yield line
