"""The core's books and states against the world's account, after a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from taskrouter.residency import events as ev
from taskrouter.residency.books import MODEL_SLOTS, State
from taskrouter.types import DeviceReading, ModelKey

if TYPE_CHECKING:
    from .account import Step
    from .world import World

from .laws import RESIDENT, drain_floor, feasible, real, slots_of

INJECTED = (
    ev.Observed, ev.Loaded, ev.Unloaded, ev.LoadFailed, ev.LoadCancelled, ev.Demoted, ev.Promoted, ev.Configure,
)  # fmt: skip
"""Events by which a device may come to be overbooked."""


def audit(world: World, step: Step) -> None:
    world.core.check()
    statuses = {key: world.core.status(key) for key in world.specs}
    wanted = {key for key, waiters in world.waiting.items() if real(waiters)}
    for key, status in statuses.items():
        life = world.lives.get(key)
        booked = {device: count for device, count in status.charges.items() if count}
        if life is None:
            assert not booked, f"{key} holds nothing and is charged {booked}"
            assert status.state in (State.DISK, State.COOLDOWN), f"{key} holds nothing and is {status.state}"
        else:
            for device, count in life.true.items():
                if device != MODEL_SLOTS:
                    assert booked.get(device, 0) >= count, f"{key} holds {life.true} and is charged {booked}"
            assert status.state not in (State.DISK, State.COOLDOWN), f"{key} holds bytes and is {status.state}"
        if status.state in RESIDENT:
            leases, claims = len(world.live(key)), len(world.live(key, claims=True))
            assert status.leases == leases, f"{key}: {status.leases} leases in the books, {leases} held"
            assert status.claims <= claims, f"{key}: {status.claims} claims in the books, {claims} held"
        assert status.waiting == len(world.waiting[key]), f"{key}: {status.waiting} waiting in the books"
        if status.state is State.READY:
            slots = slots_of(world, key)
            idle = [
                t for t in world.waiting[key].values() if t.ask.claim or slots is None or len(world.live(key)) < slots
            ]
            assert not idle, f"{key} is ready with a slot free, and {[t.ask.ticket for t in idle]} wait for it"
        if status.state is State.DRAINING:
            live = bool(wanted - {key}) or key in world.retired or world.shut
            assert live, f"{key} drains and nobody wants its room"
            was = step.before.get(key)
            if was is not None and was.state is State.READY and key not in world.retired and not world.shut:
                started_in_time(world, key, wanted - {key})
    books(world, step)
    refusals_due(world, wanted)
    progress(world)


def started_in_time(world: World, key: ModelKey, wanted: set[ModelKey]) -> None:
    if any(t.ask.replaces == key for waiters in world.waiting.values() for t in waiters.values()):
        return
    due = [want for want in wanted if drain_floor(world, want) <= world.now and want in world.preflighted]
    assert due, f"{key} drains at {world.now}, before any of {sorted(wanted)} may drain"


def books(world: World, step: Step) -> None:
    for device in world.devices:
        books = world.core.books(device)
        reading = world.readings.get(device, DeviceReading())
        lost = sum(residue.get(device, 0) for residue in world.residue.values())
        assert books.residue == lost, f"{device}: residue {books.residue} in the books, {lost} missing"
        assert (books.foreign, books.overhead) == (reading.foreign, reading.overhead), (
            f"{device}: {books} and {reading}"
        )
        assert books.promised >= 0, f"{device} promises {books.promised}"
        assert books.charged + books.residue >= world.used(device), f"{device}: {books}, {world.used(device)} in use"
        room = world.allowed(device) - books.charged - books.promised - books.residue
        assert books.free == room, f"{device}: free {books.free}, by the formula {room}"
        injected = isinstance(step.event, INJECTED)
        if not injected and device in step.free_before:
            least = min(0, step.free_before[device])
            assert books.free >= least, f"{device} is overbooked by {step.event}: {books.free} free"


def refusals_due(world: World, wanted: Iterable[ModelKey]) -> None:
    """What can't be served beside pins and residue is refused at once, not at its deadline."""
    for key in wanted:
        committed = any(job.wanted == key for job in world.jobs)  # looked at again when its victims are gone
        if key in world.specs and key not in world.lives and not committed:
            assert feasible(world, key, lenient=True), f"{key} can't ever have room, and its tickets wait"


def progress(world: World) -> None:
    """With nothing under way, nothing held and nothing protected, nobody is left waiting."""
    if world.jobs or any(world.held.values()) or any(r.foreign or r.overhead for r in world.readings.values()):
        return
    for key, life in world.lives.items():
        load_s = max(life.load_s, world.core.status(key).load_s)
        span = max(world.settings.min_residency_s or 0.0, min(load_s, world.settings.residency_cap_s))
        if life.loaded_at is None or world.now < life.loaded_at + span:
            return
    stalled = [
        ticket.ask
        for key, waiters in world.waiting.items()
        for ticket in waiters.values()
        # Who can't be served in time takes only what has been idle for long.
        # A warm-up beside a request is settled with that.
        if not (ticket.ask.background and any(not other.ask.background for other in waiters.values()))
        and ticket.ask.deadline > world.now + 2 * world.core.status(key).load_s + world.longest["unload"]
    ]
    assert not stalled, f"nothing is under way, held or protected, and these wait: {stalled}"
