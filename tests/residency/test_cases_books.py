"""Behaviours that must hold (books: devices, slots, counts, keep-alive), as event lists."""

from __future__ import annotations

import pytest

from taskrouter.types import CPU, Footprint, TicketId, Traits

from .account import CoreFactory
from .stage import GPU0, GPU1, Stage, spec


def test_a_model_takes_the_device_that_needs_no_eviction(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8, devices=(GPU0, GPU1)), gpus=2)
    world.resident("a")
    world.ask("b")
    assert world.said == ["Load b"]
    assert world.the("load", "b").devices == (GPU1,)


def test_host_memory_beside_a_device_is_charged_and_makes_room_too(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 2, ram=60), spec("b", 2, ram=60))
    world.resident("a")
    assert world.core.books(CPU).charged == 60
    world.ask("b")
    assert world.said == ["Unload a for b"]


def test_max_models_counts_models_whatever_their_bytes(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 1), spec("b", 1), spec("c", 1), max_models=2)
    world.resident("a", "b")
    world.ask("c")
    assert world.said == ["Unload a for c"]


def test_no_more_leases_than_slots_and_the_next_is_granted_as_one_ends(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, slots=2))
    first = world.ask("a")
    world.ask("a")
    world.ask("a")
    assert world.loaded("a") == ["Grant a 1,2"]
    assert world.done(first) == ["Grant a 3"]


def test_slots_that_were_found_go_before_those_of_the_traits_and_after_those_of_the_file(core: CoreFactory) -> None:
    told = spec("b", 4, slots=1, traits=Traits(slots=1))
    world = Stage(core, spec("a", 4, traits=Traits(slots=1)), told, preflights_pass=False)
    for name in "ab":
        for _ in range(3):
            world.ask(name)
        world.preflight_ok(world.the("preflight", name), slots=2)
    assert world.loaded("a") == ["Grant a 1,2"]
    assert world.change("a", priority=1) == []
    assert world.done(world.tickets[TicketId(1)]) == ["Grant a 3"]
    assert world.loaded("b") == ["Grant b 4"]


def test_priority_goes_first_among_those_who_wait_and_waiting_makes_up_for_it(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8), spec("c", 8), ageing_s=3.0)
    world.resident("a")
    busy = world.ask("a")
    world.ask("b", 600.0)
    world.advance(2.0)
    world.ask("c", 600.0, priority=1)
    assert world.done(busy) == ["Unload a for c"]  # 2 s later, but worth 3


def test_keep_alive_unloads_an_idle_model(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4, keep_alive_s=30.0))
    ticket = world.ask("a")
    world.loaded("a")
    world.advance(50.0)
    assert world.done(ticket) == []
    assert world.until(world.now + 29.0) == []
    assert world.until(world.now + 1.5) == ["Unload a: keep_alive_passed"]


def test_a_grown_neighbour_makes_idle_models_go_and_starts_nothing(core: CoreFactory) -> None:
    from taskrouter.residency.events import Observed
    from taskrouter.types import DeviceReading

    world = Stage(core, spec("a", 5), spec("b", 5), spec("c", 2))
    world.resident("a", "b")
    busy = world.ask("a")
    assert world.tell(Observed({GPU0: DeviceReading(foreign=36)})) == ["Unload b: device_shrank"]
    world.ask("c", 600.0)
    assert world.said == []
    assert world.unloaded("b") == []
    assert world.done(busy)[:1] == ["Unload a: device_shrank"]


@pytest.mark.parametrize("measured", [7, 5])
def test_a_measurement_above_what_was_declared_is_charged_and_one_below_is_not(
    core: CoreFactory, measured: int
) -> None:
    world = Stage(core, spec("a", 6))
    world.ask("a")
    world.loaded("a", measured=Footprint(measured))
    assert world.core.books(GPU0).charged == max(6, measured)
