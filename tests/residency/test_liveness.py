"""The bound that docs/design.md states, under adversarial traffic, both policies, and models that sleep.

``bound`` is that sum, from what the traffic takes: lease, unload and load (or wake) seconds, and what must come before.
"""

from __future__ import annotations

import pytest

from taskrouter.residency.books import Settings

from . import traffic
from .account import CoreFactory

each = pytest.mark.parametrize(
    ("settings", "sleeps"),
    [
        (Settings(policy=policy, host_budget=traffic.BEDS if sleeps else 0), sleeps)
        for policy in ("lru", "cost_aware")
        for sleeps in (False, True)
    ],
    ids=["lru", "lru, sleeping", "cost_aware", "cost_aware, sleeping"],
)


def bound(*, wait: float, lease: float, unload: float, load: float, before: int = 0, protected: float = 0.0) -> float:
    """Half of the wait, then the drain; ``before``: turns of older models on the same bytes, each as long at most."""
    turn = lease + unload + load
    return wait / 2 + turn + before * (protected + turn)


@pytest.mark.slow
@each
def test_a_rare_model_beside_endless_traffic(core: CoreFactory, settings: Settings, sleeps: bool) -> None:
    seen = traffic.endless_a_rare_c(core, settings, sleeps=sleeps)
    assert (len(seen.waits("c")), seen.refused) == (25, [])
    assert max(seen.waits()) <= bound(wait=120, lease=0.5, unload=1, load=10)
    assert seen.loads <= (2 if sleeps else 1 + 2 * 25)


@pytest.mark.slow
@each
def test_two_models_in_turn_on_one_place(core: CoreFactory, settings: Settings, sleeps: bool) -> None:
    seen = traffic.alternating(core, settings, sleeps=sleeps)
    assert (len(seen.granted), seen.refused) == (1800, [])
    assert max(seen.waits()) <= bound(wait=120, lease=0.1, unload=1, load=10)
    assert seen.loads <= (2 if sleeps else 89)


@each
def test_everything_at_once(core: CoreFactory, settings: Settings, sleeps: bool) -> None:
    seen = traffic.everything_at_once(core, settings, sleeps=sleeps)
    assert (len(seen.granted), seen.refused) == (360, [])
    # Twelve in room for three: three turns come before the last one's, each protected for as long as its load took.
    assert max(seen.waits()) <= bound(wait=0, lease=2, unload=1, load=10, before=3, protected=10)
    assert not sleeps or seen.loads == 12


@pytest.mark.slow
@each
def test_a_large_model_among_many_small(core: CoreFactory, settings: Settings, sleeps: bool) -> None:
    seen = traffic.one_large_among_small(core, settings, sleeps=sleeps)
    assert (len(seen.waits("large")), seen.refused) == (11, [])
    assert max(seen.waits()) <= bound(wait=0, lease=2, unload=1, load=3, before=1, protected=3)
