"""Which option answers, by event lists: no clock, no manager."""

from __future__ import annotations

from typing import Any

import pytest

from taskrouter import routing
from taskrouter.routing import RULES, Candidate, Fault, Refused, Request, Routing, Try, Wait
from taskrouter.verbs import Passed, Why

NEAR = Candidate("t/near", "near")
FAR = Candidate("t/far", "far", "acme", max_retries=2)
CLOUD = Candidate("t/cloud", "cloud", "other")


def cold(start_s: float = 0.0) -> Candidate:
    return Candidate("t/near", "near", ready=False, start_s=start_s)


def tried(decision: Any) -> str:
    assert isinstance(decision, Try), decision
    return decision.candidate.option


def whys(decision: Any) -> list[Why]:
    assert isinstance(decision, Refused), decision
    return [each.why for each in decision.passed]


def fail(core: Routing, candidate: Candidate, now: float, *, times: int = 1, fault: Fault = Fault.BROKEN) -> None:
    """So many requests to this option alone, each of which it fails."""
    for _ in range(times):
        way = Request(now + 100)
        assert tried(core.decide(way, [candidate], now=now)) == candidate.option
        core.failed(way, fault, "it broke", now=now)


def test_the_selected_option_answers_while_it_can() -> None:
    core, way = Routing(), Request(10)
    decision = core.decide(way, [NEAR, FAR], now=0)
    assert (tried(decision), way.passed) == ("near", ())
    core.answered(way, now=1)
    assert way.over


def test_options_are_tried_in_order_and_every_reason_is_kept() -> None:
    core, way = Routing(), Request(10)
    barred = Candidate("t/big", "big", barred=Passed("big", Why.CANT_FIT, "too large"))
    assert tried(core.decide(way, [barred, NEAR, CLOUD], now=0)) == "near"
    assert core.failed(way, Fault.BROKEN, "it broke", now=0)
    assert tried(core.decide(way, [barred, NEAR, CLOUD], now=0)) == "cloud"
    assert [each.option for each in way.passed] == ["big", "near"]
    assert core.failed(way, Fault.TIMEOUT, "too slow", now=0)
    decision = core.decide(way, [barred, NEAR, CLOUD], now=0)
    assert whys(decision) == [Why.CANT_FIT, Why.FAILED, Why.TIMEOUT]


@pytest.mark.parametrize("fault", [Fault.BAD_REQUEST, Fault.FINAL])
def test_a_bad_request_is_asked_nowhere_else_and_says_nothing_of_the_option(fault: Fault) -> None:
    core = Routing()
    for _ in range(50):
        way = Request(10)
        assert tried(core.decide(way, [NEAR, FAR], now=0)) == "near"
        assert not core.failed(way, fault, "no such role", now=0)
        assert way.over


def test_what_could_start_only_after_the_deadline_is_passed_over_and_loaded_for_others() -> None:
    core, way = Routing(), Request(10)
    decision = core.decide(way, [cold(start_s=30), FAR], now=0)
    assert (tried(decision), decision.warm) == ("far", True)  # type: ignore[union-attr]
    assert [each.why for each in way.passed] == [Why.TOO_SLOW]
    decision = core.decide(Request(40), [cold(start_s=30), FAR], now=0)
    assert tried(decision) == "near"


def test_a_cold_option_leaves_the_next_one_time_to_start() -> None:
    decision = Routing().decide(Request(10), [cold(), Candidate("t/b", "b", ready=False, start_s=4)], now=0)
    assert isinstance(decision, Try)
    assert decision.ready_by == 6
    alone = Routing().decide(Request(10), [cold()], now=0)
    assert isinstance(alone, Try)
    assert alone.ready_by == 10


def test_when_cold_fallback_takes_the_next_ready_option_and_waits_where_there_is_none() -> None:
    decision = Routing().decide(Request(10, "fallback"), [cold(), FAR], now=0)
    assert (tried(decision), decision.warm) == ("far", True)  # type: ignore[union-attr]
    other = Candidate("t/b", "b", ready=False)
    assert tried(Routing().decide(Request(10, "fallback"), [cold(), other], now=0)) == "near"
    way = Request(10, "fallback")
    assert tried(Routing().decide(way, [cold(), other, FAR, Candidate("t/c", "c", ready=False)], now=0)) == "far"
    assert [(each.option, each.why) for each in way.passed] == [("near", Why.COLD), ("b", Why.COLD)]
    assert tried(Routing().decide(Request(10, "fallback"), [NEAR, FAR], now=0)) == "near"


def test_when_cold_fail_refuses_at_once() -> None:
    decision = Routing().decide(Request(10, "fail"), [cold(start_s=5), FAR], now=0)
    assert isinstance(decision, Refused)
    assert decision.cold
    assert (decision.passed[0].why, decision.passed[0].retry_after_s) == (Why.COLD, 5)


