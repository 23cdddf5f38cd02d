"""A configuration that changes while everything runs, by event lists: who goes, who stays, and what budgets do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taskrouter.residency import events as ev
from taskrouter.residency.books import MODEL_SLOTS, Settings, State
from taskrouter.types import CPU, DeviceSpec, Footprint, ModelKey, ModelSpec, Traits

from .account import CoreFactory
from .stage import GPU0, Stage, spec
from .test_sleep_cases import Bedroom, sleepers

A, B, C = ModelKey("a"), ModelKey("b"), ModelKey("c")


def configure(world: Stage, *names: str, room: int | None = None, **settings: int | str) -> list[str]:
    """All is as it was, but for the models that are named, the GPU's budget and these settings."""
    gpu = world.devices[GPU0]
    devices = [replace(gpu, budget=room if room is not None else gpu.budget), world.devices[CPU]]
    specs = tuple(world.specs[ModelKey(name)] for name in names)
    changed = replace(world.settings, **settings)  # type: ignore[arg-type]
    return world.tell(ev.Configure(specs, tuple(devices), changed))


def test_an_idle_model_that_is_no_longer_named_goes_at_once_and_the_others_stay(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), spec("b", 4))
    world.resident("a", "b")
    assert configure(world, "b") == ["Unload a: no_longer_configured"]
    world.unloaded("a")
    assert world.core.status(B).state is State.READY
    assert world.core.status(B).generation == 1


def test_one_that_is_in_use_drains_first_and_takes_nobody_new(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.resident("a")
    busy = world.ask("a")
    assert configure(world) == []
    assert world.state(A) is State.DRAINING
    late = world.ask("a")
    assert world.said == [f"Refuse a {late.ask.ticket}: no_longer_configured"]
    assert world.done(busy) == ["Unload a: no_longer_configured"]


def test_one_that_has_gone_is_forgotten_by_the_next_configuration(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 1))
    world.resident("a")
    configure(world, "b")
    world.unloaded("a")
    assert A not in world.core.snapshot().models
    handle = world.core.handle(ev.Configure((world.specs[B],), tuple(world.devices.values()), world.settings), now=900)
    assert handle == []
    (refuse,) = (a for a in world.core.handle(ev.Acquire(ticket=99, key=A, deadline=1e4), now=901))  # type: ignore[arg-type]
    assert refuse.refusal.reason is ev.Reason.UNKNOWN_MODEL  # type: ignore[union-attr]


def test_who_waits_for_it_is_told_and_its_load_is_given_up(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, traits=Traits(cancellable=True)))
    world.ask("a")
    assert configure(world) == ["Refuse a 1: no_longer_configured", "CancelLoad a"]
    world.load_cancelled(world.the("load", "a"))
    assert world.core.books(GPU0).charged == 0


def test_a_load_that_cannot_be_given_up_leaves_nothing_resident(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.ask("a")
    configure(world)
    assert world.loaded("a") == ["Unload a: no_longer_configured"]


def test_one_that_is_named_again_before_it_has_gone_stays(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.resident("a")
    busy = world.ask("a")
    configure(world)
    assert configure(world, "a") == []
    assert world.state(A) is State.READY
    world.ask("a")
    assert world.said == ["Grant a 3"]
    assert world.done(busy) == []
    assert world.core.status(A).generation == 1


def test_one_that_is_named_again_while_it_loads_is_kept(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    world.ask("a")
    configure(world)
    configure(world, "a")
    again = world.ask("a")
    assert world.loaded("a") == [f"Grant a {again.ask.ticket}"]


def test_one_that_is_named_again_when_its_load_was_given_up_is_loaded_anew(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, traits=Traits(cancellable=True)))
    world.ask("a")
    configure(world)
    configure(world, "a")
    world.ask("a")
    world.load_cancelled(world.the("load", "a"))
    assert world.said == ["Load a"]


def test_what_drained_for_another_still_does_when_it_is_named_again(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    long = world.ask("a")
    world.ask("b", 20.0)
    world.until(world.now + 9.5)
    busy = world.ask("a")
    world.release(long)
    world.until(world.now + 1.0)
    assert world.state(A) is State.DRAINING
    configure(world, "b")
    configure(world, "a", "b")
    assert world.state(A) is State.DRAINING
    assert world.done(busy) == ["Unload a for b"]


def test_its_residue_stays_in_the_books_until_it_was_seen_free(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    configure(world, "b")
    world.unloaded("a", residue=3)
    configure(world, "b")
    assert world.core.books(GPU0).residue == 3
    assert A in world.core.snapshot().models
    world.tell(ev.Reclaimed(A))
    assert A not in world.core.snapshot().models
    assert world.core.books(GPU0).residue == 0


def test_what_a_failed_load_had_evicted_is_not_loaded_back_when_the_file_names_it_no_more(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, selected=True), spec("b", 8))
    world.resident("a")
    world.ask("b")
    world.unloaded("a")
    configure(world, "b")
    assert world.failed("b") == ["Refuse b 2: load_failed"]
    assert world.state(A) is State.DISK


def test_what_was_to_be_loaded_back_is_not_when_the_file_names_it_no_more(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8, selected=True), spec("b", 8), spec("c", 8))
    world.resident("a")
    world.ask("b")
    world.unloaded("a")
    world.preflights_pass = False
    world.ask("c")
    world.failed("b")  # a is remembered, and c waits
    configure(world, "b", "c")
    world.preflight_failed(world.the("preflight", "c"))
    assert world.state(A) is State.DISK
    assert world.job("preflight", A) is None


def test_a_model_that_is_being_checked_is_forgotten_when_that_has_ended(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), preflights_pass=False)
    world.ask("a")
    assert configure(world) == ["Refuse a 1: no_longer_configured"]
    assert A in world.core.snapshot().models
    world.preflight_ok(world.the("preflight", "a"))
    assert world.jobs == []
    assert A not in world.core.snapshot().models


def test_it_is_not_loaded_ahead_either(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 1))
    world.resident("a")
    world.send(ev.Hint("p", (A,), 1e4))
    configure(world, "b")
    world.unloaded("a", residue=1)  # it is still known, and there would be room
    assert world.jobs == []


