"""Behaviours that must hold (scheduling), as event lists: who is loaded, evicted and granted, in which order."""

from __future__ import annotations

from taskrouter.residency.books import State
from taskrouter.types import ModelKey, Traits

from .account import CoreFactory, Ticket
from .stage import GPU0, GPU1, Stage, spec


def test_ten_thousand_callers_of_one_cold_model_are_one_load_and_one_grant(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), audit_every=5000, preflights_pass=False)
    tickets = [world.acquire(ModelKey("a")) for _ in range(10_000)]
    world.preflight_ok(world.the("preflight", "a"))
    assert world.loaded("a") == ["Grant a " + ",".join(str(t.ask.ticket) for t in tickets)]
    assert world.counts["Load"] == world.counts["Preflight"] == 1


def test_a_busy_model_is_not_evicted_and_the_request_queued_for_its_room_succeeds(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    busy = world.ask("a")
    world.ask("b")
    assert world.said == []
    assert world.done(busy) == ["Unload a for b"]
    assert world.unloaded("a") == ["Load b"]
    assert world.loaded("b") == ["Grant b 3"]


def test_when_the_least_recently_used_victim_is_busy_the_next_idle_one_goes(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), spec("b", 4), spec("c", 4))
    world.resident("b")
    world.ask("a")
    world.loaded("a")
    world.done(world.ask("b"))  # used after a, which is busy since
    world.advance(100.0)
    world.ask("c")
    assert world.said == ["Unload b for c"]


def test_the_least_recently_used_of_two_idle_models_goes(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), spec("b", 4), spec("c", 4))
    world.resident("a", "b")
    world.done(world.ask("a"))
    world.ask("c")
    assert world.said == ["Unload b for c"]


def test_a_just_loaded_model_survives_until_the_request_it_was_loaded_for_has_run(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    first = world.ask("a")
    world.ask("b")
    assert world.loaded("a", took=10.0) == ["Grant a 1"]
    assert world.until(12.0) == []
    assert world.done(first) == []  # protected for another 0.2 × 10 s of idling
    assert world.until(13.9) == []
    assert world.until(14.1) == ["Unload a for b"]


def test_protection_ends_with_the_load_time_under_steady_use(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    ticket = world.ask("a")
    world.loaded("a", took=10.0)
    world.ask("b", 300.0)
    for second in range(11, 20):
        world.until(float(second))
        next_ticket = world.ask("a")
        assert next_ticket.live
        assert world.done(ticket) == []
        ticket = next_ticket
    world.until(20.5)
    assert world.done(ticket) == ["Unload a for b"]


def test_calls_to_a_ready_model_never_queue_behind_a_load_or_an_unload(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 2), spec("b", 8), spec("c", 8))
    world.resident("c", "a")
    world.ask("b")
    assert world.said == ["Unload c for b"]
    assert world.ask("a").live
    world.unloaded("c")
    assert world.state(ModelKey("b")) is State.LOADING
    assert world.ask("a").live


def test_loads_that_fit_together_run_at_the_same_time(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), spec("b", 4))
    world.ask("a")
    assert world.said == ["Load a"]
    world.ask("b")
    assert world.said == ["Load b"]


def test_loads_of_one_serial_group_run_one_at_a_time_and_evict_nobody_meanwhile(core: CoreFactory) -> None:
    serial = Traits(serial_group="in-process")
    world = Stage(core, spec("a", 4, traits=serial), spec("b", 6, traits=serial), spec("c", 4))
    world.resident("c")
    world.ask("a")
    world.ask("b")
    assert world.said == []  # b needs c's room, but could not load now
    assert world.loaded("a") == ["Grant a 2", "Unload c for b"]


def test_nothing_starts_or_is_freed_on_a_device_while_an_exclusive_load_runs_there(core: CoreFactory) -> None:
    engine = Traits(exclusive_on_device=True)
    world = Stage(core, spec("a", 2), spec("b", 4, traits=engine), spec("c", 2), spec("d", 8), room=10)
    world.resident("a")
    world.ask("b")
    world.ask("c")
    world.ask("d")
    assert world.said == []
    assert world.retire("a") == []
    assert sorted(world.loaded("b")) == ["Grant b 2", "Load c", "Unload a: unloaded_by_request"]


