"""Behaviours that must hold (small turns that no other scene takes), as event lists."""

from __future__ import annotations

import pytest

from taskrouter.residency import actions as act
from taskrouter.residency import events as ev
from taskrouter.residency.books import State
from taskrouter.types import CPU, DeviceReading, Footprint, ModelKey, TicketId, Traits

from .account import CoreFactory
from .stage import GPU0, GPU1, Stage, spec

A, B, C = ModelKey("a"), ModelKey("b"), ModelKey("c")
STOPPABLE = Traits(cancellable=True)


# --- what a model needs -----------------------------------------------------------------------------------------------


def test_what_a_preflight_finds_out_is_what_is_charged(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, declared=False), preflights_pass=False)
    world.acquire(A)
    world.preflight_ok(world.the("preflight", "a"), Footprint(3, 2))
    assert world.performed[-1] == act.Load(A, 1, (GPU0,), {GPU0: 3, CPU: 2}, ev.Reason.REQUEST, TicketId(1))


def test_how_long_a_load_took_in_an_earlier_life_counts_until_one_is_measured(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), preflights_pass=False)
    user = world.acquire(A)
    assert world.core.status(A).load_s == pytest.approx(2.0)
    world.preflight_ok(world.the("preflight", "a"), load_s=40.0)
    assert world.core.status(A).load_s == 40.0
    world.loaded("a", took=20.0)
    assert world.core.status(A).load_s == pytest.approx(0.8 * 40 + 0.2 * 20)
    world.release(user)
    world.retire("a")
    world.unloaded("a")
    world.acquire(A)
    world.preflight_ok(world.the("preflight", "a"), load_s=1.0)
    assert world.core.status(A).load_s == pytest.approx(36.0)


def test_what_running_out_of_memory_taught_is_not_forgotten_for_a_smaller_estimate(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, declared=False), preflights_pass=False)
    world.acquire(A)
    world.preflight_ok(world.the("preflight", "a"))
    world.failed("a", oom=True)
    world.preflight_ok(world.the("preflight", "a"), Footprint(2))
    assert world.said == ["Load a"]
    assert world.core.books(GPU0).charged == 5


def test_what_was_measured_outlives_a_new_configuration(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, declared=False))
    world.ask("a")
    world.loaded("a", took=7.0, measured=Footprint(6))
    world.change("a", priority=1)
    status = world.core.status(A)
    assert (status.need_bytes, status.load_s) == (6, 7.0)


def test_of_two_places_that_never_fit_the_one_easier_to_mend_is_named(core: CoreFactory) -> None:
    specs = [spec("p", 4, pinned=True), spec("q", 4, devices=(GPU1,)), spec("a", 8, devices=(GPU0, GPU1))]
    world = Stage(core, *specs, gpus=2)
    world.resident("p", "q")
    world.retire("q")
    world.unload_ok(world.the("unload", "q"), {GPU1: 4})
    world.ask("a")
    assert world.said == ["Refuse a 3: pinned"]


def test_of_two_places_as_good_the_first_is_taken(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, devices=(GPU1, GPU0)), gpus=2)
    world.ask("a")
    assert world.core.status(A).devices == (GPU1,)


# --- bytes on their way to being free ---------------------------------------------------------------------------------


def test_of_two_unloads_under_way_one_that_suffices_is_waited_for(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 5), spec("b", 5), spec("c", 5))
    world.resident("a", "b")
    assert world.retire("a") + world.retire("b") == ["Unload a: unloaded_by_request", "Unload b: unloaded_by_request"]
    world.ask("c")
    assert world.said == []
    assert world.unloaded("a") == ["Load c"]


def test_a_cancelled_load_that_holds_less_than_two_were_promised_owes_the_rest_once(core: CoreFactory) -> None:
    world = Stage(core, spec("w", 10, traits=STOPPABLE, declared=False), spec("b", 4), spec("c", 4))
    world.ask("w", 600.0, background=True)
    world.ask("b")
    assert world.said == ["CancelLoad w"]
    world.ask("c")
    assert world.core.books(GPU0).promised == 0
    assert world.loaded("w", measured=Footprint(6)) == ["Unload w for b"]
    assert world.core.books(GPU0).promised == 2
    assert sorted(world.unloaded("w")) == ["Load b", "Load c", "Refuse w 1: no_room"]


