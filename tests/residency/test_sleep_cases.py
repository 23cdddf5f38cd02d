"""Sleeping, by event lists: beds in RAM, what goes wrong on the way, and who is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from taskrouter.residency import Residency, Settings, State
from taskrouter.residency import actions as act
from taskrouter.residency import events as ev
from taskrouter.types import CPU, GIB, DeviceReading, DeviceSpec, Footprint, ModelKey, ModelSpec, TicketId, Traits

from .account import CoreFactory
from .stage import GPU0, spec

SLEEPS = Traits(can_sleep=True, start_s=30.0)
A, B, C, D = (ModelKey(name) for name in "abcd")


class Bedroom:
    """Ten bytes on the GPU, as many of RAM as are given, and models that sleep; loads end at once."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        *,
        ram: int = 100,
        beds: int = 100,
        core: CoreFactory = Residency,
        **settings: Any,
    ) -> None:
        devices = [DeviceSpec(GPU0, 40, budget=10), DeviceSpec(CPU, ram, budget=ram)]
        settled = Settings(host_budget=beds, min_residency_s=0, **settings)
        self.core = cast(Residency, core(devices, specs, settled))
        self.now = 0.0
        self.tickets = 0

    def send(self, event: ev.Event, *, after: float = 1.0) -> list[act.Action]:
        self.now += after
        actions: list[act.Action] = [a for a in self.core.handle(event, now=self.now) if not isinstance(a, act.WakeAt)]
        self.core.check()
        return actions

    def ask(self, key: ModelKey, wait: float = 1000.0) -> TicketId:
        """Ask, and let the preflight pass."""
        self.tickets += 1
        ticket = TicketId(self.tickets)
        for action in self.send(ev.Acquire(ticket, key, self.now + 1 + wait)):
            if isinstance(action, act.Preflight):
                self.last = self.send(ev.Preflighted(key, action.generation))
        return ticket

    def use(self, key: ModelKey) -> None:
        """Ask, load, and be done."""
        ticket = self.ask(key)
        if self.state(key) is State.LOADING:
            self.send(ev.Loaded(key, self.generation(key)), after=20)
        self.send(ev.Release(ticket))

    def sleep(self, key: ModelKey, ram: int | None = None, **residue: int) -> list[act.Action]:
        size = ram if ram is not None else 6
        return self.send(ev.Demoted(key, self.generation(key), size, (residue and {GPU0: residue["left"]}) or {}))

    def asleep(self, key: ModelKey, *, under: ModelKey) -> None:
        """One sleeps, and the other, which took its place, is idle."""
        self.asleep_with(key, under=under)

    def asleep_with(self, key: ModelKey, *, under: ModelKey, **residue: int) -> None:
        """The same; the one that sleeps left so much behind."""
        self.use(key)
        ticket = self.ask(under)
        self.sleep(key, **residue)
        self.send(ev.Loaded(under, self.generation(under)), after=20)
        self.send(ev.Release(ticket))

    def state(self, key: ModelKey) -> State:
        return self.core.status(key).state

    def generation(self, key: ModelKey) -> int:
        return self.core.status(key).generation


def sleepers(*names: str, need: int = 6, **more: Any) -> list[ModelSpec]:
    return [spec(name, need, traits=SLEEPS, **more) for name in names]


def two_asleep(**how: Any) -> Bedroom:
    """B sleeps in RAM for one, and A goes to sleep in its place: B is being forgotten, A waits for its bed."""
    room = Bedroom(sleepers("a", "b", "c"), beds=7, **how)
    room.use(B)
    room.ask(A)
    room.sleep(B)
    room.send(ev.Loaded(A, 1), after=20)
    room.send(ev.Release(TicketId(room.tickets)))
    room.ask(C)
    assert [type(action).__name__ for action in room.last] == ["Unload"]
    assert room.last[0].why.reason is ev.Reason.HOST_ROOM  # type: ignore[union-attr]
    assert (room.state(A), room.state(B)) == (State.DEMOTING, State.UNLOADING)
    return room


