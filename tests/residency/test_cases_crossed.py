"""Behaviours that must hold (events that cross: drains kept or lifted, plans taken back), as event lists."""

from __future__ import annotations

from taskrouter.residency import events as ev
from taskrouter.residency.books import State
from taskrouter.types import DeviceReading, ModelKey, Traits

from .account import Broken, CoreFactory
from .stage import GPU0, Stage, spec
from .test_cases import draining

A, B = ModelKey("a"), ModelKey("b")


def test_a_drain_goes_on_whatever_else_is_decided_meanwhile(core: CoreFactory) -> None:
    world, _, busy = draining(core)
    promised = world.core.books(GPU0).promised
    world.ask("c")
    assert world.said == []  # what is free is promised to b
    assert (world.state(A), world.core.books(GPU0).promised) == (State.DRAINING, promised)
    assert world.done(busy) == ["Unload a for b"]


def test_a_model_retired_while_it_drains_serves_nobody_when_the_drain_is_lifted(core: CoreFactory) -> None:
    world, waiter, busy = draining(core)
    assert world.retire("a") == []
    world.tell(ev.GiveUp(waiter.ask.ticket))
    assert world.state(A) is State.DRAINING
    assert world.done(busy) == ["Unload a: unloaded_by_request"]


def test_an_exclusive_load_waits_for_the_loads_on_its_device_and_holds_back_younger_ones(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), spec("b", 4, traits=Traits(exclusive_on_device=True)), spec("c", 2))
    world.ask("a")
    world.ask("b")
    assert world.said == []
    world.ask("c")
    assert world.said == []
    assert world.loaded("a") == ["Grant a 1", "Load b"]
    assert world.loaded("b") == ["Grant b 2", "Load c"]


def test_a_load_nobody_waits_for_any_more_is_dropped_when_others_ate_its_room(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    world.ask("b", 5.0)
    assert world.said == ["Unload a for b"]
    assert world.until(world.now + 5.0) == ["Refuse b 2: deadline"]
    world.tell(ev.Observed({GPU0: DeviceReading(foreign=35)}))
    assert world.unloaded("a") == []
    assert (world.state(B), world.core.books(GPU0).promised) == (State.DISK, 0)
    assert world.tell(ev.Observed({GPU0: DeviceReading()})) == []


def test_a_warm_up_left_behind_by_an_impatient_caller_goes_on_alone(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), preflights_pass=False)
    world.acquire(A, 600.0, background=True)
    world.acquire(A, 5.0)
    assert world.until(5.0) == ["Refuse a 2: deadline"]
    world.preflight_ok(world.the("preflight", "a"))
    assert world.said == ["Load a"]
    assert world.loaded("a") == ["Grant a 1"]


def test_nobody_is_drained_for_a_ticket_that_would_be_too_late_all_the_same(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    usual = world.ask("a")
    world.advance(39.0)
    world.done(usual)  # a lease of a takes some eight and a half seconds, by average
    world.ask("a")
    start = world.now
    world.ask("b", 10.0)
    assert world.until(start + 5.5) == []
    assert world.ask("a").live
    assert world.until(start + 10.0) == ["Refuse b 4: deadline"]


def test_who_asks_again_during_the_preflight_starts_no_second_one(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), preflights_pass=False)
    world.tell(ev.GiveUp(world.acquire(A).ask.ticket))
    world.acquire(A)
    assert world.said == []
    world.preflight_ok(world.the("preflight", "a"))
    assert world.said == ["Load a"]


def test_what_a_failed_load_evicted_is_loaded_back_only_when_nobody_waits(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, selected=True), spec("b", 8), spec("d", 8))
    world.resident("a")
    world.ask("b")
    world.unloaded("a")
    world.ask("d", 600.0)
    assert world.failed("b") == ["Refuse b 2: load_failed", "Load d"]
    assert world.job("load", A) is None


def test_a_load_that_ended_long_ago_ends_no_second_time(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.resident("a")
    life = world.core.status(A).generation
    before = world.core.snapshot()
    for event in (ev.Loaded(A, life), ev.LoadFailed(A, life, Broken()), ev.LoadCancelled(A, life)):
        assert world.core.handle(event, now=world.now) == [], event
    assert world.core.snapshot() == before


def test_a_model_that_died_once_too_often_cools_down_when_its_bytes_are_free(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), failures_to_cooldown=1, cooldown_s=60.0)
    world.resident("a")
    assert world.tell(ev.Died(A, world.lives[A].generation, Broken("killed"))) == ["Kill a"]
    world.ask("a")
    assert world.said == []
    assert world.unloaded("a") == ["Refuse a 2: cooldown"]
    assert world.state(A) is State.COOLDOWN
    assert world.until(world.now + 60.0) == []
    assert world.state(A) is State.DISK
