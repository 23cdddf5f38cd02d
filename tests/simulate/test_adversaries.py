"""Under traffic that is made to starve somebody everybody is answered by the deadline, and the books hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taskrouter.residency import Settings
from taskrouter.simulate import Served, Simulation, synthetic
from taskrouter.types import GIB

from .test_run import house, model

WAIT_S = 240.0


@pytest.mark.parametrize("policy", ["lru", "cost_aware"])
@pytest.mark.parametrize("sleeps", [False, True])
@pytest.mark.parametrize("kind", ["alternate", "storm", "rare", "huge"])
def test_nobody_waits_past_the_deadline(kind: str, policy: str, sleeps: bool) -> None:
    models = [
        model(name, gib, slots=2, traits={"can_sleep": sleeps}) for name, gib in zip("abcd", (2, 3, 4, 9), strict=True)
    ]
    made = house(*models, settings=Settings(policy=policy, host_budget=40 * GIB if sleeps else 0))
    made = replace(made, tasks={name: Served(task.key, WAIT_S) for name, task in made.tasks.items()})
    requests = synthetic(kind, tuple("abcd"), requests=1000, hold_s=0.4)
    simulation = Simulation(made)
    report = simulation.run(requests)
    simulation.core.check()
    assert report.late == 0
    assert report.total.requests == len(requests)
    assert report.total.longest_s <= WAIT_S
    # All can be served in time: half of the wait, then leases that end, an unload and a load (docs/design.md).
    assert report.total.refused == {}