def drawn_upon(core: CoreFactory) -> Stage:
    """A scene: w loads for nobody any more, and was cancelled for b, which needs RAM as well."""
    world = Stage(core, spec("w", 7, traits=STOPPABLE), spec("b", 5, ram=10))
    gone = world.ask("w", 600.0)
    world.ask("b", 600.0)
    assert world.tell(ev.GiveUp(gone.ask.ticket)) == ["CancelLoad w"]
    return world


def test_a_cancelled_load_that_comes_through_stays_where_who_wanted_its_bytes_lacks_others(core: CoreFactory) -> None:
    world = drawn_upon(core)
    world.tell(ev.Observed({CPU: DeviceReading(foreign=95)}))
    assert world.loaded("w") == []
    assert world.state(ModelKey("w")) is State.READY
    world.advance(60.0)
    assert world.tell(ev.Observed({CPU: DeviceReading()})) == ["Unload w for b"]
    assert world.unloaded("w") == ["Load b"]


def test_a_cancelled_load_that_comes_through_on_a_device_that_shrank_goes_for_that(core: CoreFactory) -> None:
    world = drawn_upon(core)
    world.tell(ev.Observed({GPU0: DeviceReading(foreign=37)}))
    assert world.loaded("w") == ["Unload w: device_shrank"]
    assert world.unloaded("w") == []
    assert world.tell(ev.Observed({GPU0: DeviceReading()})) == ["Load b"]


# --- people -----------------------------------------------------------------------------------------------------------


def test_what_a_cold_model_is_told_holds_once_it_is_loaded(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4))
    world.change("a", slots=1)
    world.ask("a")
    world.ask("a")
    assert world.loaded("a") == ["Grant a 1"]


def test_a_load_that_can_be_stopped_is_stopped_when_its_model_is_told_to_go(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, traits=STOPPABLE))
    world.ask("a")
    assert world.retire("a") == ["Refuse a 1: unloaded_by_request", "CancelLoad a"]
    world.load_cancelled(world.the("load", "a"))
    assert world.said == []
    assert world.core.books(GPU0).charged == 0


def test_claims_that_waited_for_a_load_need_no_slot(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, slots=1))
    world.ask("a")
    world.ask("a")
    world.ask("a", claim=True)
    world.ask("a", claim=True)
    assert world.loaded("a") == ["Grant a 3,4,1"]
    assert world.core.status(A).claims == 2


def test_a_preflight_that_fails_when_nobody_waits_any_more_refuses_nobody(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), preflights_pass=False)
    ticket = world.acquire(A)
    world.tell(ev.GiveUp(ticket.ask.ticket))
    world.preflight_failed(world.the("preflight", "a"))
    assert world.said == []
    world.acquire(A)
    assert world.said == ["Preflight a"]


def test_one_who_leaves_before_the_others_changes_nothing_for_them(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4))
    first, _ = world.ask("a", 60.0), world.ask("a", 120.0)
    world.ask("a", 600.0, background=True)
    assert world.tell(ev.GiveUp(first.ask.ticket)) == []
    assert world.loaded("a") == ["Grant a 2,3"]


def test_a_warm_up_behind_a_caller_lends_it_no_time(core: CoreFactory) -> None:
    """B can't be there in time for its caller, so nothing that was used lately goes for it."""
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a", after=1.5)
    world.ask("b", 1.0)
    world.ask("b", 600.0, background=True)
    assert world.said == []
    assert world.until(world.now + 1.0) == ["Refuse b 2: deadline", "Refuse b 3: no_room"]
    assert world.state(A) is State.READY


def test_for_who_can_not_be_served_in_time_goes_only_what_was_not_used_for_longer_than_loading_takes(
    core: CoreFactory,
) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a", after=200.0)
    world.ask("b", 1.0)
    assert world.said == ["Unload a for b"]


