"""Behaviours that must hold (seldom met: crossed events, odd clocks, lost causes), as event lists."""

from __future__ import annotations

import math

import pytest

from taskrouter.residency import actions as act
from taskrouter.residency import core as core_module
from taskrouter.residency import events as ev
from taskrouter.residency import scheduling
from taskrouter.residency.books import Settings, State
from taskrouter.types import CPU, DeviceId, DeviceReading, DeviceSpec, Footprint, ModelKey, TicketId, Traits

from .account import Broken, CoreFactory
from .stage import GPU0, Stage, spec

A, B, C = ModelKey("a"), ModelKey("b"), ModelKey("c")
STOPPABLE = Traits(cancellable=True)


# --- warm-up that gives way -------------------------------------------------------------------------------------------


def giving_way(core: CoreFactory, *, claim_s: float = 5.0) -> Stage:
    """A scene: a (idle) and the warm-up of w fill the device."""
    world = Stage(core, spec("a", 5), spec("w", 5, traits=STOPPABLE), spec("b", 10), spec("c", 5), claim_s=claim_s)
    world.resident("a")
    world.ask("w", 600.0, background=True)
    assert world.said == ["Load w"]
    return world


def test_a_drain_that_only_claims_stood_against_stops_a_warm_up_once_and_unloads_at_once(core: CoreFactory) -> None:
    world = giving_way(core, claim_s=500.0)
    world.ask("a", claim=True)
    world.ask("b", 40.0)
    assert world.said == []
    assert world.until(world.now + 20.0) == ["CancelLoad w", "Unload a for b"]
    world.load_cancelled(world.the("load", "w"))
    assert world.said == ["Refuse w 2: no_room"]
    assert world.unloaded("a") == ["Load b"]


def draining_beside_a_cancelled_load(core: CoreFactory) -> Stage:
    """A scene: a drains for b under a fresh lease (the last ticket), and the load of w was cancelled for b."""
    world = giving_way(core)
    start = world.now
    first = world.ask("a")
    world.ask("b", 40.0)
    world.until(start + 19.5)
    world.ask("a")
    world.done(first)
    assert world.until(start + 20.0) == ["CancelLoad w"]
    assert world.state(A) is State.DRAINING
    return world


def test_a_cancelled_load_that_gets_stuck_lifts_the_drain_it_was_cancelled_for(core: CoreFactory) -> None:
    world = draining_beside_a_cancelled_load(core)
    world.load_stuck(world.the("load", "w"))
    assert world.said == ["Refuse w 2: stuck", "Refuse b 4: no_room"]
    assert world.state(A) is State.READY
    assert world.core.books(GPU0).promised == 0


def test_a_cancelled_load_that_gets_stuck_takes_back_the_eviction_it_was_cancelled_for(core: CoreFactory) -> None:
    world = giving_way(core)
    world.ask("c")
    assert world.said == ["Unload a for c"]
    world.ask("b", 600.0)
    world.unloaded("a")
    world.loaded("c")
    world.done(world.tickets[TicketId(3)])
    assert sorted(world.until(world.now + 5.0)) == ["CancelLoad w", "Unload c for b"]
    world.load_stuck(world.the("load", "w"))
    assert world.said == ["Refuse w 2: stuck", "Refuse b 4: no_room"]
    assert world.unloaded("c") == []
    assert (world.core.books(GPU0).promised, world.core.books(GPU0).charged) == (0, 5)


def test_a_cancelled_load_that_fails_in_any_way_counts_as_cancelled(core: CoreFactory) -> None:
    world = Stage(core, spec("w", 10, traits=STOPPABLE), spec("b", 10), failures_to_cooldown=1)
    world.ask("w", background=True)
    world.ask("b")
    assert world.said == ["CancelLoad w"]
    assert world.failed("w") == ["Refuse w 1: no_room", "Load b"]
    assert world.state(ModelKey("w")) is State.DISK  # no failure of its own: no cooldown


