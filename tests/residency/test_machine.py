"""Random events and failures, with the world's own true bytes beside the core's books."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from . import fuzz
from .account import CoreFactory
from .machine import machine_for


def run(core: CoreFactory, *, examples: int, steps: int) -> None:
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine_for(core), settings=profile)


def live(core: CoreFactory, *, days: int, first: int = 0) -> None:
    """Play so many days; one on which a law is broken is cut down to the moves that matter, and told."""
    caught = fuzz.hunt(core, days=days, first=first)
    if caught is not None:
        seed, _ = caught
        moves = fuzz.shorten(core, seed, fuzz.plan(seed, fuzz.STEPS))
        pytest.fail(f"day {seed}: {fuzz.play(core, seed, moves)}", pytrace=False)


def test_random_events_and_failures_break_no_law(core: CoreFactory) -> None:
    run(core, examples=30, steps=30)


@pytest.mark.slow
def test_days_like_any_other_break_no_law(core: CoreFactory) -> None:
    live(core, days=60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_long_runs_of_random_events_and_failures_break_no_law(core: CoreFactory) -> None:
    run(core, examples=250, steps=60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_days_break_no_law(core: CoreFactory) -> None:
    live(core, days=1000, first=1000)
