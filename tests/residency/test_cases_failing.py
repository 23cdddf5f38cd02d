"""Behaviours that must hold (giving up, failing), as event lists."""

from __future__ import annotations

import pytest

from taskrouter.residency import actions as act
from taskrouter.residency import events as ev
from taskrouter.residency.books import State
from taskrouter.types import ModelKey, Traits

from .account import Broken, CoreFactory
from .stage import GPU0, Stage, spec

A, B = ModelKey("a"), ModelKey("b")


# --- giving up --------------------------------------------------------------------------------------------------------


def test_giving_up_while_queued_causes_no_load_and_no_eviction(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    busy = world.ask("a")
    waiter = world.ask("b")
    assert world.tell(ev.GiveUp(waiter.ask.ticket)) == []
    assert world.done(busy) == []
    assert world.until(world.now + 500) == []


def test_giving_up_during_the_preflight_evicts_nobody(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    world.preflights_pass = False
    waiter = world.acquire(B)
    world.tell(ev.GiveUp(waiter.ask.ticket))
    world.preflight_ok(world.the("preflight", "b"))
    assert world.said == []


def test_the_preflight_comes_before_the_eviction_and_its_failure_evicts_nobody(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    world.preflights_pass = False
    world.acquire(B)
    assert world.said == ["Preflight b"]
    world.preflight_failed(world.the("preflight", "b"))
    assert world.said == ["Refuse b 2: preflight_failed"]
    assert world.state(A) is State.READY


def test_giving_up_while_loading_leaks_no_lease_and_the_load_goes_on(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    waiter = world.ask("a")
    assert world.tell(ev.GiveUp(waiter.ask.ticket)) == []
    assert world.loaded("a") == []
    assert world.core.status(A).leases == 0
    world.advance(100.0)
    world.ask("b")
    assert world.said == ["Unload a for b"]


def test_only_the_last_waiter_to_give_up_cancels_a_cancellable_load(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, traits=Traits(cancellable=True)))
    first, second = world.ask("a"), world.ask("a")
    assert world.tell(ev.GiveUp(first.ask.ticket)) == []
    assert world.tell(ev.GiveUp(second.ask.ticket)) == ["CancelLoad a"]
    world.load_cancelled(world.the("load", "a"))
    assert world.core.books(GPU0).free == 10
    assert world.state(A) is State.DISK


def test_a_cancelled_load_that_came_through_all_the_same_serves_the_next_caller(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, traits=Traits(cancellable=True)))
    waiter = world.ask("a")
    world.tell(ev.GiveUp(waiter.ask.ticket))
    world.acquire(A)
    world.load_ok(world.the("load", "a"))
    assert world.said == ["Grant a 2"]


def test_a_cancelled_load_starts_again_for_who_came_in_between(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, traits=Traits(cancellable=True)))
    waiter = world.ask("a")
    world.tell(ev.GiveUp(waiter.ask.ticket))
    world.acquire(A)
    world.load_cancelled(world.the("load", "a"))
    assert world.said == ["Load a"]
    assert world.loaded("a") == ["Grant a 2"]


def test_a_load_whose_waiters_were_refused_at_their_deadline_goes_on(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, traits=Traits(cancellable=True)))
    world.ask("a", 5.0)
    assert world.until(5.0) == ["Refuse a 1: deadline"]
    assert world.loaded("a", took=5.0) == []
    assert world.ask("a").live


def test_a_ticket_is_granted_at_exactly_its_deadline_and_refused_just_after(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    on_time = world.ask("a", 5.0)
    world.now = 5.0  # the load ends at the very instant, before the tick is sent
    world.load_ok(world.the("load", "a"))
    assert on_time.live
    late = Stage(core, spec("a", 8))
    late.ask("a", 5.0)
    late.now = 5.01
    late.load_ok(late.the("load", "a"))
    assert late.said == ["Refuse a 1: deadline"]


def test_giving_up_after_the_grant_releases(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    ticket = world.ask("a")
    world.ask("b")
    assert world.tell(ev.GiveUp(ticket.ask.ticket)) == ["Unload a for b"]


# --- failing ----------------------------------------------------------------------------------------------------------


def test_a_load_failure_refuses_all_its_waiters_and_the_next_request_tries_again(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.ask("a")
    world.ask("a")
    assert world.failed("a") == ["Refuse a 1,2: load_failed"]
    assert world.core.books(GPU0).charged == 0
    world.ask("a")
    assert world.loaded("a") == ["Grant a 3"]


def test_repeated_failure_is_a_cooldown_that_says_when_to_come_back_doubles_and_passes(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), failures_to_cooldown=2, cooldown_s=10.0)
    world.ask("a")
    world.failed("a")
    assert world.state(A) is State.DISK
    world.ask("a")
    world.failed("a")
    assert world.state(A) is State.COOLDOWN
    world.advance(4.0)
    refused = world.ask("a").refusal
    assert refused is not None
    assert refused.reason is ev.Reason.COOLDOWN
    assert refused.retry_after_s == pytest.approx(6.0)
    world.advance(6.0)
    world.ask("a")
    world.failed("a")
    again = world.ask("a").refusal
    assert again is not None
    assert again.retry_after_s == pytest.approx(20.0)


def test_a_cooldown_can_be_cleared_and_a_success_ends_the_count(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), failures_to_cooldown=2)
    for _ in range(2):
        world.ask("a")
        world.failed("a")
    world.tell(ev.ClearCooldown(A))
    ticket = world.ask("a")
    world.loaded("a")
    assert ticket.live
    world.done(ticket)
    world.retire("a")
    world.unloaded("a")
    world.ask("a")
    world.failed("a")
    assert world.state(A) is State.DISK


def test_out_of_memory_gets_more_room_and_one_retry_with_the_footprint_corrected(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 2), spec("b", 6), room=10)
    world.resident("a")
    world.ask("b")
    before = world.core.books(GPU0).charged
    assert world.failed("b", oom=True) == ["Load b"]
    more = world.core.books(GPU0).charged
    assert before < more <= 10
    assert world.failed("b", oom=True) == ["Refuse b 2: out_of_memory"]
    assert world.state(A) is State.READY