def test_a_warm_up_that_comes_through_after_its_bytes_are_wanted_no_more_stays(core: CoreFactory) -> None:
    world = Stage(core, spec("w", 10, traits=STOPPABLE), spec("b", 10))
    world.ask("w", 600.0, background=True)
    world.ask("b", 10.0)
    assert world.said == ["CancelLoad w"]
    assert world.until(10.0) == ["Refuse b 2: deadline"]
    assert world.loaded("w") == ["Grant w 1"]
    assert world.core.books(GPU0).promised == 0


def test_a_warm_up_that_comes_through_while_its_bytes_are_wanted_is_unloaded_at_once(core: CoreFactory) -> None:
    world = Stage(core, spec("w", 10, traits=STOPPABLE), spec("b", 10))
    world.ask("w", 600.0, background=True)
    world.ask("b")
    assert world.said == ["CancelLoad w"]
    assert world.loaded("w") == ["Unload w for b"]
    assert sorted(world.unloaded("w")) == ["Load b", "Refuse w 1: no_room"]
    assert world.loaded("b") == ["Grant b 2"]


# --- stuck ------------------------------------------------------------------------------------------------------------


def test_a_stuck_load_refuses_the_waiting_of_its_own_group_and_leaves_the_other_groups_alone(core: CoreFactory) -> None:
    one, other = Traits(serial_group="one"), Traits(serial_group="other")
    world = Stage(core, spec("a", 4, traits=one), spec("b", 4, traits=one), spec("c", 6, traits=other))
    world.ask("a")
    world.ask("b")
    world.preflights_pass = False
    waiter = world.acquire(C, 600.0)
    world.load_stuck(world.the("load", "a"))
    assert world.said == ["Refuse a 1: stuck", "Refuse b 2: stuck"]
    assert waiter.state == "waiting"
    world.ask("a")
    assert world.said == ["Refuse a 4: stuck"]


# --- foreign growth ---------------------------------------------------------------------------------------------------


def test_nothing_shrinks_beside_an_exclusive_load_and_everything_after_it(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), spec("b", 4, traits=Traits(exclusive_on_device=True)))
    world.resident("a")
    world.ask("b")
    assert world.said == ["Load b"]
    assert world.tell(ev.Observed({GPU0: DeviceReading(foreign=35)})) == []
    assert world.loaded("b") == ["Grant b 2", "Unload a: device_shrank"]


def test_a_load_does_not_start_into_host_memory_that_others_took_meanwhile(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, ram=10), spec("b", 8, ram=60))
    world.resident("a")
    world.ask("b", 600.0)
    assert world.said == ["Unload a for b"]
    world.tell(ev.Observed({CPU: DeviceReading(foreign=50)}))
    assert world.unloaded("a") == []
    assert world.tell(ev.Observed({CPU: DeviceReading(foreign=40)})) == ["Load b"]


def test_a_reading_of_a_device_that_has_no_ledger_changes_nothing(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.resident("a")
    before = world.core.snapshot()
    assert world.core.handle(ev.Observed({DeviceId("cuda:7"): DeviceReading(foreign=99)}), now=world.now) == []
    assert world.core.snapshot() == before


# --- failing ----------------------------------------------------------------------------------------------------------


def test_out_of_memory_with_the_whole_device_already_is_refused_without_a_retry(core: CoreFactory) -> None:
    world = Stage(core, spec("b", 10))
    world.ask("b")
    assert world.failed("b", oom=True) == ["Refuse b 1: out_of_memory"]


def test_a_load_given_up_while_its_victim_unloads_has_the_victim_loaded_back(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, selected=True), spec("b", 8))
    world.resident("a")
    waiter = world.ask("b")
    assert world.said == ["Unload a for b"]
    assert world.tell(ev.GiveUp(waiter.ask.ticket)) == []
    assert world.unloaded("a") == ["Load a"]
    assert world.performed[-1] == act.Load(
        A, world.core.status(A).generation, (GPU0,), {GPU0: 8}, ev.Reason.RESTORE, None
    )


def test_nothing_is_loaded_back_after_a_shutdown(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, selected=True), spec("b", 8))
    world.resident("a")
    world.ask("b")
    world.unloaded("a")
    assert world.tell(ev.Shutdown()) == ["Refuse b 2: shutdown"]
    assert world.failed("b") == []
    assert world.state(A) is State.DISK


