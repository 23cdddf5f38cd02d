"""What the core remembers of its decisions: who got room, from whom, and by which rule."""

from __future__ import annotations

from taskrouter.residency import Residency, Settings
from taskrouter.residency import events as ev
from taskrouter.residency.decisions import KEPT, Rule
from taskrouter.types import GIB, DeviceReading, DeviceSpec, ModelKey, TicketId

from .stage import GPU0, spec

A, B, C = (ModelKey(name) for name in "abc")


def house(**settings: object) -> Residency:
    specs = [spec("a", 6 * GIB), spec("b", 6 * GIB), spec("c", 20 * GIB)]
    return Residency([DeviceSpec(GPU0, 10 * GIB, budget=10 * GIB)], specs, Settings(**settings))  # type: ignore[arg-type]


def load(core: Residency, key: ModelKey, now: float) -> None:
    core.handle(ev.Acquire(TicketId(int(now)), key, now + 100), now=now)
    core.handle(ev.Preflighted(key, 1), now=now)
    for model in core.snapshot().models.values():
        if model.state.value == "unloading":
            core.handle(ev.Unloaded(model.key, model.generation), now=now)
    core.handle(ev.Loaded(key, 1), now=now + 2)
    core.handle(ev.Release(TicketId(int(now))), now=now + 3)


def test_a_load_is_told_with_the_room_it_found_and_who_made_it() -> None:
    core = house()
    load(core, A, 10)
    load(core, B, 100)
    first, second = core.decisions(A)
    assert (first.rule, first.devices, first.need, first.free, first.victims) == (
        Rule.FREE, (GPU0,), 6 * GIB, 10 * GIB, ()
    )  # fmt: skip
    assert (second.key, second.rule, second.free) == (B, Rule.IDLE, 4 * GIB)
    (victim,) = second.victims
    assert (victim.key, victim.bytes, victim.cost, victim.sleeps) == (A, 6 * GIB, 2.0, False)
    assert core.decisions(B) == (second,)
    assert str(first) == "a got 6.0 GiB on cuda:0, where 10.0 GiB were free: there was room"
    assert str(second) == (
        "b got 6.0 GiB on cuda:0, where 4.0 GiB were free: idle models made room; "
        "of 1 considered a (6.0 GiB, unloaded, cost 2) gave way"
    )


def test_who_went_for_nobody_and_who_was_refused_are_told_too() -> None:
    core = house()
    load(core, A, 10)
    core.handle(ev.Observed({GPU0: DeviceReading(foreign=9 * GIB)}), now=50)
    assert [each.rule for each in core.decisions(A)] == [Rule.FREE, Rule.SHRUNK]
    assert str(core.decisions(A)[-1]) == "a went: the device had less room than was charged"
    core.handle(ev.Acquire(TicketId(7), C, 100), now=51)
    (refused,) = core.decisions(C)
    assert refused.rule is Rule.REFUSED
    assert str(refused).startswith("c was refused: c needs 20.0 GiB on cuda:0, more than")


def test_the_oldest_are_forgotten() -> None:
    core = house()
    for number in range(KEPT + 9):
        core.handle(ev.Acquire(TicketId(number), C, 1e6), now=float(number))
    assert len(core.decisions()) == KEPT
    assert core.decisions()[0].at == 9