def test_the_last_option_is_asked_again_after_growing_pauses_as_often_as_it_may() -> None:
    core, way, now, waits = Routing(), Request(100), 0.0, []
    for _ in range(3):
        assert tried(core.decide(way, [FAR], now=now)) == "far"
        assert core.failed(way, Fault.OVERLOAD, "529", now=now)
        decision = core.decide(way, [FAR], now=now)
        if isinstance(decision, Wait):
            waits.append(decision.until - now)
            now = decision.until
    assert waits == [routing.PAUSE_S, 2 * routing.PAUSE_S]
    assert whys(decision) == [Why.OVERLOADED]


def test_retry_after_is_waited_for_within_the_deadline_only() -> None:
    core, way = Routing(), Request(10)
    core.decide(way, [FAR], now=0)
    core.failed(way, Fault.QUOTA, "429", now=0, retry_after_s=7)
    assert core.decide(way, [FAR], now=0) == Wait(7)
    assert tried(core.decide(way, [FAR], now=7)) == "far"
    core.failed(way, Fault.QUOTA, "429", now=7, retry_after_s=7)
    assert whys(core.decide(way, [FAR], now=7)) == [Why.RATE_LIMIT]


def test_who_was_told_to_come_back_at_one_instant_comes_a_little_later_each_but_before_the_deadline() -> None:
    core = Routing()
    for deadline, jitter, at in [(100, 0.0, 7), (100, 0.5, 7.35), (100, 1.0, 7.7), (7.2, 1.0, 7.2)]:
        way = Request(deadline)
        core.decide(way, [FAR], now=0)
        core.failed(way, Fault.OVERLOAD, "529", now=0, retry_after_s=7, jitter=jitter)
        decision = core.decide(way, [FAR], now=0)
        assert isinstance(decision, Wait)
        assert decision.until == pytest.approx(at)
        core.left(way)
        core.forget("t/far", "acme")
    way = Request(100)
    core.decide(way, [FAR], now=0)
    core.failed(way, Fault.OVERLOAD, "529", now=0, retry_after_s=60, jitter=1.0)
    assert core.decide(way, [FAR], now=0) == Wait(61)


def test_a_rate_limit_is_the_providers_and_ends_when_it_said() -> None:
    core, way = Routing(), Request(10)
    core.decide(way, [FAR, CLOUD], now=0)
    core.failed(way, Fault.QUOTA, "429", now=0, retry_after_s=30)
    assert tried(core.decide(way, [FAR, CLOUD], now=0)) == "cloud"
    core.answered(way, now=1)
    sibling = Candidate("u/far", "far", "acme")
    refused = core.decide(Request(10), [sibling], now=1)
    assert whys(refused) == [Why.RATE_LIMIT]
    assert refused.passed[0].retry_after_s == 29  # type: ignore[union-attr]
    assert tried(core.decide(Request(50), [sibling], now=30)) == "far"


def test_a_limit_of_one_account_is_not_that_of_another_with_the_same_provider() -> None:
    here = Candidate("t/here", "here", "openai", account="openai https://here.example")
    there = Candidate("t/there", "there", "openai", account="openai https://there.example")
    core, way = Routing(), Request(10)
    core.decide(way, [here, there], now=0)
    core.failed(way, Fault.QUOTA, "429", now=0, retry_after_s=30)
    assert tried(core.decide(way, [here, there], now=0)) == "there"
    core.left(way)
    core.broke("t/there", there.limited_as, Fault.QUOTA, "429", now=1, retry_after_s=30)
    assert whys(core.decide(Request(10), [here, there], now=1)) == [Why.RATE_LIMIT, Why.RATE_LIMIT]
    core.forget("t/here", here.limited_as)
    assert tried(core.decide(Request(10), [there, here], now=1)) == "here"


def test_a_breaker_opens_after_failures_in_a_row_and_one_probe_closes_it() -> None:
    core = Routing()
    fail(core, NEAR, 0, times=routing.CONSECUTIVE)
    assert whys(core.decide(Request(100), [NEAR], now=1)) == [Why.BREAKER]
    probe, now = Request(100), routing.OPEN_S
    assert tried(core.decide(probe, [NEAR, CLOUD], now=now)) == "near"
    assert tried(core.decide(Request(100), [NEAR, CLOUD], now=now)) == "cloud"  # one probe at a time
    core.answered(probe, now=now)
    assert tried(core.decide(Request(100), [NEAR, CLOUD], now=now)) == "near"


