"""Hints: what will be needed soon is loaded ahead and kept, and delays nobody."""

from __future__ import annotations

from math import inf

import pytest

from taskrouter.residency import Residency, Settings
from taskrouter.residency import actions as act
from taskrouter.residency import events as ev
from taskrouter.residency.events import Reason
from taskrouter.types import CPU, GIB, DeviceReading, DeviceSpec, ModelKey, ModelSpec, TicketId, Traits

from .stage import GPU0, spec

A, B, C, D = (ModelKey(name) for name in "abcd")


class Desk:
    """A core of 10 GiB and models of 4, and everything that its actions lead to, done at once."""

    def __init__(
        self, sizes: dict[str, int] | None = None, *, specs: list[ModelSpec] | None = None, **settings: object
    ) -> None:
        sizes = sizes or dict.fromkeys("abcd", 4)
        specs = specs or [spec(name, size * GIB, traits=STOPPABLE) for name, size in sizes.items()]
        self.core = Residency(
            [DeviceSpec(GPU0, 10 * GIB, budget=10 * GIB)],
            specs,
            Settings(min_residency_s=0, **settings),  # type: ignore[arg-type]
        )
        self.now = 0.0
        self.done: list[tuple[str, ModelKey]] = []
        self.loading: list[act.Load] = []
        self.load_at_once = True

    def send(self, *events: ev.Event) -> list[tuple[str, ModelKey]]:
        """What was loaded and unloaded by these."""
        self.done = []
        todo = list(events)
        while todo:
            for action in self.core.handle(todo.pop(0), now=self.now):
                match action:
                    case act.Preflight(key, generation):
                        todo.append(ev.Preflighted(key, generation))
                    case act.Load(key, generation, _, _, reason):
                        self.done.append((reason.value, key))
                        if self.load_at_once:
                            todo.append(ev.Loaded(key, generation))
                    case act.CancelLoad(key, generation):
                        self.done.append(("cancelled", key))
                        todo.append(ev.LoadCancelled(key, generation))
                    case act.Unload(key, generation):
                        self.done.append(("unloaded", key))
                        todo.append(ev.Unloaded(key, generation))
        self.core.check()
        return self.done

    def use(self, key: ModelKey, at: float) -> list[tuple[str, ModelKey]]:
        self.now = at
        ticket = TicketId(int(at * 100))
        return [*self.send(ev.Acquire(ticket, key, at + 100)), *self.send(ev.Release(ticket))]

    def hint(self, *keys: ModelKey, until: float = inf, source: str = "p") -> list[tuple[str, ModelKey]]:
        return self.send(ev.Hint(source, keys, until))


AHEAD = Reason.AHEAD.value
STOPPABLE = Traits(cancellable=True)


def test_what_is_needed_next_is_loaded_into_free_room_in_order() -> None:
    desk = Desk()
    assert desk.hint(B, A, C) == [(AHEAD, B), (AHEAD, A)]
    assert desk.use(B, 10) == []


def test_it_takes_the_place_of_what_is_needed_later_and_of_nothing_needed_sooner() -> None:
    desk = Desk()
    desk.use(A, 10)
    desk.use(B, 20)
    desk.now = 21
    assert desk.hint(B, C, A) == [("unloaded", A), (AHEAD, C)]
    assert desk.hint(B, C, D) == []


def test_what_nobody_named_goes_once_it_has_been_idle_for_longer_than_loading_takes() -> None:
    desk = Desk()
    desk.use(A, 15)
    desk.use(B, 20)
    for model in desk.core._models.values():
        model.load_s = 10.0
    desk.now = 21
    assert desk.hint(C) == []  # both were used less than the 10 s ago that a load takes
    assert desk.core._plans.wake == 25
    desk.now = 25
    assert desk.send(ev.Tick()) == [("unloaded", A), (AHEAD, C)]


def test_what_is_needed_soon_is_kept_when_a_ticket_needs_room() -> None:
    for policy in ("lru", "cost_aware"):
        desk = Desk(policy=policy)
        desk.use(A, 10)
        desk.use(B, 20)
        desk.now = 30
        desk.hint(A)
        assert desk.use(C, 40)[0] == ("unloaded", B)


def test_a_ticket_takes_the_bytes_of_a_load_ahead() -> None:
    desk = Desk({"a": 8, "b": 8})
    desk.load_at_once = False
    assert desk.hint(A) == [(AHEAD, A)]
    assert desk.use(B, 1)[:2] == [("cancelled", A), ("request", B)]


def test_what_is_loaded_ahead_is_as_good_as_any_load_once_somebody_asks() -> None:
    desk = Desk({"a": 8, "b": 8})
    desk.load_at_once = False
    desk.hint(A)
    assert desk.send(ev.Acquire(TicketId(1), A, 100)) == []
    assert desk.send(ev.Acquire(TicketId(2), B, 100)) == []


def test_a_hint_is_over_at_its_end_and_when_its_source_says_nothing_more() -> None:
    desk = Desk()
    desk.core.handle(ev.Observed({GPU0: DeviceReading(foreign=10 * GIB)}), now=0)
    assert desk.hint(A, until=5) == []
    desk.now = 6
    assert desk.send(ev.Tick(), ev.Observed({GPU0: DeviceReading()})) == []
    desk.core.handle(ev.Observed({GPU0: DeviceReading(foreign=10 * GIB)}), now=6)
    assert desk.hint(A, until=50) + desk.hint() == []
    assert desk.send(ev.Observed({GPU0: DeviceReading()})) == []


