"""What the core can be asked: who would go first, what is there, and how long a request would wait."""

from __future__ import annotations

import pytest

from taskrouter.residency import Residency, Settings, State
from taskrouter.residency import events as ev
from taskrouter.types import DeviceSpec, ModelKey, ModelSpec, TicketId, Traits

from .stage import GPU0, GPU1, spec
from .test_sleep_cases import Bedroom, sleepers

A, B, C = (ModelKey(name) for name in "abc")


def room(*specs: ModelSpec, **settings: object) -> Bedroom:
    return Bedroom(specs, **settings)  # type: ignore[arg-type]


# --- who is there, and who would go -----------------------------------------------------------------------------------


def test_who_would_go_first_is_idle_and_not_pinned() -> None:
    core = room(spec("a", 3, pinned=True), spec("b", 3), spec("c", 3))
    assert core.core.lru() is None
    for key in (A, B, C):
        core.use(key)
    assert core.core.resident() == [A, B, C]
    assert core.core.lru() == B
    held = core.ask(B)
    assert core.core.lru() == C
    core.send(ev.Release(held))
    assert (core.core.resident(), core.core.lru()) == ([A, C, B], C)


def test_under_cost_aware_it_is_the_one_worth_least() -> None:
    core = room(spec("a", 3), spec("b", 3), policy="cost_aware")
    core.use(B)
    for _ in range(8):
        core.use(A)
    core.use(B)
    assert (core.core.resident(), core.core.lru()) == ([A, B], B)


# --- when a request could start ---------------------------------------------------------------------------------------


def test_a_request_for_a_model_with_a_free_slot_starts_at_once_and_else_waits_for_those_before_it() -> None:
    core = room(spec("a", 3, slots=1), spec("b", 3))
    for key in (A, B):
        core.use(key)
    core.ask(B)
    assert core.core.expected_start(B, now=core.now) == 0.0, "any number at a time"
    assert core.core.expected_start(A, now=core.now) == 0.0
    core.ask(A)
    assert core.core.expected_start(A, now=core.now) == pytest.approx(1.0)
    core.ask(A)
    assert core.core.expected_start(A, now=core.now) == pytest.approx(2.0)


def test_what_was_never_loaded_may_be_quick() -> None:
    assert room(spec("a", 3)).core.expected_start(A, now=0.0) == 0.0


def test_who_wakes_or_falls_asleep_is_expected_by_what_is_left_of_that() -> None:
    core = room(*sleepers("a", "b"))
    core.use(A)
    for first, second in ((B, A), (A, B)):  # each sleeps and wakes once; waking takes 5 s
        ticket = core.ask(first)
        core.sleep(second)
        if core.state(first) is State.PROMOTING:
            core.send(ev.Promoted(first, 1), after=5)
        else:
            core.send(ev.Loaded(first, 1), after=20)
        core.send(ev.Release(ticket))
    ticket = core.ask(B)
    core.sleep(A)
    core.send(ev.Promoted(B, 1), after=5)
    core.send(ev.Release(ticket))
    core.ask(A)
    core.sleep(B)
    assert core.state(A) is State.PROMOTING
    assert core.core.expected_start(A, now=core.now + 2) == pytest.approx(3.0)
    assert core.core.expected_start(A, now=core.now + 60) == 0.0
    core.send(ev.Promoted(A, 1), after=5)
    core.send(ev.Release(TicketId(core.tickets)))
    core.ask(B)
    assert core.state(A) is State.DEMOTING
    unload_s = core.core.expected_start(A, now=core.now) - 5.0
    assert unload_s == pytest.approx(1.0)
    assert core.core.expected_start(A, now=core.now + 60) == pytest.approx(5.0)


def test_a_load_that_room_is_being_made_for_comes_first_in_its_group() -> None:
    group = Traits(serial_group="one")
    core = room(spec("a", 8, traits=group), spec("b", 8, traits=group), spec("c", 8))
    for key in (B, A, C):
        ticket = core.ask(key)
        for other in (A, B):
            if core.state(other) is State.UNLOADING:
                core.send(ev.Unloaded(other, 1))
        core.send(ev.Loaded(key, 1), after=20)
        core.send(ev.Release(ticket))
    core.ask(B)
    assert core.state(C) is State.UNLOADING
    assert core.core.expected_start(B, now=core.now) == pytest.approx(20.0)
    assert core.core.expected_start(A, now=core.now) == pytest.approx(40.0)


def test_who_starts_alone_on_its_device_waits_for_the_loads_there_and_not_elsewhere() -> None:
    alone = Traits(exclusive_on_device=True)
    devices = [DeviceSpec(gpu, 40, budget=10) for gpu in (GPU0, GPU1)]
    specs = [spec("a", 4), spec("b", 4, traits=alone), spec("c", 4, traits=alone, devices=(GPU0, GPU1))]
    core = Residency(devices, specs, Settings(min_residency_s=0))
    now = 0.0
    for number, key in enumerate((A, B, C, A)):
        core.handle(ev.Acquire(TicketId(number), key, 1e6), now=now)
        generation = 2 if number == 3 else 1
        core.handle(ev.Preflighted(key, generation), now=now)
        if number < 3:
            now += 20
            core.handle(ev.Loaded(key, 1), now=now)
            core.handle(ev.Release(TicketId(number)), now=now)
            core.handle(ev.Retire(key), now=now)
            core.handle(ev.Unloaded(key, 1), now=now)
    core.check()
    assert core.status(A).state is State.LOADING
    assert core.expected_start(B, now=now + 5) == pytest.approx(15 + 20)
    assert core.expected_start(C, now=now + 5) == pytest.approx(20), "the other device is quiet"
