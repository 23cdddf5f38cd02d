"""Every fault seeded into the core is noticed by the harnesses that claim to notice it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module

import pytest

from . import fuzz, test_cases, test_traffic
from .account import CoreFactory
from .mutants import MUTANTS, Mutant, compiled, grow, sources

Harness = Callable[[CoreFactory], str | None]


def stories_in(*modules: object) -> Iterator[Callable[[CoreFactory], None]]:
    """The test functions that take nothing but a core."""
    for module in modules:
        for name, test in vars(module).items():
            if name.startswith("test_") and list(inspect.signature(test).parameters) == ["core"]:
                yield test


def first_failure(core: CoreFactory, tests: Iterator[Callable[[CoreFactory], None]]) -> str | None:
    for test in tests:
        try:
            test(core)
        except Exception:  # a mutated core may fail in any way
            return test.__name__
    return None


def cases(core: CoreFactory) -> str | None:
    slow = test_cases.test_ten_thousand_callers_of_one_cold_model_are_one_load_and_one_grant
    return first_failure(core, (test for test in stories_in(*CASES) if test is not slow))


def days(core: CoreFactory) -> str | None:
    caught = fuzz.hunt(core, days=700)
    return f"day {caught[0]}: {str(caught[1]).splitlines()[0]}" if caught else None


def traffic(core: CoreFactory) -> str | None:
    quick = (test for test in stories_in(test_traffic) if "two_hundred_users" not in test.__name__)
    return first_failure(core, quick)


HARNESSES: dict[str, Harness] = {"cases": cases, "days": days, "traffic": traffic}

CASES = tuple(
    import_module(f".test_{name}", __package__)
    for name in (
        "cases", "cases_asleep", "cases_books", "cases_corners", "cases_crossed", "cases_failing", "cases_people",
        "cases_rare", "configure", "sleep_cases",
    )
)  # fmt: skip

CLAIMS = [
    pytest.param(mutant, name, id=f"{mutant.name}: {name}") for mutant in MUTANTS for name in mutant.caught_by.split()
]


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "harness"), CLAIMS)
def test_a_seeded_fault_is_noticed(mutant: Mutant, harness: str) -> None:
    assert HARNESSES[harness](grow(mutant)) is not None


def test_every_fault_is_claimed_by_a_harness_and_every_harness_claims_some() -> None:
    assert len(MUTANTS) >= 12
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        assert mutant.caught_by, mutant.name
        assert set(mutant.caught_by.split()) <= set(HARNESSES), mutant.name
    assert {name for mutant in MUTANTS for name in mutant.caught_by.split()} == set(HARNESSES)


def test_the_faults_still_meet_the_text_of_the_core() -> None:
    for mutant in MUTANTS:
        grow(mutant)


def test_a_fault_whose_text_is_gone_fails_loudly() -> None:
    with pytest.raises(LookupError, match="found 0 times"):
        grow(Mutant("gone", "this text is nowhere in the core", "", "cases"))


@pytest.mark.slow
def test_the_core_compiled_the_same_way_without_a_fault_passes(core: CoreFactory) -> None:
    assert cases(compiled(sources())) is None
    assert fuzz.hunt(compiled(sources()), days=10) is None