def test_a_smaller_budget_evicts_who_is_idle_and_refuses_at_once_what_never_fits(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), spec("b", 4), spec("c", 8))
    world.resident("a", "b")
    busy = world.ask("b")
    world.ask("c", 300.0)
    assert configure(world, "a", "b", "c", room=6) == ["Unload a: device_shrank", "Refuse c 4: too_large"]
    assert world.core.status(B).leases == 1
    world.release(busy)


def test_a_committed_plan_that_is_too_large_now_is_taken_back(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    world.ask("b")
    assert world.said == ["Unload a for b"]
    assert configure(world, "a", "b", room=6) == ["Refuse b 2: too_large"]
    world.unloaded("a")
    assert world.core.books(GPU0).promised == 0


def test_so_is_one_that_would_fit_but_for_what_another_left_behind(core: CoreFactory) -> None:
    world = Stage(core, spec("x", 2), spec("a", 6), spec("b", 6))
    world.resident("x")
    world.retire("x")
    world.unloaded("x", residue=1)
    world.resident("a")
    world.ask("b")
    assert world.said == ["Unload a for b"]
    assert configure(world, "x", "a", "b", room=6) == ["Refuse b 3: no_room"]
    world.unloaded("a")


def test_a_larger_budget_lets_in_who_waits(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    busy = world.ask("a")
    world.ask("b", 300.0)
    assert configure(world, "a", "b", room=16) == ["Load b"]
    world.release(busy)


def test_a_new_device_is_taken_into_the_books(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8))
    more = DeviceSpec(world.devices[GPU0].id, 40, budget=10), world.devices[CPU]
    world.tell(ev.Configure((world.specs[A],), (*more, DeviceSpec(type(GPU0)("cuda:7"), 40, budget=10)), Settings()))
    assert world.core.books(type(GPU0)("cuda:7")).free == 10


def test_a_larger_need_that_a_person_wrote_counts_at_once_and_a_smaller_one_from_the_next_load(
    core: CoreFactory,
) -> None:
    world = Stage(core, spec("a", 4))
    world.resident("a")
    world.specs[A] = replace(world.specs[A], need=Footprint(7))
    configure(world, "a")
    assert world.core.books(GPU0).charged == 7
    world.specs[A] = replace(world.specs[A], need=Footprint(2))
    configure(world, "a")
    assert world.core.books(GPU0).charged == 7
    world.retire("a")
    world.unloaded("a")
    world.need_low[A] = Footprint(2)
    world.ask("a")
    assert world.core.books(GPU0).charged == 2


def test_models_are_counted_from_when_the_file_says_so(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 1), spec("b", 1), spec("c", 1))
    world.resident("a", "b")
    assert configure(world, "a", "b", "c", max_models=2) == []
    assert world.core.books(MODEL_SLOTS).charged == 2
    world.ask("c")
    assert world.said == ["Unload a for c"]
    assert configure(world, "a", "b", "c", max_models=1) == ["Unload b: device_shrank"]


def test_models_are_counted_no_longer_and_what_waited_for_a_place_is_loaded(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 1), spec("b", 1), max_models=1)
    world.resident("a")
    busy = world.ask("a")
    world.ask("b", 300.0)
    assert configure(world, "a", "b", max_models=0) == ["Load b"]
    assert MODEL_SLOTS not in world.core.snapshot().devices
    world.release(busy)


