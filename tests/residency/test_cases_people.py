"""Behaviours that must hold (people: unloading, claims, pins, warm-up, shutdown), as event lists."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from taskrouter.residency import events as ev
from taskrouter.residency.books import State
from taskrouter.types import ModelKey, Traits

from .account import CoreFactory
from .stage import GPU0, Stage, spec

A, B, C = ModelKey("a"), ModelKey("b"), ModelKey("c")


def test_unloading_during_the_load_leaves_nothing_resident(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.ask("a")
    assert world.retire("a") == ["Refuse a 1: unloaded_by_request"]
    assert world.loaded("a") == ["Unload a: unloaded_by_request"]
    world.unloaded("a")
    assert world.state(A) is State.DISK
    assert world.core.books(GPU0).charged == 0


def test_unloading_a_busy_model_drains_it_first(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.resident("a")
    busy = world.ask("a")
    assert world.retire("a") == []
    assert world.state(A) is State.DRAINING
    assert world.done(busy) == ["Unload a: unloaded_by_request"]


def test_a_request_during_the_unload_waits_and_the_model_is_loaded_again(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.resident("a")
    assert world.retire("a") == ["Unload a: unloaded_by_request"]
    ticket = world.ask("a")
    assert ticket.state == "waiting"
    world.unload_ok(world.the("unload", "a"))
    assert world.said == ["Load a"]
    assert world.loaded("a") == [f"Grant a {ticket.ask.ticket}"]


def test_a_file_edited_while_a_model_is_leased_charges_it_once(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 6))
    world.resident("a")
    ticket = world.ask("a")
    assert world.change("a", priority=3, slots=1, selected=True) == []
    assert world.core.books(GPU0).charged == 6
    world.ask("a")
    assert world.said == []  # the one slot is taken
    assert world.done(ticket) == ["Grant a 3"]


def test_releasing_twice_is_harmless(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, slots=1))
    world.resident("a")
    first = world.ask("a")
    second, third = world.ask("a"), world.ask("a")
    assert world.done(first) == ["Grant a 3"]
    assert world.done(first) == []
    assert second.live
    assert not third.live
    assert world.core.status(A).leases == 1


def test_a_lease_lasts_until_its_operation_has_stopped(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    busy = world.ask("a")
    world.ask("b", 1200.0)
    assert world.until(world.now + 1000.0) == []
    assert world.done(busy) == ["Unload a for b"]


def test_a_claim_takes_no_slot_and_protects_for_claim_s(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, slots=1), spec("b", 8), claim_s=5.0)
    world.resident("a")
    claim = world.ask("a", claim=True)
    assert claim.live
    lease = world.ask("a")
    assert lease.live
    world.done(lease)
    start = world.now
    world.ask("b", 300.0)
    assert world.said == []
    assert world.until(start + 4.9) == []
    assert world.until(start + 5.1) == ["Unload a for b"]


def test_an_older_claim_has_run_out_when_the_ticket_comes(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8), claim_s=5.0)
    world.resident("a")
    world.ask("a", claim=True)
    world.advance(5.0)
    world.ask("b", 300.0)
    assert world.said == ["Unload a for b"]


def test_a_released_claim_protects_no_longer(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8), claim_s=50.0)
    world.resident("a")
    claim = world.ask("a", claim=True)
    world.ask("b", 300.0)
    assert world.done(claim) == ["Unload a for b"]


def test_new_claims_do_not_protect_for_ever(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8), claim_s=5.0)
    world.resident("a")
    start = world.now
    world.ask("a", claim=True)
    world.ask("b", 300.0)
    world.until(start + 4.0)
    world.ask("a", claim=True)
    assert world.until(start + 5.1) == ["Unload a for b"]


def test_a_plan_that_needs_the_callers_own_lease_is_refused_at_once(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    mine = world.ask("a")
    world.ask("b", holding=frozenset({mine.ask.ticket}))
    assert world.said == ["Refuse b 3: own_lease"]


def test_holding_a_lease_that_is_not_in_the_way_is_no_obstacle(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 2), spec("b", 8), spec("c", 8))
    world.resident("a", "c")
    mine = world.ask("a")
    world.ask("b", holding=frozenset({mine.ask.ticket}))
    assert world.said == ["Unload c for b"]


def test_warm_up_takes_free_bytes_only(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 2), spec("c", 2))
    world.resident("a")
    world.ask("b", background=True)
    assert world.said == ["Load b"]
    world.ask("c", background=True)
    assert world.said == ["Refuse c 3: no_room"]


def test_a_ticket_that_needs_the_bytes_of_a_warm_up_cancels_it(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, traits=Traits(cancellable=True)), spec("b", 8))
    world.ask("a", background=True)
    world.ask("b")
    assert "CancelLoad a" in world.said


def test_a_snapshot_is_frozen_and_later_events_leave_it_alone(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.resident("a")
    then = world.core.snapshot()
    world.ask("a")
    assert then.models[A].leases == 0
    assert world.core.snapshot().models[A].leases == 1
    with pytest.raises(FrozenInstanceError):
        then.models[A].leases = 5  # type: ignore[misc]


def test_a_pinned_model_is_never_a_victim(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, pinned=True), spec("b", 4), spec("c", 4))
    world.resident("a", "b")
    world.done(world.ask("b"))
    world.ask("c")
    assert world.said == ["Unload b for c"]


def test_when_all_that_could_go_is_pinned_the_refusal_says_so_at_once(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), spec("b", 4), spec("c", 4))
    world.resident("a", "b")
    world.pin("a")
    world.pin("b")
    world.ask("c")
    assert world.said == ["Refuse c 3: pinned"]
    world.pin("b", False)
    world.ask("c")
    assert world.said == ["Unload b for c"]


def test_a_changed_selection_evicts_the_model_it_replaces_first(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), spec("b", 4), spec("c", 4))
    world.resident("a", "b")
    world.ask("c", replaces=B)
    assert world.said == ["Unload b for c"]


def test_an_unknown_model_is_refused(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4))
    world.acquire(ModelKey("z"))
    assert world.said == ["Refuse z 1: unknown_model"]


def test_shutdown_refuses_who_waits_and_unloads_the_idle_at_once_and_the_busy_when_they_stop(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), spec("b", 4), spec("c", 8))
    world.resident("a", "b")
    busy = world.ask("b")
    world.ask("c", 300.0)
    assert sorted(world.tell(ev.Shutdown())) == ["Refuse c 4: shutdown", "Unload a: shutdown"]
    world.ask("a")
    assert world.said == ["Refuse a 5: shutdown"]
    assert world.done(busy) == ["Unload b: shutdown"]
    assert world.unloaded("a") == world.unloaded("b") == []