def test_out_of_memory_evicts_for_the_retry_where_the_corrected_footprint_needs_it(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 2), spec("b", 8), room=10)
    world.resident("a")
    world.ask("b")
    assert world.failed("b", oom=True) == ["Unload a for b"]
    assert world.unloaded("a") == ["Load b"]
    assert world.core.books(GPU0).charged == 10
    assert world.loaded("b") == ["Grant b 2"]


def test_any_other_failure_evicts_nobody(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 2), spec("b", 8), room=10)
    world.resident("a")
    world.ask("b")
    assert world.failed("b") == ["Refuse b 2: load_failed"]


def test_a_failed_load_leaves_who_was_serving_and_loads_back_what_it_had_evicted(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 5, selected=True), spec("b", 3), spec("c", 6), room=10)
    world.resident("a", "b")
    busy = world.ask("b")
    world.ask("c")
    assert world.said == ["Unload a for c"]
    world.unloaded("a")
    assert world.failed("c") == ["Refuse c 4: load_failed", "Load a"]
    assert world.state(B) is State.READY
    assert busy.live
    load = next(action for action in reversed(world.performed) if isinstance(action, act.Load))
    assert (load.key, load.reason, load.ticket) == (A, ev.Reason.RESTORE, None)


def test_what_was_loaded_back_is_loaded_back_again_though_nobody_used_it_in_between(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 5, selected=True), spec("c", 6), room=10)
    world.resident("a")
    for _ in range(2):
        world.advance(100.0)
        world.ask("c")
        assert world.said == ["Unload a for c"]
        world.unloaded("a")
        assert world.failed("c")[-1] == "Load a"
        world.loaded("a")
        world.tell(ev.ClearCooldown(ModelKey("c")))


def test_an_engine_that_dies_is_cleared_away_and_started_again_for_the_next_request(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.resident("a")
    ticket = world.ask("a")
    life = world.lives[A].generation
    assert world.tell(ev.Died(A, life, Broken("killed"))) == ["Kill a"]
    assert world.core.status(A).leases == 0
    world.ask("a")
    assert world.job("load", A) is None  # its bytes count until they are seen free
    assert world.unloaded("a") == ["Load a"]
    assert world.loaded("a") == ["Grant a 3"]
    assert world.done(ticket) == []
    assert world.core.status(A).leases == 1


def test_a_victim_that_dies_while_draining_still_counts_for_the_plan(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    start = world.now
    first = world.ask("a")
    world.ask("b", 40.0)
    world.until(start + 19.5)
    world.ask("a")
    world.done(first)
    world.until(start + 20.0)
    assert world.state(A) is State.DRAINING
    assert world.tell(ev.Died(A, world.lives[A].generation, Broken("killed"))) == ["Kill a"]
    assert world.unloaded("a") == ["Load b"]


def test_memory_that_is_freed_late_starts_no_second_load_until_it_is_seen(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    world.ask("b", 300.0)
    assert world.said == ["Unload a for b"]
    assert world.until(world.now + 200.0) == []
    assert world.unloaded("a") == ["Load b"]


def test_what_stays_missing_is_charged_as_residue_named_and_given_back_when_seen_free(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    world.ask("b", 300.0)
    assert world.unloaded("a", residue=3) == ["Refuse b 2: no_room"]
    assert world.core.status(A).residue == {GPU0: 3}
    assert (world.core.books(GPU0).residue, world.core.books(GPU0).free) == (3, 7)
    assert world.state(A) is State.DISK
    world.tell(ev.Reclaimed(A, {GPU0: 1}))
    assert world.core.books(GPU0).free == 9
    world.ask("b")
    assert world.said == ["Load b"]


def test_a_stuck_load_keeps_its_bytes_and_its_group_is_refused_at_once_until_it_ends(core: CoreFactory) -> None:
    serial = Traits(serial_group="in-process")
    world = Stage(core, spec("a", 4, traits=serial), spec("b", 4, traits=serial), spec("c", 4))
    world.ask("a")
    world.load_stuck(world.the("load", "a"))
    assert world.said == ["Refuse a 1: stuck"]
    assert world.state(A) is State.STUCK
    assert world.core.books(GPU0).charged == 4
    refusal = world.ask("b").refusal
    assert refusal is not None
    assert refusal.reason is ev.Reason.STUCK
    assert "a" in refusal.message
    world.ask("c")
    assert world.said == ["Load c"]
    world.failed("a")
    assert world.core.books(GPU0).charged == 4
    world.ask("b")
    assert world.said == ["Load b"]