def test_a_plan_that_was_made_without_counting_is_made_anew(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    world.ask("b")
    assert configure(world, "a", "b", max_models=1) == []
    assert world.unloaded("a") == ["Load b"]
    assert world.core.books(MODEL_SLOTS).charged == 1


@pytest.mark.parametrize("policy", ["lru", "cost_aware"])
def test_the_policy_that_is_written_now_decides(core: CoreFactory, policy: str) -> None:
    world = Stage(core, spec("a", 4), spec("b", 4), spec("c", 4), policy="lru")
    world.advance(1.0)
    ticket = world.ask("a")
    world.loaded("a", took=60.0)  # dear to bring back, and used longest ago
    world.release(ticket)
    world.resident("b")
    configure(world, "a", "b", "c", policy=policy)
    world.ask("c")
    assert world.said == [f"Unload {'a' if policy == 'lru' else 'b'} for c"]


def test_who_waited_behind_a_drain_that_ends_with_it_is_refused_and_not_granted(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8), spec("c", 1))
    world.resident("a")
    long = world.ask("a")
    world.ask("b", 20.0)
    world.until(world.now + 9.5)
    busy = world.ask("a")
    world.release(long)
    world.until(world.now + 1.0)
    assert world.state(A) is State.DRAINING
    late = world.ask("a")
    said = configure(world, "c", max_models=2)  # all plans are taken back, and b's with it
    assert f"Refuse a {late.ask.ticket}: no_longer_configured" in said
    assert world.done(busy) == ["Unload a: no_longer_configured"]


def bed(room: Bedroom, *specs: ModelSpec, beds: int) -> None:
    devices = (DeviceSpec(GPU0, 40, budget=10), DeviceSpec(CPU, 100, budget=100))
    room.send(ev.Configure(specs, devices, Settings(host_budget=beds, min_residency_s=0)))


def test_without_a_host_budget_who_sleeps_is_unloaded_and_nobody_is_put_to_sleep() -> None:
    two = sleepers("a", "b")
    room = Bedroom(two)
    room.asleep(A, under=B)
    bed(room, *two, beds=0)
    assert room.state(A) is State.UNLOADING
    room.send(ev.Unloaded(A, 1))
    room.ask(A)
    assert room.state(B) is State.UNLOADING


def test_with_a_host_budget_models_sleep_from_then_on() -> None:
    two = sleepers("a", "b")
    room = Bedroom(two, beds=0)
    room.use(A)
    bed(room, *two, beds=100)
    room.ask(B)
    assert room.state(A) is State.DEMOTING


def test_a_sleeper_that_is_no_longer_named_goes_and_one_that_falls_asleep_goes_then() -> None:
    two = sleepers("a", "b")
    room = Bedroom(two)
    room.asleep(A, under=B)
    bed(room, two[1], beds=100)
    assert room.state(A) is State.UNLOADING
    room.send(ev.Unloaded(A, 1))
    bed(room, *two, beds=100)
    room.ask(A)
    assert room.state(B) is State.DEMOTING
    bed(room, two[0], beds=100)
    (unload, _) = room.sleep(B)
    assert unload.why.reason is ev.Reason.REMOVED  # type: ignore[union-attr]
    bed(room, *two, beds=100)
    assert room.state(B) is State.UNLOADING


def test_one_that_falls_asleep_and_is_named_again_sleeps() -> None:
    two = sleepers("a", "b")
    room = Bedroom(two)
    room.use(A)
    room.ask(B)
    bed(room, two[1], beds=100)
    bed(room, *two, beds=100)
    room.sleep(A)
    assert room.state(A) is State.HOST


def test_a_sleeper_needs_as_much_when_it_wakes_as_it_held_whatever_the_file_says_by_then() -> None:
    two = sleepers("a", "b")
    room = Bedroom(two)
    room.asleep(A, under=B)
    room.send(ev.Retire(B))
    room.send(ev.Unloaded(B, 1))
    bed(room, replace(two[0], need=Footprint(2)), two[1], beds=100)
    room.ask(A)
    assert room.state(A) is State.PROMOTING
    assert room.core.books(GPU0).charged == 6


def test_one_whose_need_was_lowered_while_it_fell_asleep_still_wakes_into_what_it_held() -> None:
    two = sleepers("a", "b")
    room = Bedroom(two)
    room.use(A)
    room.ask(B)
    bed(room, replace(two[0], need=Footprint(2)), two[1], beds=100)
    room.sleep(A)
    assert room.core.status(A).need_bytes == 6
