"""Behaviours that must hold (sleepers among others), as event lists: who is forgotten, who wakes elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from taskrouter.residency import events as ev
from taskrouter.residency.books import HOST_BUDGET, State
from taskrouter.types import CPU, DeviceReading, ModelKey, TicketId, Traits

from .account import Broken, CoreFactory
from .stage import GPU0, GPU1, Stage, spec

A, B, C, D = (ModelKey(name) for name in "abcd")
SLEEPS = Traits(can_sleep=True, start_s=30.0)
EXCLUSIVE = Traits(exclusive_on_device=True)


def bedroom(core: CoreFactory, *models: Any, beds: int = 100, **how: Any) -> Stage:
    return Stage(core, *models, host_budget=beds, min_residency_s=0.0, **how)


def put_to_sleep(world: Stage, name: str, ram: int = 6, left: int = 0) -> list[str]:
    world.demote_ok(world.the("demote", name), ram, {GPU0: left} if left else None)
    return world.said


def woken(world: Stage, name: str, took: float = 1.0) -> list[str]:
    world.advance(took)
    world.promote_ok(world.the("promote", name))
    return world.said


def one_asleep(core: CoreFactory, *others: Any, left: int = 3, **how: Any) -> Stage:
    """A scene: a sleeps and left so many bytes on its device, where b (5) is in use under ticket 2."""
    a = spec("a", 6, traits=SLEEPS, devices=how.pop("devices", (GPU0,)))
    world = bedroom(core, a, spec("b", 5), *others, **how)
    world.resident("a")
    world.ask("b")
    assert world.said == ["Demote a"]
    put_to_sleep(world, "a", left=left)
    world.loaded("b")
    return world


# --- sleepers that are forgotten --------------------------------------------------------------------------------------


def test_what_a_sleeper_left_on_a_device_is_freed_at_once_where_another_has_to_drain(core: CoreFactory) -> None:
    world = one_asleep(core, spec("c", 9))
    start = world.now
    world.ask("c", 40.0)
    assert world.until(start + 19.5) == []
    fresh = world.ask("b")
    world.done(world.tickets[TicketId(2)])
    assert world.until(start + 20.0) == ["Unload a for c"]
    assert world.state(B) is State.DRAINING
    assert world.unloaded("a") == []
    assert world.done(fresh) == ["Unload b for c"]
    assert world.unloaded("b") == ["Load c"]


def test_a_sleeper_is_forgotten_once_where_only_claims_stood_against_the_drain(core: CoreFactory) -> None:
    world = one_asleep(core, spec("c", 9), claim_s=500.0)
    world.done(world.tickets[TicketId(2)])
    world.ask("b", claim=True)
    start = world.now
    world.ask("c", 40.0)
    assert world.until(start + 20.0) == ["Unload a for c", "Unload b for c"]
    world.unloaded("a")
    assert world.unloaded("b") == ["Load c"]


def test_a_sleeper_beside_an_exclusive_load_is_forgotten_after_it(core: CoreFactory) -> None:
    world = one_asleep(core, spec("x", 2, traits=EXCLUSIVE), spec("c", 8))
    world.ask("x")
    assert world.said == ["Load x"]
    world.retire("b")
    world.done(world.tickets[TicketId(2)])
    world.ask("c", 600.0)
    assert world.said == []
    assert world.loaded("x") == ["Grant x 3", "Unload b: unloaded_by_request", "Unload a for c"]
    world.unloaded("b")
    assert world.unloaded("a") == ["Load c"]


def test_who_sleeps_is_forgotten_for_what_is_needed_next(core: CoreFactory) -> None:
    world = one_asleep(core, spec("c", 8, traits=Traits(cancellable=True)))
    world.done(world.tickets[TicketId(2)])
    world.retire("b")
    world.unloaded("b")
    assert world.tell(ev.Hint("p", (C,), world.now + 100.0)) == ["Unload a for c"]
    assert world.unloaded("a") == ["Load c"]


def test_what_could_not_be_called_off_is_not_loaded_ahead(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8, traits=Traits(cancellable=True)))
    assert world.tell(ev.Hint("p", (A, B), 100.0)) == ["Load b"]


def test_who_sleeps_is_not_woken_ahead_by_a_hint(core: CoreFactory) -> None:
    napper = spec("a", 6, traits=replace(SLEEPS, cancellable=True))
    world = bedroom(core, napper, spec("b", 6, traits=SLEEPS))
    world.resident("a")
    world.ask("b")
    put_to_sleep(world, "a")
    world.loaded("b")
    world.done(world.tickets[TicketId(2)])
    world.retire("b")
    world.unloaded("b")
    assert world.state(A) is State.HOST
    assert world.tell(ev.Hint("p", (A,), world.now + 100.0)) == []  # there is room, but a wake can't be called off


def test_who_sleeps_goes_where_others_take_the_ram(core: CoreFactory) -> None:
    world = one_asleep(core, left=0)
    assert world.tell(ev.Observed({CPU: DeviceReading(foreign=95)})) == ["Unload a: device_shrank"]
    world.unloaded("a")
    assert world.core.books(HOST_BUDGET).charged == 0


def test_who_sleeps_under_a_pin_is_not_forgotten_for_another(core: CoreFactory) -> None:
    world = bedroom(core, spec("a", 6, traits=SLEEPS), spec("b", 6, traits=SLEEPS), spec("c", 6), beds=7)
    world.resident("a")
    world.ask("b")
    put_to_sleep(world, "a")
    world.pin("a")
    world.loaded("b")
    world.done(world.tickets[TicketId(2)])
    world.ask("c")
    assert world.said == ["Unload b for c"]
    assert world.state(A) is State.HOST


# --- on the way to sleep, and out of it -------------------------------------------------------------------------------


def falling_asleep(core: CoreFactory, *others: Any) -> Stage:
    """A scene: a goes to sleep for b."""
    world = bedroom(core, spec("a", 6, traits=SLEEPS), spec("b", 6, traits=SLEEPS), *others)
    world.resident("a")
    world.ask("b")
    assert world.said == ["Demote a"]
    return world


def test_who_is_told_to_go_while_it_falls_asleep_goes_when_it_sleeps(core: CoreFactory) -> None:
    world = falling_asleep(core)
    assert world.retire("a") == []
    assert sorted(put_to_sleep(world, "a")) == ["Load b", "Unload a: unloaded_by_request"]
    world.unloaded("a")
    assert world.core.books(CPU).charged == 0


def test_who_is_asked_for_while_it_falls_asleep_wakes_when_there_is_room(core: CoreFactory) -> None:
    world = falling_asleep(core)
    again = world.ask("a", 600.0)
    assert put_to_sleep(world, "a") == ["Load b"]
    world.loaded("b")
    assert world.done(world.tickets[TicketId(2)]) == ["Demote b"]
    assert put_to_sleep(world, "b") == ["Promote a"]
    assert woken(world, "a") == [f"Grant a {again.ask.ticket}"]


def test_what_is_said_of_a_wake_in_another_life_is_ignored(core: CoreFactory) -> None:
    world = falling_asleep(core)
    life = world.core.status(A).generation
    put_to_sleep(world, "a")
    before = world.core.snapshot()
    for late in (ev.Promoted(A, life), ev.PromoteFailed(A, life, Broken()), ev.Promoted(B, 0)):
        assert world.core.handle(late, now=world.now) == []
    assert world.core.snapshot() == before


def test_a_sleeper_that_dies_while_somebody_waits_for_it_is_loaded_anew(core: CoreFactory) -> None:
    world = one_asleep(core, left=0)
    again = world.ask("a", 600.0)
    life = world.core.status(A).generation
    assert world.tell(ev.Died(A, life, Broken())) == ["Kill a"]
    assert again.state == "waiting"
    assert world.unloaded("a") == []
    assert world.done(world.tickets[TicketId(2)]) == ["Unload b for a"]
    assert world.unloaded("b") == ["Load a"]
    assert world.loaded("a") == [f"Grant a {again.ask.ticket}"]


def test_a_sleeper_that_dies_with_nobody_waiting_gives_back_all_it_held(core: CoreFactory) -> None:
    world = one_asleep(core, left=3)
    assert world.core.books(GPU0).charged == 5 + 3
    assert world.tell(ev.Died(A, world.core.status(A).generation, Broken())) == ["Kill a"]
    assert world.unloaded("a") == []
    assert (world.core.books(GPU0).charged, world.core.books(CPU).charged) == (5, 0)


def test_what_was_measured_of_sleep_outlives_a_new_configuration(core: CoreFactory) -> None:
    world = falling_asleep(core)
    put_to_sleep(world, "a", ram=4)
    world.loaded("b")
    world.done(world.tickets[TicketId(2)])
    world.ask("a")
    put_to_sleep(world, "b", ram=4)
    woken(world, "a", took=0.5)
    world.change("a", keep_alive_s=3600.0)
    assert world.core.status(A).wake_s == 0.5
    world.done(world.tickets[TicketId(3)])
    world.ask("b")
    assert [action.ram_bytes for action in world.performed if hasattr(action, "ram_bytes")] == [6, 6, 4]


# --- waking elsewhere -------------------------------------------------------------------------------------------------


def locked_out(core: CoreFactory, *others: Any, **how: Any) -> Stage:
    """A scene: a sleeps on cuda:0, and could be loaded on cuda:1; b (ticket 2) is in use where it slept."""
    return one_asleep(core, *others, left=0, gpus=2, devices=(GPU0, GPU1), **how)


def test_who_can_not_wake_where_it_sleeps_is_loaded_where_there_is_room(core: CoreFactory) -> None:
    world = locked_out(core)
    world.pin("b")
    again = world.ask("a")
    assert world.said == ["Unload a for a"]
    assert world.unloaded("a") == ["Load a"]
    assert world.core.status(A).devices == (GPU1,)
    assert world.loaded("a") == [f"Grant a {again.ask.ticket}"]


def test_who_can_not_wake_and_has_nowhere_else_to_go_sleeps_on(core: CoreFactory) -> None:
    world = locked_out(core, spec("d", 10, devices=(GPU1,), pinned=True))
    world.ask("d")
    world.loaded("d")
    world.ask("a", 600.0)
    world.pin("b")
    assert world.said == ["Refuse a 4: pinned"]
    assert world.state(A) is State.HOST


def test_who_could_go_elsewhere_only_for_one_in_use_waits_for_what_passes_sooner(core: CoreFactory) -> None:
    """Where it sleeps, others took the bytes: that may pass, and elsewhere somebody would have to be drained."""
    world = locked_out(core, spec("d", 10, devices=(GPU1,)))
    world.ask("d")
    world.loaded("d")
    world.done(world.tickets[TicketId(2)])
    world.retire("b")
    world.unloaded("b")
    world.tell(ev.Observed({GPU0: DeviceReading(foreign=40)}))
    again = world.ask("a", 600.0)
    assert world.said == []
    assert world.state(A) is State.HOST
    assert world.tell(ev.Observed({GPU0: DeviceReading()})) == ["Promote a"]
    assert woken(world, "a") == [f"Grant a {again.ask.ticket}"]


def test_who_can_never_wake_where_it_sleeps_is_loaded_elsewhere_once_that_is_free(core: CoreFactory) -> None:
    world = locked_out(core, spec("d", 10, devices=(GPU1,)))
    held = world.ask("d")
    world.loaded("d")
    world.pin("b")
    world.ask("a", 600.0)
    assert world.said == ["Unload a for a"]
    assert world.unloaded("a") == []
    assert world.done(held) == ["Unload d for a"]
    world.unload_ok(world.the("unload", "d"))
    assert world.said == ["Load a"]