def test_two_waiters_that_want_the_same_victim_both_finish_first_come_first_served(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8), spec("c", 8))
    world.resident("a")
    first, second = world.ask("b"), world.ask("c")
    assert world.history.count("Unload a for b") == 1
    world.unloaded("a")
    world.loaded("b")
    assert first.live
    assert world.done(first) == []
    assert world.until(world.now + 1.0) == ["Unload b for c"]
    assert world.unloaded("b") == ["Load c"]
    world.loaded("c")
    assert second.live


def test_a_b_c_a_b_c_on_one_place_becomes_a_a_b_b_c_c(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8), spec("c", 8))
    tickets = [world.ask(name, 300.0) for name in "abcabc"]
    for name in "abc":
        world.loaded(name)
        for ticket in tickets:
            if ticket.live:
                world.done(ticket)
        world.advance(1.0)
        if name != "c":
            world.unloaded(name)
    assert [line for line in world.history if line[:5] in ("Load ", "Grant")] == [
        "Load a", "Grant a 1,4", "Load b", "Grant b 2,5", "Load c", "Grant c 3,6",
    ]  # fmt: skip


def test_a_victim_hit_by_steady_traffic_drains_in_time_for_the_waiter(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8))
    world.resident("a")
    start = world.now
    busy = world.ask("a", 60.0)
    waiter = world.ask("b", 60.0)
    late = None
    for second in range(1, 40):
        world.until(start + second)
        ticket = world.ask("a", 60.0)
        if not ticket.live:
            late = late or ticket
            break
        world.done(busy)
        busy = ticket
    assert late is not None
    assert start + 20 <= world.now <= start + 31  # half of its minute, not at once and not never
    assert world.state(ModelKey("a")) is State.DRAINING
    assert world.done(busy) == ["Unload a for b"]
    assert world.unloaded("a") == ["Load b"]
    world.loaded("b")
    assert waiter.live
    assert late.state == "waiting"


def draining(core: CoreFactory) -> tuple[Stage, Ticket, Ticket]:
    """A scene: a drains for b, under a fresh lease (the second returned; the first is b's ticket)."""
    world = Stage(core, spec("a", 8), spec("b", 8), spec("c", 1))
    world.resident("a")
    start = world.now
    first = world.ask("a")
    waiter = world.ask("b", 40.0)
    assert world.until(start + 19.5) == []
    busy = world.ask("a")
    world.done(first)
    assert world.until(start + 20.0) == []
    assert world.state(ModelKey("a")) is State.DRAINING
    return world, waiter, busy


def test_a_drain_is_lifted_when_nobody_waits_any_more(core: CoreFactory) -> None:
    world, waiter, _ = draining(core)
    again = world.ask("a")
    assert not again.live
    assert world.done(waiter) == [f"Grant a {again.ask.ticket}"]
    assert world.state(ModelKey("a")) is State.READY


def test_a_drain_is_lifted_when_other_room_appears(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 5), spec("b", 5), spec("c", 5))
    world.resident("a", "b")
    start = world.now
    held = {name: world.ask(name) for name in "ab"}
    world.ask("c", 40.0)
    world.until(start + 19.5)
    for name in "ab":
        fresh = world.ask(name)
        world.done(held[name])
        held[name] = fresh
    world.until(start + 20.0)
    drained = [name for name in "ab" if world.state(ModelKey(name)) is State.DRAINING]
    assert len(drained) == 1
    other = "b" if drained == ["a"] else "a"
    assert world.done(held[other]) == [f"Unload {other} for c"]
    assert world.state(ModelKey(drained[0])) is State.READY


def test_a_pin_lifts_the_drain_of_its_model(core: CoreFactory) -> None:
    world, waiter, _ = draining(core)
    assert world.pin("a") == [f"Refuse b {waiter.ask.ticket}: pinned"]
    assert world.state(ModelKey("a")) is State.READY


def test_a_model_that_could_not_be_ready_in_time_drains_nobody(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 8, traits=Traits(start_s=30.0)))
    world.resident("a")
    world.ask("a")
    world.ask("b", 20.0)
    assert world.until(world.now + 19.0) == []
    assert world.ask("a").live
    assert world.until(world.now + 1.0) == ["Refuse b 3: deadline"]