def test_a_failed_probe_doubles_the_pause_and_one_whose_caller_left_hands_it_on() -> None:
    core = Routing()
    fail(core, NEAR, 0, times=routing.CONSECUTIVE)
    now = routing.OPEN_S
    fail(core, NEAR, now)
    assert whys(core.decide(Request(100), [NEAR], now=now + routing.OPEN_S)) == [Why.BREAKER]
    now += 2 * routing.OPEN_S
    left = Request(100)
    assert tried(core.decide(left, [NEAR], now=now)) == "near"
    core.left(left)
    assert tried(core.decide(Request(100), [NEAR], now=now)) == "near"


def test_a_probe_that_meets_a_bad_request_hands_the_probe_on() -> None:
    core = Routing()
    fail(core, NEAR, 0, times=routing.CONSECUTIVE)
    fail(core, NEAR, routing.OPEN_S, fault=Fault.BAD_REQUEST)
    assert tried(core.decide(Request(100), [NEAR], now=routing.OPEN_S)) == "near"


def test_a_breaker_opens_where_half_of_the_latest_calls_failed() -> None:
    core, now = Routing(), 0.0
    fail(core, NEAR, now)
    for _ in range(routing.LEAST // 2):
        way = Request(now + 100)
        core.decide(way, [NEAR], now=now)
        core.answered(way, now=now)
        fail(core, NEAR, now)
    assert whys(core.decide(Request(now + 100), [NEAR], now=now)) == [Why.BREAKER]


def test_failures_that_are_old_do_not_count() -> None:
    core = Routing()
    for place in range(20):
        now = place * routing.WINDOW_S * 2
        fail(core, NEAR, now)
        way = Request(now + 10)
        assert tried(core.decide(way, [NEAR], now=now)) == "near"
        core.answered(way, now=now)


def test_a_refused_key_opens_the_breaker_at_once() -> None:
    core = Routing()
    fail(core, FAR, 0, fault=Fault.AUTH)
    assert whys(core.decide(Request(100), [FAR], now=0)) == [Why.BREAKER]


def test_answers_that_break_off_open_the_breaker_too() -> None:
    core = Routing()
    for _ in range(routing.LEAST):
        way = Request(100)
        assert isinstance(core.decide(way, [NEAR], now=0), Try)
        core.answered(way, now=0)
        core.broke("t/near", None, Fault.BROKEN, "cut", now=0)
        if whys_or_none(core.decide(probe := Request(100), [NEAR], now=0)):
            break
        core.left(probe)
    else:
        raise AssertionError("half of its answers broke off, and the breaker is closed")


def whys_or_none(decision: Any) -> list[Why]:
    return whys(decision) if isinstance(decision, Refused) else []


def test_every_fault_has_a_rule() -> None:
    assert RULES.keys() == set(Fault)


def test_a_clock_that_went_back_keeps_no_breaker_open_for_longer() -> None:
    core = Routing()
    fail(core, NEAR, 1000, times=routing.CONSECUTIVE)
    refused = core.decide(Request(100), [NEAR], now=0)
    assert isinstance(refused, Refused)
    assert refused.passed[0].retry_after_s == routing.OPEN_S


def test_what_starts_at_once_is_in_time_although_the_clock_is_a_little_late() -> None:
    core, way = Routing(), Request(10)
    assert tried(core.decide(way, [cold(), FAR], now=0)) == "near"
    core.failed(way, Fault.NOT_READY, "not ready in time", now=10.0001)
    assert tried(core.decide(way, [cold(), FAR], now=10.0001)) == "far"


def test_a_longer_limit_is_not_overwritten_by_a_shorter_one() -> None:
    core, first, second = Routing(), Request(100), Request(100)
    for way in (first, second):
        assert tried(core.decide(way, [FAR], now=0)) == "far"
    core.failed(first, Fault.QUOTA, "429", now=0, retry_after_s=60)
    core.failed(second, Fault.QUOTA, "429", now=0)
    assert whys(core.decide(Request(10), [FAR], now=1)) == [Why.RATE_LIMIT]


def test_a_sleeping_retry_waits_for_a_limit_that_others_met_meanwhile() -> None:
    core, first, second = Routing(), Request(100), Request(100)
    for way in (first, second):
        assert tried(core.decide(way, [FAR], now=0)) == "far"
    core.failed(first, Fault.QUOTA, "429", now=0)
    decision = core.decide(first, [FAR], now=0)
    assert isinstance(decision, Wait)
    core.failed(second, Fault.QUOTA, "429", now=0.2, retry_after_s=5)
    later = core.decide(first, [FAR], now=decision.until)
    assert isinstance(later, Wait)
    assert later.until == pytest.approx(5.2)
    assert tried(core.decide(first, [FAR], now=5.3)) == "far"


def test_when_cold_fail_refuses_whether_or_not_the_load_was_measured() -> None:
    for deadline in (20, 40):
        decision = Routing().decide(Request(deadline, "fail"), [cold(start_s=30), FAR], now=0)
        assert isinstance(decision, Refused)
        assert decision.cold


def test_a_try_that_was_put_back_is_decided_anew_and_hands_its_probe_on() -> None:
    core = Routing()
    fail(core, NEAR, 0, times=routing.CONSECUTIVE)
    way = Request(100)
    assert tried(core.decide(way, [NEAR], now=routing.OPEN_S)) == "near"
    core.put_back(way)
    assert not way.over
    assert tried(core.decide(way, [NEAR], now=routing.OPEN_S)) == "near"


def test_a_connection_that_broke_in_mid_answer_is_not_asked_again() -> None:
    core, way = Routing(), Request(100)
    core.decide(way, [FAR], now=0)
    core.failed(way, Fault.BROKE_OFF, "broke", now=0)
    assert whys(core.decide(way, [FAR], now=0)) == [Why.CONNECTION]


PACED = Candidate("t/far", "far", "acme", per_minute=2)
MINUTE = 60 + routing.LATE_S
"""What lies between two requests of one slot, so that a late one is still within the minute's limit."""


def test_a_written_limit_is_kept_and_who_comes_later_waits_for_the_next_free_instant() -> None:
    core = Routing()
    for now in (0, 1):
        assert tried(core.decide(Request(100), [PACED], now=now)) == "far"
    third, fourth, fifth = Request(100), Request(100), Request(100)
    assert [core.decide(way, [PACED], now=2) for way in (third, fourth)] == [Wait(MINUTE), Wait(MINUTE + 1)]
    assert whys(core.decide(fifth, [PACED], now=2)) == [Why.RATE_LIMIT]  # the next one is at 122
    assert third.booked == {"acme": MINUTE}
    assert core.decide(third, [PACED], now=30) == Wait(MINUTE)
    core.left(third)  # its instant is another's, though a later one is booked
    assert core.decide(Request(100), [PACED], now=40) == Wait(MINUTE)
    assert tried(core.decide(fourth, [PACED], now=MINUTE + 1)) == "far"


def test_a_written_limit_passes_requests_on_to_the_next_option() -> None:
    core = Routing()
    for _ in range(2):
        core.decide(Request(100), [PACED], now=0)
    way = Request(100)
    assert tried(core.decide(way, [PACED, CLOUD], now=20)) == "cloud"
    (passed,) = way.passed
    assert (passed.why, passed.retry_after_s) == (Why.RATE_LIMIT, MINUTE - 20)
    assert passed.text == "all of its 2 requests a minute were sent (providers.acme.requests_per_minute)"
    assert way.booked == {}
    refused = core.decide(Request(30), [PACED], now=20)
    assert whys(refused) == [Why.RATE_LIMIT]


def test_a_lease_is_no_request_and_what_was_not_sent_does_not_count() -> None:
    core = Routing()
    for _ in range(9):
        assert tried(core.decide(Request(100, asks=False), [PACED], now=0)) == "far"
    for now in range(9):
        way = Request(100)
        assert tried(core.decide(way, [PACED], now=now)) == "far"
        core.put_back(way)
    assert "2 a minute" in repr(core._paces["acme"])


def test_an_instant_that_is_long_past_is_not_used_any_more() -> None:
    core, way = Routing(), Request(1000)
    for _ in range(2):
        core.decide(Request(100), [PACED], now=0)
    assert core.decide(way, [PACED], now=10) == Wait(MINUTE)
    # While it was away, one was sent, and one waits.
    assert tried(core.decide(Request(1000), [PACED], now=70)) == "far"
    assert core.decide(Request(1000), [PACED], now=70) == Wait(2 * MINUTE)
    assert core.decide(way, [PACED], now=90) == Wait(70 + MINUTE)


def test_what_is_free_sooner_is_waited_for_before_what_may_be_asked_again_later() -> None:
    core = Routing()
    core.decide(Request(100), [PACED], now=0)
    core.decide(Request(100), [PACED], now=0)
    slow = Candidate("t/slow", "slow", "other", max_retries=2)
    way = Request(300)
    assert tried(core.decide(way, [slow, PACED], now=58)) == "slow"
    core.failed(way, Fault.QUOTA, "429", now=58, retry_after_s=200)
    assert core.decide(way, [slow, PACED], now=58) == Wait(MINUTE)
    assert tried(core.decide(way, [slow, PACED], now=MINUTE)) == "far"


def test_what_may_be_asked_again_sooner_is_waited_for_and_nothing_booked() -> None:
    core = Routing()
    for _ in range(2):
        core.decide(Request(100), [PACED], now=0)
    slow, way = Candidate("t/slow", "slow", "other", max_retries=2), Request(300)
    core.decide(way, [slow, PACED], now=10)
    core.failed(way, Fault.QUOTA, "429", now=10, retry_after_s=5)
    assert core.decide(way, [slow, PACED], now=10) == Wait(15)
    assert way.booked == {}