def test_a_bed_waits_until_who_is_forgotten_for_it_was_seen_free() -> None:
    room = two_asleep()
    (demote,) = room.send(ev.Unloaded(B, 1))
    assert (type(demote).__name__, demote.key, demote.why.wanted) == ("Demote", A, C)  # type: ignore[union-attr]
    (load,) = room.sleep(A)
    assert (type(load).__name__, load.key) == ("Load", C)  # type: ignore[union-attr]


def test_where_the_ram_is_gone_by_then_it_is_unloaded() -> None:
    room = two_asleep(ram=12)
    room.send(ev.Observed({CPU: DeviceReading(foreign=200)}))
    (unload,) = room.send(ev.Unloaded(B, 1))
    assert (type(unload).__name__, unload.key, unload.why.wanted) == ("Unload", A, C)  # type: ignore[union-attr]


def test_one_that_dies_while_it_waits_for_its_bed_is_cleared_away() -> None:
    room = two_asleep()
    (kill,) = room.send(ev.Died(A, 1, OSError("gone")))
    assert isinstance(kill, act.Kill)
    assert room.send(ev.Unloaded(B, 1)) == []
    (load,) = room.send(ev.Unloaded(A, 1))
    assert load.key == C  # type: ignore[union-attr]


def test_a_death_while_it_falls_asleep_is_told_by_how_that_ends() -> None:
    room = Bedroom(sleepers("a", "b"))
    room.use(A)
    room.ask(B)
    assert room.send(ev.Died(A, 1, OSError("gone"))) == []
    (unload,) = room.send(ev.DemoteFailed(A, 1, OSError("gone")))
    assert (unload.key, unload.why.reason) == (A, ev.Reason.SLEEP_FAILED)  # type: ignore[union-attr]
    (load,) = room.send(ev.Unloaded(A, 1))
    assert load.key == B  # type: ignore[union-attr]


def test_events_about_beds_that_were_not_begun_are_ignored() -> None:
    room = two_asleep()
    assert room.sleep(A) == []
    assert room.send(ev.DemoteFailed(A, 1, OSError("x"))) == []


def test_a_wake_that_fails_with_nobody_waiting_leaves_nothing() -> None:
    room = Bedroom(sleepers("a", "b"))
    room.use(A)
    room.use_b = room.ask(B)  # type: ignore[attr-defined]
    room.sleep(A, ram=0)  # not measured: what was expected stays
    assert room.core.status(A).charges[CPU] == 6
    room.send(ev.Loaded(B, 1), after=20)
    room.send(ev.Release(room.use_b))  # type: ignore[attr-defined]
    ticket = room.ask(A)
    room.sleep(B)
    assert room.state(A) is State.PROMOTING
    room.send(ev.GiveUp(ticket))
    (unload,) = room.send(ev.PromoteFailed(A, 1, OSError("x")))
    assert unload.key == A  # type: ignore[union-attr]
    assert room.send(ev.Unloaded(A, 1)) == []
    assert room.state(A) is State.DISK


@pytest.mark.parametrize(("uses", "forgotten"), [(1, True), (9, False)])
def test_under_cost_aware_who_saves_less_is_not_slept_for(uses: int, forgotten: bool) -> None:
    """B sleeps and was used so often; A would need its bed."""
    room = Bedroom(sleepers("a", "b", "c"), beds=7, policy="cost_aware")
    for _ in range(uses):
        room.use(B)
    room.ask(A)
    room.sleep(B)
    room.send(ev.Loaded(A, 1), after=20)
    room.send(ev.Release(TicketId(room.tickets)))
    room.now += 100
    room.ask(C)
    assert (room.state(B) is State.UNLOADING) == forgotten
    assert (room.state(A) is State.UNLOADING) == (not forgotten)