def test_a_request_at_the_very_instant_a_cooldown_ends_tries_again(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), failures_to_cooldown=1, cooldown_s=10.0)
    world.ask("a")
    world.failed("a")
    world.now += 10.0  # before the tick of that instant
    world.ask("a")
    assert world.said == ["Load a"]


def test_an_unload_that_misses_nothing_leaves_no_residue(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.resident("a")
    world.retire("a")
    world.unload_ok(world.the("unload", "a"), {GPU0: 0})
    assert world.core.status(A).residue == {}
    assert world.core.books(GPU0).free == 10


# --- people who hold leases -------------------------------------------------------------------------------------------


def test_a_pin_that_leaves_only_the_callers_own_lease_refuses_that_caller_alone(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 5), spec("b", 5), spec("c", 5))
    world.resident("a", "c")
    mine, _ = world.ask("a"), world.ask("c")
    holder = world.ask("b", 600.0, holding=frozenset({mine.ask.ticket}))
    free = world.ask("b", 600.0)
    assert world.said == []
    assert world.pin("c") == [f"Refuse b {holder.ask.ticket}: own_lease"]
    assert free.state == "waiting"


def test_when_the_caller_who_holds_a_lease_gives_up_its_model_is_drained_for_the_others(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 5), spec("b", 5), spec("c", 5))
    world.resident("a", "c")
    for name, seconds in (("a", 100.0), ("c", 5000.0)):  # their leases take 21 s and 1001 s by average
        usual = world.ask(name)
        world.advance(seconds)
        world.done(usual)
    start = world.now
    mine, _ = world.ask("a"), world.ask("c")
    holder = world.ask("b", 600.0, holding=frozenset({mine.ask.ticket}))
    world.ask("b", 40.0)
    assert world.until(start + 10.0) == []
    assert world.state(A) is State.READY
    world.tell(ev.GiveUp(holder.ask.ticket))
    assert world.state(A) is State.DRAINING
    assert world.done(mine) == ["Unload a for b"]


# --- keep-alive -------------------------------------------------------------------------------------------------------


def test_a_keep_alive_that_passed_under_a_pin_counts_anew_when_the_pin_goes(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, keep_alive_s=30.0, pinned=True))
    world.resident("a", after=100.0)
    start = world.now
    assert world.pin("a", False) == []
    assert world.until(start + 31.0) == ["Unload a: keep_alive_passed"]


def test_a_shorter_keep_alive_holds_from_when_it_is_written(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, keep_alive_s=3600.0))
    world.resident("a", after=1.0)
    start = world.now
    world.change("a", keep_alive_s=30.0)
    assert world.until(start + 31.0) == ["Unload a: keep_alive_passed"]


# --- clocks, and what nobody knows of ---------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [50.0, -math.inf, math.nan])
def test_a_clock_that_jumps_back_or_is_no_number_stands_still(core: CoreFactory, odd: float) -> None:
    model = core([DeviceSpec(GPU0, 10, budget=10)], [spec("a", 4)], Settings())
    model.handle(ev.Observed({}), now=100.0)
    model.handle(ev.Acquire(TicketId(1), A, deadline=160.0), now=odd)
    model.handle(ev.Preflighted(A, 1), now=odd)
    assert model.handle(ev.Loaded(A, 1), now=odd)[0] == act.Grant(A, 1, (TicketId(1),))
    assert model.status(A).loaded_at == 100.0
    model.handle(ev.Release(TicketId(1)), now=101.0)
    assert model.status(A).last_used == 101.0


def test_a_ticket_without_a_deadline_waits_and_wakes_nobody(core: CoreFactory) -> None:
    model = core([DeviceSpec(GPU0, 10, budget=10)], [spec("a", 4)], Settings())
    assert model.handle(ev.Acquire(TicketId(1), A, deadline=math.inf), now=0.0) == [act.Preflight(A, 1)]
    assert model.handle(ev.Preflighted(A, 1), now=0.0) == [
        act.Load(A, 1, (GPU0,), {GPU0: 4}, ev.Reason.REQUEST, TicketId(1))
    ]
    assert model.handle(ev.Tick(), now=1e9) == []
    assert model.handle(ev.Loaded(A, 1), now=1e9) == [act.Grant(A, 1, (TicketId(1),))]


