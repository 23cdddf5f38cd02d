"""Which option answers, by event lists of what is seldom met: crossed failures, limits met twice, healing by hand."""

from __future__ import annotations

import pytest

from taskrouter import routing
from taskrouter.routing import Candidate, Fault, Request, Routing, Try, Wait
from taskrouter.routing.breaker import Breaker
from taskrouter.routing.pace import WINDOW_S, Pace
from taskrouter.verbs import Passed, Why

from .test_routing import CLOUD, FAR, NEAR, PACED, fail, tried, whys

BUSY = Candidate("t/near", "near", start_s=2.0)


def test_who_fails_late_while_the_breaker_is_open_already_prolongs_nothing() -> None:
    core = Routing()
    ways = [Request(100) for _ in range(routing.CONSECUTIVE + 1)]
    for way in ways:
        assert tried(core.decide(way, [NEAR], now=0)) == "near"
    for way in ways[:-1]:
        core.failed(way, Fault.BROKEN, "it broke", now=0)
    core.failed(ways[-1], Fault.BROKEN, "it broke", now=routing.OPEN_S - 1)
    assert tried(core.decide(Request(100), [NEAR], now=routing.OPEN_S)) == "near"


def test_what_was_taken_out_of_use_meanwhile_is_not_waited_for() -> None:
    core, way = Routing(), Request(100)
    assert tried(core.decide(way, [FAR], now=0)) == "far"
    core.failed(way, Fault.OVERLOAD, "529", now=0)
    assert core.decide(way, [FAR], now=0) == Wait(routing.PAUSE_S)
    barred = Candidate("t/far", "far", "acme", max_retries=2, barred=Passed("far", Why.AUTH, "no key"))
    assert whys(core.decide(way, [barred], now=0.1)) == [Why.OVERLOADED]
    assert way.over


def test_no_instant_is_booked_at_a_provider_that_says_it_is_limited() -> None:
    core, other = Routing(), Request(100)
    assert tried(core.decide(other, [PACED], now=0)) == "far"
    core.failed(other, Fault.QUOTA, "429", now=0, retry_after_s=500)
    way = Request(100)
    assert whys(core.decide(way, [PACED], now=1)) == [Why.RATE_LIMIT]
    assert way.booked == {}


def test_the_queue_of_a_busy_option_may_use_half_of_the_time_where_another_could_answer() -> None:
    decision = Routing().decide(Request(10), [BUSY, CLOUD], now=0)
    assert isinstance(decision, Try)
    assert (decision.candidate.option, decision.ready_by) == ("near", 5)
    alone = Routing().decide(Request(10), [BUSY], now=0)
    assert isinstance(alone, Try)
    assert alone.ready_by == 10


def test_an_answer_that_breaks_off_at_a_limit_limits_the_provider_and_not_the_option() -> None:
    core = Routing()
    for _ in range(2 * routing.LEAST):
        core.broke("t/far", "acme", Fault.QUOTA, "429", now=0, retry_after_s=7)
    refused = core.decide(Request(100), [FAR], now=1)
    assert whys(refused) == [Why.RATE_LIMIT]
    assert tried(core.decide(Request(100), [FAR], now=7)) == "far"


def test_what_was_mended_by_hand_is_asked_at_once() -> None:
    core = Routing()
    fail(core, FAR, 0, fault=Fault.AUTH)
    fail(core, CLOUD, 0, fault=Fault.QUOTA)
    assert whys(core.decide(Request(100), [FAR, CLOUD], now=0)) == [Why.BREAKER, Why.RATE_LIMIT]
    core.forget("t/far", "acme")
    assert tried(core.decide(Request(100), [FAR, CLOUD], now=0)) == "far"
    core.forget("t/cloud", "other")
    assert tried(core.decide(Request(100), [CLOUD], now=0)) == "cloud"
    core.forget("t/near", None)  # which was never unwell


def test_putting_back_what_is_not_being_tried_changes_nothing() -> None:
    core, way = Routing(), Request(10)
    core.put_back(way)
    assert not way.over
    assert tried(core.decide(way, [NEAR], now=0)) == "near"
    core.answered(way, now=1)
    core.put_back(way)
    assert way.over, "an answer isn't taken back"


def test_an_instant_given_back_twice_is_given_to_one() -> None:
    pace = Pace(1)
    assert [pace.take(0.0), pace.take(0.0)] == [0.0, WINDOW_S]
    pace.give_back(WINDOW_S)
    pace.give_back(WINDOW_S)
    assert [pace.take(1.0), pace.take(1.0)] == [WINDOW_S, 2 * WINDOW_S]
    pace.give_back(12345.0)  # nobody's
    assert pace.take(1.0) == 3 * WINDOW_S


def test_an_instant_given_back_and_long_past_bounds_nobody() -> None:
    pace = Pace(1)
    assert [pace.take(0.0), pace.take(0.0)] == [0.0, WINDOW_S]
    pace.give_back(WINDOW_S)
    later = 3 * WINDOW_S
    assert [pace.take(later), pace.take(later)] == [later, later + WINDOW_S]


def test_the_health_of_all_in_a_line() -> None:
    core = Routing()
    fail(core, NEAR, 0)
    assert repr(core) == "<Routing 0 breakers open, 0 accounts limited>"
    fail(core, NEAR, 0, times=routing.CONSECUTIVE - 1)
    fail(core, FAR, 0, fault=Fault.QUOTA)
    assert repr(core) == "<Routing 1 breakers open, 1 accounts limited>"


@pytest.mark.parametrize(("failures", "text"), [(0, "closed 0"), (1, "closed 1"), (routing.CONSECUTIVE, "open 5")])
def test_the_health_of_one_in_a_line(failures: int, text: str) -> None:
    breaker = Breaker()
    for _ in range(failures):
        breaker.failed(0.0, None, trips=False)
    assert repr(breaker) == f"<Breaker {text} in a row>"
