"""Made traces: as many requests as were asked for, in order, the same each time; and what the kinds are like."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from taskrouter.errors import BadInput
from taskrouter.simulate import KINDS, SHIPPED, synthetic
from taskrouter.simulate.synthetic import SHIFTS, STORM_EACH, STORM_S

TASKS = ("a", "b", "c", "d")


@pytest.mark.parametrize("kind", sorted({*KINDS, *SHIPPED}))
@pytest.mark.parametrize("count", [1, 7, 500])
def test_every_kind_makes_just_so_many_requests_in_order_and_the_same_again(kind: str, count: int) -> None:
    made = synthetic(kind, TASKS, requests=count, seed=3)
    assert len(made) == count
    assert all(one.at <= other.at for one, other in pairwise(made))
    assert {request.task for request in made} <= set(TASKS)
    assert made == synthetic(kind, TASKS, requests=count, seed=3)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_one_task_is_enough_and_a_use_may_take_no_time(kind: str) -> None:
    made = synthetic(kind, ("a",), requests=50, hold_s=0.0)
    assert {(request.task, request.hold_s) for request in made} == {("a", 0.0)}


def test_a_steeper_law_makes_fewer_tasks_popular() -> None:
    def most(kind: str) -> int:
        return Counter(r.task for r in synthetic(kind, TASKS, requests=2000)).most_common(1)[0][1]

    assert most("zipf:0") < 600 < most("zipf:1.1") < most("zipf:3")


def test_requests_come_at_the_rate_that_was_asked_for() -> None:
    for kind in ("zipf:1.1", "burst:1.1", "cycle"):
        made = synthetic(kind, TASKS, requests=20_000, rate=5.0)
        assert 20_000 / 5 * 0.8 < made[-1].at < 20_000 / 5 * 1.2, kind
        assert 0.45 < sum(request.hold_s for request in made) / 20_000 < 0.55


def test_popularity_shifts() -> None:
    made = synthetic("shift:2", TASKS, requests=SHIFTS * 200)
    first = {Counter(r.task for r in made[n : n + 200]).most_common(1)[0][0] for n in range(0, len(made), 200)}
    assert len(first) > 1


def test_the_adversarial_kinds_are_what_they_say() -> None:
    assert [r.task for r in synthetic("alternate", TASKS, requests=4)] == ["a", "d", "a", "d"]
    storm = synthetic("storm", TASKS, requests=2 * 4 * STORM_EACH)
    assert Counter(r.at for r in storm) == {0.0: 4 * STORM_EACH, STORM_S: 4 * STORM_EACH}
    rare = [r.at for r in synthetic("rare", TASKS, requests=1000) if r.task == "d"]
    assert all(60 <= later - earlier <= 70 for earlier, later in pairwise(rare))
    huge = [r.at for r in synthetic("huge", TASKS, requests=1000) if r.task == "d"]
    assert huge[:3] == [100.0, 200.0, 300.0]


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("", "there is no ''"),
        ("waves", "there are zipf"),
        ("zipf:", "the skew is a number"),
        ("zipf:x", "the skew is a number"),
        ("zipf:nan", "the skew is a number"),
        ("zipf:-1", "the skew is a number"),
        ("zipf:21", "the skew is a number"),
        ("cycle:2", "cycle takes no number"),
    ],
)
def test_a_kind_that_there_is_not_is_refused(kind: str, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        synthetic(kind, TASKS, requests=1)