def test_a_ticket_without_a_deadline_is_drained_for_after_half_an_hour(core: CoreFactory) -> None:
    model = core([DeviceSpec(GPU0, 10, budget=10)], [spec("a", 8), spec("b", 8)], Settings())
    model.handle(ev.Acquire(TicketId(1), A, deadline=60.0), now=0.0)
    model.handle(ev.Preflighted(A, 1), now=0.0)
    model.handle(ev.Loaded(A, 1), now=1.0)
    model.handle(ev.Acquire(TicketId(2), A, deadline=160.0), now=100.0)
    model.handle(ev.Acquire(TicketId(3), B, deadline=math.inf), now=100.0)
    assert model.handle(ev.Preflighted(B, 1), now=100.0) == [act.WakeAt(1900.0)]
    model.handle(ev.Tick(), now=1900.0)
    assert model.status(A).state is State.DRAINING


@pytest.mark.parametrize("wait", [0.0, -1.0])
def test_a_deadline_that_has_passed_is_refused_saying_how_long_it_waited(core: CoreFactory, wait: float) -> None:
    world = Stage(core, spec("a", 8))
    world.now = 7.5
    refusal = world.ask("a", wait, arrival=0.0).refusal
    assert refusal is not None
    assert refusal.reason is ev.Reason.DEADLINE
    assert "after 7.5 s" in refusal.message


def test_a_deadline_that_is_no_number_is_refused_for_nobody_could_be_woken_for_it(core: CoreFactory) -> None:
    model = core([DeviceSpec(GPU0, 10, budget=10)], [spec("a", 4)], Settings())
    model.handle(ev.Acquire(TicketId(1), A, deadline=60.0), now=0.0)
    for ticket in (TicketId(2), TicketId(3)):  # behind another, and behind its load
        answer = model.handle(ev.Acquire(ticket, A, deadline=math.nan), now=0.0)[0]
        assert isinstance(answer, act.Refuse)
        assert (answer.tickets, answer.refusal.reason) == ((ticket,), ev.Reason.DEADLINE)
        model.handle(ev.Preflighted(A, 1), now=0.0)


def test_what_is_said_of_a_model_nobody_knows_changes_nothing(core: CoreFactory) -> None:
    model = core([DeviceSpec(GPU0, 10, budget=10)], [spec("a", 4)], Settings())
    before = model.snapshot()
    for event in (
        ev.Pin(B, True), ev.Retire(B), ev.ClearCooldown(B), ev.Reclaimed(B, {GPU0: 3}), ev.Died(B, 1, Broken()),
        ev.Unloaded(B, 1), ev.LoadStuck(B, 1), ev.Release(TicketId(9)), ev.GiveUp(TicketId(9)),
    ):  # fmt: skip
        assert model.handle(event, now=1.0) == [], event
    assert model.snapshot() == before


def test_preflights_of_another_life_are_ignored(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), preflights_pass=False)
    world.acquire(A)
    life = world.core.status(A).generation
    for stale in (ev.Preflighted(A, life - 1), ev.PreflightFailed(A, life - 1, Broken())):
        assert world.tell(stale) == []
    world.preflight_ok(world.the("preflight", "a"))
    assert world.said == ["Load a"]
    for late in (ev.Preflighted(A, life), ev.PreflightFailed(A, life, Broken())):
        assert world.tell(late) == []


def test_a_measurement_below_zero_is_no_gift(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, declared=False))
    world.ask("a")
    world.core.handle(ev.Loaded(A, world.core.status(A).generation, Footprint(-5, -5)), now=1.0)
    assert (world.core.books(GPU0).charged, world.core.books(CPU).charged) == (0, 0)
    world.core.check()


def test_passes_that_would_not_end_leave_the_rest_to_the_next_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "MOST_PASSES", 1)
    model = core_module.Residency([DeviceSpec(GPU0, 10, budget=10)], [spec("a", 4)], Settings())
    model.handle(ev.Acquire(TicketId(1), A, deadline=160.0), now=0.0)
    assert model.handle(ev.Preflighted(A, 1), now=5.0)[-1] == act.WakeAt(6.0)
