"""Houses and traces drawn from seeds: everybody is answered once and in time, and the figures are what the core said.

The other witness is a list of all that the core was told and answered, kept beside the simulation and counted anew.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from taskrouter.residency import Residency, Settings
from taskrouter.residency.actions import Action, Demote, Grant, Load, Promote, Refuse
from taskrouter.residency.events import Acquire, Event, Release
from taskrouter.simulate import House, Request, Served, Simulation
from taskrouter.types import GIB, ModelKey, TicketId

from .test_run import house, model

REQUESTS = 60


@dataclass
class Witness:
    """What a core was told and what it answered. Warm-up's tickets are below 0."""

    arrived: dict[TicketId, float] = field(default_factory=dict)
    granted: dict[TicketId, float] = field(default_factory=dict)
    released: dict[TicketId, float] = field(default_factory=dict)
    refused: list[TicketId] = field(default_factory=list)
    actions: Counter[type] = field(default_factory=Counter)

    def saw(self, event: Event, now: float, answer: list[Action]) -> None:
        if isinstance(event, Acquire):
            self.arrived[event.ticket] = now
        elif isinstance(event, Release):
            assert event.ticket not in self.released
            self.released[event.ticket] = now
        self.actions.update(type(action) for action in answer)
        for action in answer:
            if isinstance(action, Grant):
                assert not self.granted.keys() & set(action.tickets)
                self.granted.update(dict.fromkeys(action.tickets, now))
            elif isinstance(action, Refuse):
                self.refused += action.tickets


class Watched(Residency):
    """The real core, with a witness beside it."""

    def __init__(self, of: House, witness: Witness) -> None:
        super().__init__(of.devices, of.models, of.settings)
        self.witness = witness

    def handle(self, event: Event, *, now: float) -> list[Action]:
        answer = super().handle(event, now=now)
        self.witness.saw(event, now, answer)
        return answer


def drawn(seed: int) -> tuple[House, list[Request]]:
    """A small house in which not everything fits, and a trace that is in a hurry."""
    rng = random.Random(seed)
    names = "abcde"[: rng.randint(2, 5)]

    def one(name: str) -> Any:
        traits = {
            "can_sleep": rng.random() < 0.4,
            "cancellable": rng.random() < 0.5,
            "serial_group": rng.choice([None, "one at a time"]),
        }
        size, slots, idle_s = rng.choice([1, 2, 3, 4, 6, 9]), rng.choice([None, 1, 2]), rng.choice([None, None, 5.0])
        return model(name, size, slots=slots, keep_alive_s=idle_s, traits=traits)

    models = [one(name) for name in names]
    settings = Settings(
        policy=rng.choice(["lru", "cost_aware"]),
        host_budget=rng.choice([0, 0, 5, 20]) * GIB,
        max_models=rng.choice([0, 0, 2]),
        min_residency_s=rng.choice([0, None]),
    )
    made = replace(
        house(*models, settings=settings),
        tasks={name: Served(ModelKey(name), rng.choice([5.0, 20.0, 60.0]), rng.choice([0, 0, 3])) for name in names},
        after={"a": (("p", (models[-1].key,)),)} if rng.random() < 0.4 else {},
        warm=("a", "b") if rng.random() < 0.3 else (),
    )
    now, requests = 0.0, []
    for _ in range(REQUESTS):
        now += rng.choice([0, 0, 0.5, 1, 3, 10])
        hold_s, priority = rng.choice([0, 0.5, 5, 30]), rng.choice([None, None, 0, 5, 9])
        requests.append(Request(now, rng.choice(names), hold_s, priority))
    return made, requests


@pytest.mark.parametrize("first", [0, 20, 40, 60, 80, 400])
def test_everybody_is_answered_once_and_the_figures_are_what_the_core_said(first: int) -> None:
    for seed in range(first, first + 20):
        made, requests = drawn(seed)
        witness = Witness()
        simulation = Simulation(made)
        simulation.core = Watched(made, witness)
        report = simulation.run(requests)
        simulation.core.check()

        tickets = [TicketId(number) for number in range(REQUESTS)]
        assert sorted([*witness.granted, *witness.refused])[-REQUESTS:] == tickets, seed
        assert len(witness.granted) + len(witness.refused) == len(witness.arrived), seed
        assert witness.released.keys() == witness.granted.keys(), seed
        waits = {ticket: witness.granted[ticket] - witness.arrived[ticket] for ticket in witness.granted}
        for ticket in tickets:
            if ticket in waits:
                assert waits[ticket] <= made.tasks[requests[ticket].task].max_wait_s + 1e-6, (seed, ticket)
                held_s = witness.released[ticket] - witness.granted[ticket]
                assert held_s == pytest.approx(requests[ticket].hold_s), (seed, ticket)
        total = report.total
        asked = [wait for ticket, wait in waits.items() if ticket >= 0]
        assert (report.late, total.requests, total.granted) == (0, REQUESTS, len(asked)), seed
        assert total.longest_s == pytest.approx(max(asked, default=0.0)), seed
        assert sum(total.waited) == pytest.approx(sum(asked)), seed
        assert total.refused.keys() <= {"deadline"}, seed
        assert total.loads + report.warmup_loads == witness.actions[Load], seed
        assert (total.wakes, total.sleeps) == (witness.actions[Promote], witness.actions[Demote]), seed
        assert all(device.peak <= device.capacity for device in report.devices), seed


def test_who_is_granted_by_the_coming_of_another_request_is_not_taken_for_it() -> None:
    """b drains for c, and b's second request waits behind that; a's second comes first, which ends the drain."""
    made = house(model("a", 9), model("b", 9), model("c", 4))
    waits = {"a": 20.0, "b": 60.0, "c": 20.0}
    made = replace(made, tasks={name: Served(ModelKey(name), wait_s) for name, wait_s in waits.items()})
    report = Simulation(made).run(
        [
            Request(0, "b", 30.0),  # ready at 18, in use until 48
            Request(20, "a", 5.0),
            Request(20, "c", 5.0, priority=5),
            Request(30, "b", 5.0),
            Request(38, "a", 0.0, priority=100),
        ]
    )
    found = {each.task: each for each in report.tasks}
    assert list(found["b"].waited) == [18.0, 8.0]
    assert (found["a"].granted, found["a"].refused) == (0, {"deadline": 2})
    assert found["c"].refused == {"deadline": 1}
