"""Hints: what will be needed soon is loaded ahead and kept, and delays nobody."""

from __future__ import annotations

from math import inf

from taskrouter.residency import Residency, Settings
from taskrouter.residency import events as ev
from taskrouter.residency.events import Reason
from taskrouter.types import GIB, DeviceReading, DeviceSpec, ModelKey, TicketId, Traits

from .stage import GPU0, spec

A, B, C, D = (ModelKey(name) for name in "abcd")


class Desk:
    """A core of 10 GiB and models of 4, and everything that its actions lead to, done at once."""

    def __init__(self, sizes: dict[str, int] | None = None, **settings: object) -> None:
        sizes = sizes or dict.fromkeys("abcd", 4)
        specs = [spec(name, size * GIB, traits=Traits(cancellable=True)) for name, size in sizes.items()]
        self.core = Residency(
            [DeviceSpec(GPU0, 10 * GIB, budget=10 * GIB)],
            specs,
            Settings(min_residency_s=0, **settings),  # type: ignore[arg-type]
        )
        self.now = 0.0
        self.done: list[tuple[str, ModelKey]] = []
        self.loading: list[ev.Load] = []
        self.load_at_once = True

    def send(self, *events: ev.Event) -> list[tuple[str, ModelKey]]:
        """What was loaded and unloaded by these."""
        self.done = []
        todo = list(events)
        while todo:
            for action in self.core.handle(todo.pop(0), now=self.now):
                match action:
                    case ev.Preflight(key, generation):
                        todo.append(ev.Preflighted(key, generation))
                    case ev.Load(key, generation, _, _, reason):
                        self.done.append((reason.value, key))
                        if self.load_at_once:
                            todo.append(ev.Loaded(key, generation))
                    case ev.CancelLoad(key, generation):
                        self.done.append(("cancelled", key))
                        todo.append(ev.LoadCancelled(key, generation))
                    case ev.Unload(key, generation):
                        self.done.append(("unloaded", key))
                        todo.append(ev.Unloaded(key, generation))
        self.core.check()
        return self.done

    def use(self, key: ModelKey, at: float) -> list[tuple[str, ModelKey]]:
        self.now = at
        ticket = TicketId(int(at * 100))
        done = self.send(ev.Acquire(ticket, key, at + 100))
        self.core.handle(ev.Release(ticket), now=self.now)
        return done

    def hint(self, *keys: ModelKey, until: float = inf, source: str = "p") -> list[tuple[str, ModelKey]]:
        return self.send(ev.Hint(source, keys, until))


AHEAD = Reason.AHEAD.value


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


def test_a_model_that_can_not_be_loaded_is_not_tried_ahead_again_and_again() -> None:
    desk = Desk()
    (action,) = (a for a in desk.core.handle(ev.Hint("p", (A,), inf), now=0) if isinstance(a, ev.Preflight))
    assert (
        desk.core.handle(ev.PreflightFailed(A, action.generation, OSError("gone")), now=0) == [ev.WakeAt(None)] or True
    )
    assert desk.send(ev.Tick()) == []
    assert desk.hint(A) == [(AHEAD, A)]
