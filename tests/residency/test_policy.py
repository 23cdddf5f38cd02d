"""``cost_aware``: the set that suffices and is worth least, and what a model is worth."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskrouter.residency import Residency
from taskrouter.residency.actions import Load, Preflight, Unload
from taskrouter.residency.books import Settings
from taskrouter.residency.events import Acquire, Event, Loaded, Preflighted, Release, Unloaded
from taskrouter.residency.policy import EXACT, by_rate, cheapest, worth_at
from taskrouter.residency.records import USES, Model
from taskrouter.types import CPU, GIB, DeviceId, DeviceSpec, Footprint, ModelKey, ModelSpec, TicketId, Traits

from .stage import GPU0, GPU1, spec

Entry = tuple[dict[DeviceId, int], float]
held = st.dictionaries(st.sampled_from((GPU0, GPU1, CPU)), st.integers(0, 9))
pools = st.lists(st.tuples(held, st.floats(0, 8)), max_size=EXACT)
lacks = st.dictionaries(st.sampled_from((GPU0, GPU1, CPU)), st.integers(1, 20))


def made(pool: list[Entry]) -> dict[Model, float]:
    found = {}
    for number, (charges, worth) in enumerate(pool):
        model = Model(spec(f"m{number}", 1))
        model.charges = charges
        found[model] = worth
    return found


def rated(worths: dict[Model, float], lack: dict[DeviceId, int]) -> list[Model]:
    """The models as ``by_rate`` would have them, were these their worths."""

    def rate(model: Model) -> float:
        share = sum(min(model.charges.get(device, 0), amount) / amount for device, amount in lack.items())
        return worths[model] / share if share else float("inf")

    return sorted(worths, key=rate)


def suffices(chosen: tuple[Model, ...] | list[Model], lack: dict[DeviceId, int]) -> bool:
    return all(sum(model.charges.get(device, 0) for model in chosen) >= amount for device, amount in lack.items())


@given(pools, lacks)
def test_no_sufficient_set_is_worth_less(pool: list[Entry], lack: dict[DeviceId, int]) -> None:
    worths = made(pool)
    missing = dict(lack)
    chosen = cheapest(iter(rated(worths, lack)), missing, worths.__getitem__)
    assert len(set(chosen)) == len(chosen)
    assert (not missing) == suffices(list(worths), lack)
    if missing:
        return
    assert suffices(chosen, lack)
    every = chain.from_iterable(combinations(worths, count) for count in range(len(worths) + 1))
    least = min(sum(worths[model] for model in some) for some in every if suffices(some, lack))
    assert sum(worths[model] for model in chosen) == pytest.approx(least)
    assert chosen == cheapest(iter(rated(worths, lack)), dict(lack), worths.__getitem__), "the same each time"


@pytest.mark.slow
@given(st.lists(st.tuples(held, st.floats(0, 8)), min_size=EXACT + 1, max_size=40), lacks)
def test_of_many_a_sufficient_set_is_found_whenever_there_is_one(pool: list[Entry], lack: dict[DeviceId, int]) -> None:
    worths = made(pool)
    missing = dict(lack)
    chosen = cheapest(iter(rated(worths, lack)), missing, worths.__getitem__)
    assert (not missing) == suffices(list(worths), lack)
    assert missing or suffices(chosen, lack)


@given(st.lists(st.tuples(held, st.lists(st.floats(0, 99), max_size=3)), max_size=9), lacks)
def test_who_is_cheapest_for_what_it_frees_is_looked_at_first(
    pool: list[tuple[dict[DeviceId, int], list[float]]], lack: dict[DeviceId, int]
) -> None:
    victims = list(made([(charges, 0.0) for charges, _ in pool]))
    for model, (_, instants) in zip(victims, pool, strict=True):
        for instant in sorted(instants):
            model.use(instant)

    worths = {model: worth_at(model, 100.0) for model in victims}
    helping = [model for model in rated(worths, lack) if any(model.charges.get(device) for device in lack)]
    assert by_rate(victims, lack, 100.0) == helping


def test_who_is_cheapest_for_the_share_it_frees_of_all_that_is_missing_goes_first() -> None:
    both, half, none = made([({GPU0: 4, GPU1: 4}, 0.0), ({GPU0: 8}, 0.0), ({CPU: 8}, 0.0)])
    for model in (both, half, none):
        model.measured_load(10.0)
        model.use(90.0)
    assert by_rate([none, half, both], {GPU0: 4, GPU1: 4}, 100.0) == [both, half]


def test_two_that_are_worth_less_together_go_instead_of_the_first_that_were_enough() -> None:
    worths = made([({GPU0: 3}, 1.0), ({GPU0: 9}, 6.0), ({GPU0: 6}, 4.5), ({GPU1: 9}, 0.0)])
    small, large, middle, _ = worths
    missing = {GPU0: 9}
    assert cheapest(iter(worths), missing, worths.__getitem__) == [small, middle]
    assert missing == {}
    assert worths[small] + worths[middle] < worths[large]


def test_of_more_than_can_be_tried_out_those_that_were_enough_are_weighed_against_the_cheapest() -> None:
    """Eleven have to be looked at until there is enough; what is worth least is found among the ten best of them."""
    worths = made([*(({GPU0: 2}, 0.5) for _ in range(EXACT)), ({GPU0: 21}, 9.0)])
    large = list(worths)[-1]
    assert cheapest(iter(worths), {GPU0: 21}, worths.__getitem__) == [large]
    worths = made([*(({GPU0: 2}, 0.5) for _ in range(EXACT)), ({GPU0: 17}, 9.0)])
    assert cheapest(iter(worths), {GPU0: 18}, worths.__getitem__) == list(worths)[: EXACT - 1]


def test_where_nothing_is_missing_nobody_goes() -> None:
    worths = made([({GPU0: 3}, 1.0)])
    assert by_rate(worths, {}, 100.0) == []
    assert cheapest(iter(worths), {}, worths.__getitem__) == []


def used(*instants: float, load_s: float = 10.0) -> Model:
    model = Model(spec("m", 1))
    model.measured_load(load_s)
    for instant in instants:
        model.use(instant)
    return model


def test_a_model_is_worth_its_return_by_the_rate_of_its_latest_uses() -> None:
    assert worth_at(used(), 100.0) == 0.0
    assert worth_at(used(90.0), 100.0) == 10.0 * 1 / (10 + 10)
    assert worth_at(used(60.0, 80.0, 90.0), 100.0) == 10.0 * 3 / (40 + 10)
    assert worth_at(used(60.0, load_s=30.0), 100.0) > worth_at(used(60.0, load_s=3.0), 100.0)
    steady = used(*(float(10 * place) for place in range(20)))
    assert len(steady.uses) == USES
    assert worth_at(steady, 200.0) == 10.0 * 8 / (80 + 10)
    assert worth_at(steady, 2000.0) < 0.1 * worth_at(steady, 200.0), "it ages by itself"


def house(policy: str, sizes: dict[str, int], load_s: dict[str, float], **priorities: int) -> Residency:
    specs = [
        ModelSpec(
            ModelKey(name), name, Footprint(size * GIB), ((GPU0,),), traits=Traits(start_s=load_s[name]),
            priority=priorities.get(name, 0),
        )
        for name, size in sizes.items()
    ]  # fmt: skip
    return Residency([DeviceSpec(GPU0, 10 * GIB, budget=10 * GIB)], specs, Settings(policy=policy, min_residency_s=0))


def use(core: Residency, name: str, now: float) -> set[str]:
    """One call, whose load takes as long as it is said to; who was unloaded for it."""
    ticket = TicketId(int(now))
    gone: set[str] = set()
    todo: list[Event] = [Acquire(ticket, ModelKey(name), 1e9)]
    while todo:
        event = todo.pop(0)
        now += LOAD_S[name] if isinstance(event, Loaded) else 0.0
        for action in core.handle(event, now=now):
            match action:
                case Preflight(key, generation):
                    todo.append(Preflighted(key, generation))
                case Unload(key, generation):
                    gone.add(key)
                    todo.append(Unloaded(key, generation))
                case Load(key, generation):
                    todo.append(Loaded(key, generation))
    core.handle(Release(ticket), now=now)
    core.check()
    return gone


SIZES = {"hot": 4, "slow": 4, "last": 2, "new": 6}
LOAD_S = {"hot": 5.0, "slow": 60.0, "last": 2.0, "new": 5.0}


@pytest.mark.parametrize(("policy", "gone"), [("lru", {"slow", "hot"}), ("cost_aware", {"last", "hot"})])
def test_what_is_quick_to_return_goes_before_what_was_used_longest_ago(policy: str, gone: set[str]) -> None:
    core = house(policy, SIZES, LOAD_S)
    for place, name in enumerate(["slow", "slow", "hot", "last"], 1):
        assert use(core, name, 100 * place) == set()
    assert use(core, "new", 1000) == gone


def test_a_higher_priority_outweighs_any_use() -> None:
    core = house("cost_aware", SIZES, LOAD_S, last=1, hot=1)
    for place, name in enumerate(["slow", "slow", "slow", "hot", "last"], 1):
        use(core, name, 100 * place)
    assert use(core, "new", 1000) == {"slow", "last"}