def test_larger_than_the_device_is_refused_at_once_and_evicts_nobody(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 8), spec("b", 11))
    world.resident("a")
    world.ask("b")
    assert world.said == ["Refuse b 2: too_large"]


def test_without_room_even_with_every_idle_model_gone_nobody_is_evicted(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 6), spec("b", 3), spec("c", 8))
    world.resident("a", "b")
    busy = world.ask("a")
    world.ask("c", 300.0)
    assert world.said == []
    assert world.until(world.now + 30.0) == []
    assert sorted(world.done(busy)) == ["Unload a for c", "Unload b for c"]
    assert world.unloaded("a") == []
    assert world.unloaded("b") == ["Load c"]


def test_an_exact_fit_is_accepted_and_one_byte_more_is_refused(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 10), spec("b", 11))
    world.ask("a")
    assert world.said == ["Load a"]
    world.ask("b")
    assert world.said == ["Refuse b 2: too_large"]


def test_an_exact_fit_beside_another_evicts_nobody_and_one_byte_more_does(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 4), spec("b", 6), spec("c", 7))
    world.resident("a")
    ticket = world.ask("b")
    assert world.said == ["Load b"]
    world.loaded("b")
    world.done(ticket)
    world.retire("b")
    world.unloaded("b")
    world.ask("c")
    assert world.said == ["Unload a for c"]


def test_a_victim_that_turned_out_unneeded_stays(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 1), spec("b", 8), spec("c", 9))
    world.resident("a", "b")
    world.ask("c")
    assert world.said == ["Unload b for c"]


def test_the_same_events_give_the_same_actions(core: CoreFactory) -> None:
    def play() -> list[str]:
        world = Stage(core, spec("a", 3), spec("b", 3), spec("c", 3), spec("d", 6))
        for name in "abc":
            world.ask(name)
        for name in "abc":
            world.loaded(name, took=0.0)
        for ticket in world.tickets.values():
            world.done(ticket)
        world.advance(100.0)
        world.ask("d")
        return world.history

    assert play() == play()
    assert play()[-2:] == ["Unload a for d", "Unload b for d"]


def test_disjoint_swaps_run_side_by_side(core: CoreFactory) -> None:
    names = {"a": (GPU0,), "b": (GPU1,), "c": (GPU0,), "d": (GPU1,)}
    world = Stage(core, *(spec(name, 8, devices=devices) for name, devices in names.items()), gpus=2)
    world.resident("a", "b")
    world.ask("c")
    assert world.said == ["Unload a for c"]
    world.ask("d")
    assert world.said == ["Unload b for d"]
    assert world.unloaded("b") == ["Load d"]
    assert world.unloaded("a") == ["Load c"]


def test_overlapping_swaps_run_in_the_order_they_came(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 5), spec("b", 5), spec("c", 10), spec("d", 5))
    world.resident("a", "b")
    busy = world.ask("b")
    world.ask("c", 600.0)
    world.ask("d", 600.0)
    assert world.said == []  # a would do for d, but is reserved for c
    assert sorted(world.done(busy)) == ["Unload a for c", "Unload b for c"]


def test_a_younger_ticket_acts_outside_what_an_older_one_reserved(core: CoreFactory) -> None:
    world = Stage(
        core, spec("a", 8, devices=(GPU0,)), spec("b", 8, devices=(GPU0,)), spec("c", 8, devices=(GPU1,)), gpus=2
    )
    world.resident("a")
    world.ask("a")
    world.ask("b", 600.0)
    world.ask("c")
    assert world.said == ["Load c"]


def test_two_loads_at_once_never_book_more_than_the_budget_between_them(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 6), spec("b", 6), preflights_pass=False)
    world.acquire(ModelKey("a"))
    world.acquire(ModelKey("b"))
    world.preflight_ok(world.the("preflight", "b"))
    world.preflight_ok(world.the("preflight", "a"))
    assert world.counts["Load"] == 1


def test_two_tasks_with_one_model_are_one_copy_charged_once(core: CoreFactory) -> None:
    world = Stage(core, spec("a", 6))
    world.ask("a")
    world.ask("a")
    assert world.loaded("a") == ["Grant a 1,2"]
    assert world.core.books(GPU0).charged == 6
    assert world.counts["Load"] == 1