def preflights(actions: list[act.Action]) -> list[act.Preflight]:
    return [action for action in actions if isinstance(action, act.Preflight)]


def test_a_model_that_can_not_be_loaded_is_tried_once_as_long_as_it_is_named() -> None:
    desk = Desk()
    (action,) = preflights(desk.core.handle(ev.Hint("p", (A,), inf), now=0))
    desk.core.handle(ev.PreflightFailed(A, action.generation, OSError("gone")), now=0)
    assert preflights(desk.core.handle(ev.Tick(), now=1)) == []
    assert preflights(desk.core.handle(ev.Hint("p", (A, B), inf), now=2))[0].key == B
    desk.core.handle(ev.Hint("p", (B,), inf), now=3)
    assert preflights(desk.core.handle(ev.Hint("p", (A,), inf), now=4))[0].key == A, "named anew"


def test_what_was_told_to_go_is_not_loaded_ahead_at_once() -> None:
    desk = Desk()
    desk.use(A, 10)
    assert desk.hint(A) == []
    assert desk.send(ev.Retire(A)) == [("unloaded", A)]
    assert desk.use(A, 20) == [("request", A)]


@pytest.mark.parametrize("keep_alive_s", [0.0, 5.0])
def test_what_is_needed_soon_does_not_idle_away(keep_alive_s: float) -> None:
    specs = [spec("a", 4 * GIB, keep_alive_s=keep_alive_s, traits=STOPPABLE)]
    desk = Desk(specs=specs)
    assert desk.hint(A, until=100) == [(AHEAD, A)]
    for now in range(1, 100):
        desk.now = float(now)
        assert desk.send(ev.Tick()) == []
    desk.now = 110.0
    assert desk.send(ev.Tick()) == [("unloaded", A)]


def test_once_what_is_in_its_way_is_idle_it_is_loaded_in_due_time() -> None:
    desk = Desk({"a": 6, "b": 6})  # b takes 14 s to load
    assert desk.send(ev.Acquire(TicketId(1), A, 100)) == [("request", A)]
    assert desk.hint(B) == []
    assert desk.send(ev.Release(TicketId(1))) == []
    desk.now = 13.9
    assert desk.send(ev.Tick()) == []
    desk.now = 14.0
    assert desk.send(ev.Tick()) == [("unloaded", A), (AHEAD, B)]


def test_what_never_fits_is_passed_by() -> None:
    assert Desk({"a": 40, "b": 4}).hint(A, B) == [(AHEAD, B)]


def test_priority_outweighs_what_is_needed_soon() -> None:
    for policy in ("lru", "cost_aware"):
        specs = [spec("a", 5 * GIB, priority=10), spec("b", 5 * GIB, traits=STOPPABLE), spec("c", 5 * GIB)]
        desk = Desk(specs=specs, policy=policy)
        desk.use(A, 10)
        desk.use(B, 20)
        desk.now = 30
        desk.hint(B)
        assert desk.use(C, 100) == [("unloaded", B), ("request", C), ("unloaded", C), (AHEAD, B)]


def test_a_ticket_for_a_model_that_is_on_its_way_out_comes_before_what_is_needed_soon() -> None:
    group = Traits(serial_group="one")
    core = Residency(
        [DeviceSpec(GPU0, 10 * GIB, budget=10 * GIB)],
        [spec("a", 4 * GIB, traits=group), spec("b", 4 * GIB, traits=group)],
        Settings(min_residency_s=0),
    )
    core.handle(ev.Acquire(TicketId(1), A, 100), now=0)
    core.handle(ev.Preflighted(A, 1), now=0)
    core.handle(ev.Loaded(A, 1), now=1)
    core.handle(ev.Release(TicketId(1)), now=1)
    core.handle(ev.Retire(A), now=2)
    core.handle(ev.Acquire(TicketId(2), A, 100), now=3)
    assert preflights(core.handle(ev.Hint("p", (B,), inf), now=3)) == []
    assert [action.key for action in preflights(core.handle(ev.Unloaded(A, 1), now=4))] == [A]


def test_what_is_said_again_decides_nothing_anew() -> None:
    desk = Desk()
    desk.hint(A)
    assert desk.core.handle(ev.Hint("p", (A,), 1e9), now=1) == []
    assert repr(desk.core._hints) == "<Hints 1 models by 1 sources>"


def test_who_sleeps_is_not_woken_ahead() -> None:
    for keeps in (True, False):
        light = Traits(can_sleep=True, keeps_weights=keeps, start_s=90.0, cancellable=True)
        core = Residency(
            [DeviceSpec(GPU0, 10 * GIB, budget=10 * GIB), DeviceSpec(CPU, 99 * GIB, budget=99 * GIB)],
            [spec("a", 6 * GIB, traits=light), spec("b", 6 * GIB)],
            Settings(min_residency_s=0, host_budget=50 * GIB),
        )
        for number, key in enumerate((A, B)):
            core.handle(ev.Acquire(TicketId(number), key, 1e4), now=500 * number)
            core.handle(ev.Preflighted(key, 1), now=500 * number)
            if key == B:
                core.handle(ev.Demoted(A, 1, 6 * GIB), now=500 * number)
            core.handle(ev.Loaded(key, 1), now=500 * number + 90)
            core.handle(ev.Release(TicketId(number)), now=500 * number + 90)
        core.handle(ev.Retire(B), now=1000)
        core.handle(ev.Unloaded(B, 1), now=1001)
        woken = [type(action) for action in core.handle(ev.Hint("p", (A,), inf), now=1002)]
        assert act.Promote not in woken