def test_who_is_too_large_for_any_bed_is_unloaded() -> None:
    room = Bedroom(sleepers("a", "b"), beds=5)
    room.use(A)
    room.ask(B)
    (unload,) = room.last
    assert isinstance(unload, act.Unload)


def test_who_keeps_no_weights_sleeps_without_a_bed_for_them_and_takes_longer_to_wake() -> None:
    light = Traits(can_sleep=True, keeps_weights=False, start_s=30.0)
    room = Bedroom([spec("a", 6, ram=1, traits=light), spec("b", 6)], beds=2)
    room.use(A)
    assert room.core.status(A).wake_s == 0.2 + 6 / (GIB // 2)
    room.ask(B)
    (demote,) = room.last
    assert isinstance(demote, act.Demote)
    assert demote.ram_bytes == 1
    room.sleep(A, ram=2)
    assert room.core.status(A).charges == {CPU: 2, ModelKey("host"): 2}


def test_the_start_of_one_that_sleeps_is_expected_as_its_wake_was_measured() -> None:
    room = Bedroom(sleepers("a", "b"))
    room.use(A)
    room.ask(B)
    room.sleep(A)
    assert room.core.expected_start(A, now=room.now) == 0.0  # it never woke before
    room.send(ev.Loaded(B, 1), after=20)
    room.send(ev.Release(TicketId(room.tickets)))
    room.ask(A)
    room.sleep(B)
    room.now += 3
    assert room.core.expected_start(A, now=room.now) == 0.0
    room.send(ev.Promoted(A, 1), after=1)
    assert room.core.status(A).wake_s == 4.0
    room.send(ev.Release(TicketId(room.tickets)))
    room.ask(B)
    room.sleep(A)
    assert room.core.expected_start(A, now=room.now) == 4.0
    assert room.core.lru() is None
    assert room.core.placements(A) == ((GPU0,),)
    assert "<Hints 0 models by 0 sources>" in repr(room.core._hints)


def test_a_cancelled_load_that_holds_less_than_was_drawn_on_it_owes_the_rest() -> None:
    traits = Traits(cancellable=True)
    room = Bedroom([spec("a", 8, traits=traits, declared=False), spec("b", 8)])
    ticket = room.ask(A)
    room.ask(B)
    room.send(ev.GiveUp(ticket))  # B is promised what the cancelled load frees
    (unload,) = room.send(ev.Loaded(A, 1, Footprint(2)))  # check() sees that nothing is promised twice
    assert unload.key == A  # type: ignore[union-attr]
    (load,) = room.send(ev.Unloaded(A, 1))
    assert load.key == B  # type: ignore[union-attr]


def test_who_asks_for_a_sleeper_that_was_told_to_go_waits_until_it_has_gone() -> None:
    """It could not go at once: an exclusive load was under way on its device."""
    exclusive = Traits(exclusive_on_device=True)
    room = Bedroom([spec("a", 4, traits=SLEEPS), spec("b", 9), spec("c", 9, traits=exclusive)])
    room.asleep(A, under=B)
    room.ask(C)
    room.send(ev.Unloaded(B, 1))
    assert (room.state(A), room.state(C)) == (State.HOST, State.LOADING)
    assert room.send(ev.Retire(A)) == []
    ticket = room.ask(A)
    (grant, unload) = room.send(ev.Loaded(C, 1), after=20)
    assert (type(grant).__name__, unload.key) == ("Grant", A)  # type: ignore[union-attr]
    (preflight,) = room.send(ev.Unloaded(A, 1))
    assert isinstance(preflight, act.Preflight)
    room.send(ev.GiveUp(ticket))
    assert room.core.books(CPU).charged == 0


def test_who_failed_twice_to_fall_asleep_is_unloaded_from_then_on(core: CoreFactory) -> None:
    room = Bedroom(sleepers("a", "b"), core=core)
    tried = []
    for _ in range(4):
        room.use(A)
        ticket = room.ask(B)
        tried.append(room.state(A))
        if room.state(A) is State.DEMOTING:
            room.send(ev.DemoteFailed(A, room.generation(A), OSError("x")))
        room.send(ev.Unloaded(A, room.generation(A)))
        room.send(ev.Loaded(B, room.generation(B)), after=20)
        room.send(ev.Release(ticket))
        room.send(ev.Retire(B))
        room.send(ev.Unloaded(B, room.generation(B)))
    assert tried == [State.DEMOTING, State.DEMOTING, State.UNLOADING, State.UNLOADING]


def test_who_sleeps_well_and_never_wakes_is_not_put_to_sleep_for_ever(core: CoreFactory) -> None:
    room = Bedroom(sleepers("a", "b"), core=core)
    room.use(A)
    slept = 0
    for _ in range(4):
        ticket = room.ask(B)
        if room.state(A) is State.DEMOTING:
            slept += 1
            room.sleep(A)
        else:
            room.send(ev.Unloaded(A, room.generation(A)))
        room.send(ev.Loaded(B, room.generation(B)), after=20)
        room.send(ev.Release(ticket))
        ticket = room.ask(A)
        room.sleep(B)
        if room.state(A) is State.PROMOTING:
            room.send(ev.PromoteFailed(A, room.generation(A), OSError("x")))
            room.send(ev.Unloaded(A, room.generation(A)))
            room.send(ev.Preflighted(A, room.generation(A)))
        room.send(ev.Loaded(A, room.generation(A)), after=20)
        room.send(ev.Release(ticket))
        room.send(ev.Retire(B))
        room.send(ev.Unloaded(B, room.generation(B)))
    assert slept == 2


def test_who_made_room_for_a_wake_that_failed_is_loaded_back_where_the_load_fails_too() -> None:
    room = Bedroom([spec("a", 6, traits=SLEEPS, selected=True), spec("b", 6, selected=True)])
    room.asleep(A, under=B)
    room.ask(A)
    room.send(ev.Unloaded(B, 1))
    room.send(ev.PromoteFailed(A, 1, OSError("x")))
    room.send(ev.Unloaded(A, 1))
    room.send(ev.Preflighted(A, 2))
    (refuse, preflight) = room.send(ev.LoadFailed(A, 2, OSError("y")))
    assert (type(refuse).__name__, preflight.key) == ("Refuse", B)  # type: ignore[union-attr]


def test_a_sleeper_told_to_go_whose_sleep_failed_is_as_any_other_afterwards() -> None:
    room = Bedroom(sleepers("a", "b"))
    room.use(A)
    room.ask(B)
    room.send(ev.Retire(A))
    room.send(ev.DemoteFailed(A, 1, OSError("x")))
    room.send(ev.Unloaded(A, 1))
    room.send(ev.Retire(B))
    room.send(ev.Loaded(B, 1), after=20)
    room.send(ev.Unloaded(B, 1))
    room.use(A)
    assert room.state(A) is State.READY


def test_what_a_deadline_met_is_told_by_what_the_model_was_doing() -> None:
    def refused(room: Bedroom) -> str:
        (refuse,) = room.send(ev.Tick(), after=10)
        return refuse.refusal.message  # type: ignore[union-attr]

    room = Bedroom(sleepers("a", "b"))
    room.use(A)
    held = room.ask(B)
    room.ask(A, wait=5)
    assert "a was not ready" in (said := refused(room))
    assert "it is being put to sleep, and has to be woken again" in said
    room.sleep(A)
    room.send(ev.Loaded(B, 1), after=20)
    room.send(ev.Release(held))
    room.ask(A, wait=5)
    room.sleep(B)
    assert "it is waking and needs about" in refused(room)


def test_a_sleeper_that_was_pinned_and_let_go_again_idles_away() -> None:
    room = Bedroom(sleepers("a", "b", keep_alive_s=20.0))
    room.use(A)
    held = room.ask(B)
    room.sleep(A)
    room.send(ev.Pin(A, True))
    room.send(ev.Tick(), after=60)
    assert room.state(A) is State.HOST
    room.send(ev.Pin(A, False))
    (unload,) = room.send(ev.Tick(), after=30)
    assert unload.key == A  # type: ignore[union-attr]
    room.send(ev.GiveUp(held))


def test_the_start_of_a_cold_model_is_expected_behind_the_loads_before_it() -> None:
    group = Traits(serial_group="one")
    room = Bedroom([spec("a", 3, traits=group), spec("b", 3, traits=group), spec("c", 3)])
    for key in (A, B, C):
        room.use(key)
    for key in (A, B, C):
        room.send(ev.Retire(key))
        room.send(ev.Unloaded(key, 1))
    room.ask(A)
    room.now += 5
    left = 20 - 5
    assert room.core.expected_start(A, now=room.now) == pytest.approx(left)
    assert room.core.expected_start(B, now=room.now) == pytest.approx(left + 20)
    assert room.core.expected_start(C, now=room.now) == pytest.approx(20)


def test_who_leaves_too_much_on_its_device_is_unloaded_the_next_time_and_not_slept_in_vain() -> None:
    room = Bedroom([spec("a", 5, traits=SLEEPS), spec("c", 10)])
    room.use(A)
    older = room.ask(C, 600.0)
    younger = room.ask(A, 600.0)
    room.sleep(A, 5, left=1)  # so C no longer fits beside it
    assert room.state(A) is State.PROMOTING
    room.send(ev.Promoted(A, 1))
    room.send(ev.Release(younger))
    room.send(ev.Tick(), after=60)
    assert room.state(A) is State.UNLOADING
    (load,) = room.send(ev.Unloaded(A, 1))
    assert (type(load).__name__, load.key) == ("Load", C)  # type: ignore[union-attr]
    room.send(ev.GiveUp(older))


def test_who_leaves_what_nobody_is_promised_sleeps_again() -> None:
    room = Bedroom([spec("a", 5, traits=SLEEPS), spec("b", 8)])
    room.asleep_with(A, under=B, left=1)
    room.ask(A)
    room.send(ev.Unloaded(B, 1))
    room.send(ev.Promoted(A, 1))
    room.send(ev.Release(TicketId(room.tickets)))
    room.send(ev.Tick(), after=60)
    room.ask(B)
    assert room.state(A) is State.DEMOTING


def test_how_one_sleeps_is_decided_when_it_is_started() -> None:
    """Who reads the file anew may only tell a loaded model not to sleep any more."""
    keeps, drops, stays = SLEEPS, replace(SLEEPS, keeps_weights=False), Traits(start_s=30.0)
    for before, after, ram in ((keeps, drops, 6), (drops, keeps, 0), (stays, keeps, None), (keeps, stays, None)):
        room = Bedroom([spec("a", 6, traits=before), spec("b", 6)])
        room.use(A)
        room.send(ev.Reconfigure(spec("a", 6, traits=after)))
        room.ask(B)
        (action,) = room.last
        assert (action.ram_bytes if isinstance(action, act.Demote) else None) == ram
        if isinstance(action, act.Unload):
            room.send(ev.Unloaded(A, 1))
            room.send(ev.Loaded(B, 1), after=20)
            room.send(ev.Release(TicketId(room.tickets)))
            room.ask(A)
            room.send(ev.Unloaded(B, 1))
            room.send(ev.Loaded(A, 2), after=20)
            room.send(ev.Release(TicketId(room.tickets)))
            room.ask(B)
            assert room.state(A) is (State.DEMOTING if after.can_sleep else State.UNLOADING)


def test_one_that_is_not_loaded_is_to_sleep_as_the_file_says_now() -> None:
    room = Bedroom([spec("a", 6, traits=SLEEPS), spec("b", 6)])
    room.send(ev.Reconfigure(spec("a", 6, traits=replace(SLEEPS, keeps_weights=False))))
    room.use(A)
    room.ask(B)
    (demote,) = room.last
    assert isinstance(demote, act.Demote)
    assert demote.ram_bytes == 0