# --- who comes before whom --------------------------------------------------------------------------------------------


def test_nothing_starts_on_a_device_that_an_older_exclusive_load_waits_for(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("x", 8, traits=Traits(exclusive_on_device=True)), spec("b", 2))
    world.resident("a")
    held = world.ask("a")
    world.ask("x", 600.0)
    world.ask("b", 600.0)
    assert world.history[-1] == f"Grant a {held.ask.ticket}"
    assert world.done(held) == ["Unload a for x"]
    assert world.unloaded("a") == ["Load x"]
    assert world.loaded("x") == ["Grant x 3", "Load b"]


def test_a_warm_up_waits_for_the_preflight_of_the_one_before_it(core: CoreFactory) -> None:
    world = Stage(core, spec("v", 6), spec("w", 6), preflights_pass=False)
    world.acquire(ModelKey("v"), 600.0, background=True)
    world.acquire(ModelKey("w"), 600.0, background=True)
    world.preflight_ok(world.the("preflight", "w"))
    assert world.said == []
    world.preflight_ok(world.the("preflight", "v"))
    assert world.said == ["Load v", "Refuse w 2: no_room"]


def test_what_is_only_needed_soon_is_dropped_for_who_asks_and_taken_up_again_after(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, traits=Traits(cancellable=True)), spec("b", 4), preflights_pass=False)
    assert world.tell(ev.Hint("p", (A,), 1000.0)) == ["Preflight a"]
    world.acquire(B)
    assert world.said == ["Preflight b"]
    world.preflight_ok(world.the("preflight", "a"))
    assert world.said == []
    world.preflight_ok(world.the("preflight", "b"))
    assert world.said == ["Load b", "Preflight a"]
    world.preflight_ok(world.the("preflight", "a"))
    assert world.said == ["Load a"]


def test_what_is_to_be_replaced_goes_although_it_is_worth_most(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 3), spec("b", 5), spec("d", 2), spec("c", 7), policy="cost_aware")
    world.resident("b", "d", "a")
    for _ in range(8):
        world.done(world.ask("a"))
    world.advance(20.0)
    world.ask("c", replaces=A)
    assert sorted(world.said) == ["Unload a for c", "Unload b for c"]


def test_who_is_not_selected_any_more_is_not_loaded_back(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 5, selected=True), spec("b", 5, selected=True), spec("c", 10))
    world.resident("a", "b")
    world.ask("c")
    world.unloaded("a")
    world.unloaded("b")
    world.change("b", selected=False)
    assert world.failed("c") == ["Refuse c 3: load_failed", "Load a"]
    assert world.state(B) is State.DISK


def test_a_keep_alive_counts_from_the_last_use(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, keep_alive_s=30.0))
    world.resident("a", after=20.0)
    world.done(world.ask("a"))
    start = world.now
    assert world.until(start + 29.0) == []
    assert world.until(start + 30.0) == ["Unload a: keep_alive_passed"]


# --- what older ones have reserved ------------------------------------------------------------------------------------


def test_beside_what_an_older_one_reserved_a_younger_one_acts(core: CoreFactory) -> None:
    world = Stage(core, spec("x", 5), spec("y", 3), spec("a", 6), spec("b", 3))
    world.resident("x", "y")
    world.ask("x")
    world.ask("a", 600.0)
    assert world.said == []
    world.ask("b")
    assert world.said == ["Unload y for b"]


def test_a_younger_one_in_a_hurry_drains_nothing_that_an_older_one_reserved(core: CoreFactory) -> None:
    world = Stage(core, spec("x", 6), spec("y", 4), spec("a", 6), spec("b", 4))
    world.resident("x", "y")
    for user in [world.ask("x"), world.ask("y")]:
        world.advance(250.0)  # they learn that uses last long
        world.release(user)
    user = world.ask("x")
    world.advance(1.0)
    world.ask("y")
    world.ask("a", 600.0)
    world.ask("b", 120.0)
    assert world.until(world.now + 45.0) == []
    assert world.core.status(ModelKey("y")).state is State.DRAINING
    assert world.done(user) == ["Unload x for a"]
