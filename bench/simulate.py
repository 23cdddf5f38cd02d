"""Policies by rehearsal: seconds of loading on the made traces, by card, and how fast a rehearsal is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from bench import optimum
from bench.measure import Row, show
from taskrouter.cli.rehearse import rehearsal
from taskrouter.simulate import SHIPPED, House, Request, simulate, synthetic
from taskrouter.simulate.house import durations
from taskrouter.types import CPU

FILE = Path(__file__).parents[1] / "docs" / "ten-models.yaml"
CARDS = {"24GiB": 0.005, "48GiB": 0.02}
"""A card, and the requests a second that it can take without being short of time."""
REQUESTS = 10_000
FEWER = 1_000
"""Of each trace, against knowing the future: that takes a minute for each ten thousand."""


def house_on(card: str) -> tuple[House, list[str]]:
    """The ten models on a card, and their tasks, the largest model last."""
    house = rehearsal(str(FILE), [card]).house
    size = {spec.key: spec.need.device_bytes for spec in house.models}
    tasks = sorted(house.tasks, key=lambda name: size[key] if (key := house.tasks[name].key) else 0)
    return house, tasks


def loading(house: House, policy: str, requests: list[Request]) -> float:
    """Seconds of loading under a policy."""
    under = replace(house, settings=replace(house.settings, policy=policy))
    return simulate(under, requests).total.load_s


def at_least(house: House, requests: list[Request]) -> float:
    """Seconds of loading for who knows the future, and has a single GPU."""
    places = {spec.key: place for place, spec in enumerate(house.models)}
    takes = durations(house)
    (room,) = [device.capacity for device in house.devices if device.id != CPU]
    asked = [places[key] for request in requests if (key := house.tasks[request.task].key) is not None]
    sizes = [spec.need.device_bytes for spec in house.models]
    return optimum.least(sizes, [takes[spec.key].load_s for spec in house.models], room, asked)


async def main() -> None:
    rows: list[Row] = []
    for card, rate in CARDS.items():
        house, tasks = await asyncio.to_thread(house_on, card)
        spent, fewer = {"lru": 0.0, "cost_aware": 0.0}, {"lru": 0.0, "cost_aware": 0.0, "optimum": 0.0}
        for kind in SHIPPED:
            requests = synthetic(kind, tasks, requests=REQUESTS, rate=rate)
            each = {policy: loading(house, policy, requests) for policy in spent}
            spent = {policy: spent[policy] + each[policy] for policy in spent}
            rows.append(_row(f"{kind} on {card}", each))
            requests = synthetic(kind, tasks, requests=FEWER, rate=rate)
            for policy in spent:
                fewer[policy] += loading(house, policy, requests)
            fewer["optimum"] += at_least(house, requests)
        rows.append(_row(f"all six on {card}", spent))
        name = f"{FEWER:,} of each on {card}, the future known"
        rows.append(Row(name, fewer["optimum"], "s", "lru", fewer["lru"], ""))
        rows.append(Row("the same, cost_aware", fewer["cost_aware"], "s", "the future known", fewer["optimum"], ""))
    house, tasks = await asyncio.to_thread(house_on, "48GiB")
    requests = synthetic("zipf:1.1", tasks, requests=200_000, rate=CARDS["48GiB"])
    began = time.perf_counter()
    report = simulate(house, requests)
    took = time.perf_counter() - began
    name = f"{report.decisions / took:,.0f} decisions/s"
    rows.append(Row("a million requests, by 200,000", took * 5, "s", name, None, "≤ 60 s"))
    show("rehearsals: seconds of loading, cost_aware over lru", rows)


def _row(what: str, spent: dict[str, float]) -> Row:
    return Row(what, spent["cost_aware"], "s", "lru", spent["lru"], "≤ 0.85 ×" if what.startswith("all") else "")
