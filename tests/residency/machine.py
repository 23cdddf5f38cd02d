"""Random events and failures against a core, each step judged by the world beside it.

``machine_for(core)`` makes the hypothesis state machine for one core, so that seeded faults meet the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from taskrouter.residency import events as ev
from taskrouter.residency.books import HOST_BUDGET, Settings, State
from taskrouter.types import CPU, DeviceId, DeviceReading, DeviceSpec, Footprint, ModelKey, ModelSpec, TicketId, Traits

from .account import Broken, CoreFactory, Job, Ticket
from .world import World

GPU0, GPU1 = DeviceId("cuda:0"), DeviceId("cuda:1")
UNIT = 1 << 30

index = st.integers(0, 1 << 16)
often = st.integers(0, 9)
pauses = st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 7.0, 15.0, 40.0, 130.0])
waits = st.sampled_from([0.0, 0.5, 3.0, 20.0, 60.0, 120.0, 600.0])

T = TypeVar("T")
House: TypeAlias = tuple[list[DeviceSpec], list[ModelSpec], Settings]


class Choose(Protocol):
    """Picks one of several: hypothesis, or a random generator."""

    def __call__(self, options: Sequence[T], /) -> T: ...


def furnish(choose: Choose) -> House:
    """One or two devices and RAM, three to six models of which two or three fit at once."""
    gpus = [GPU0, GPU1][: choose([1, 1, 2])]
    devices = [
        DeviceSpec(
            gpu, 24 * UNIT, budget=choose([None, 10 * UNIT, 12 * UNIT]), threshold=0.5, reserve=choose([0, 0, UNIT])
        )
        for gpu in gpus
    ]
    devices.append(DeviceSpec(CPU, 64 * UNIT, budget=32 * UNIT))
    models = []
    single: list[tuple[DeviceId, ...]] = [(gpu,) for gpu in gpus]
    for number in range(choose([3, 4, 4, 5, 6])):
        sets = choose([single, single, single[:1], single[::-1], [tuple(gpus)]])
        traits = Traits(
            serial_group=choose([None, None, None, "one", "two"]),
            exclusive_on_device=choose([False, False, False, False, True]),
            cancellable=choose([False, True]),
            can_sleep=choose([False, True]),
            slots=choose([None, None, 1, 2]),
            start_s=choose([0.5, 2.0, 2.0, 30.0]),
        )
        models.append(
            ModelSpec(
                ModelKey(f"m{number}"),
                f"model {number}",
                Footprint(choose([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13]) * UNIT, choose([0, 0, 0, 9, 20]) * UNIT),
                tuple(sets),
                traits=traits,
                slots=choose([None, None, None, 1, 2]),
                priority=choose([0, 0, 1, 5]),
                pinned=choose([False] * 9 + [True]),
                keep_alive_s=choose([None, None, None, 5.0]),
                selected=choose([False, True]),
                declared=choose([True, True, False]),
            )
        )
    settings = Settings(
        policy=choose(["lru", "cost_aware"]),
        max_models=choose([0, 0, 0, 0, 1, 2]),
        min_residency_s=choose([None, None, None, 0.0, 5.0]),
        host_budget=choose([0, 0, 9, 20]) * UNIT,
    )
    return devices, models, settings


@st.composite
def houses(draw: st.DrawFn) -> House:
    def choose(options: Sequence[T], /) -> T:
        return draw(st.sampled_from(options))

    return furnish(choose)


class Machine(RuleBasedStateMachine):
    """Callers, backends and the neighbourhood, all misbehaving at once."""

    core: CoreFactory
    world: World

    @initialize(house=houses())
    def build(self, house: House) -> None:
        self.world = World(type(self).core, *house)

    # --- what there is to pick from -------------------------------------------------------------------------------

    def key(self, pick: int) -> ModelKey:
        return list(self.world.specs)[pick % len(self.world.specs)]

    def jobs(self, *kinds: str) -> list[Job]:
        return [job for job in self.world.jobs if job.kind in kinds]

    def leases(self) -> list[Ticket]:
        return [ticket for held in self.world.held.values() for ticket in held.values()]

    def queued(self) -> list[Ticket]:
        return [ticket for waiters in self.world.waiting.values() for ticket in waiters.values()]

    # --- callers --------------------------------------------------------------------------------------------------

    @rule(pick=index, wait=waits, priority=st.sampled_from([0, 0, 0, 3, -2]), kind=st.integers(0, 15), other=index)
    def acquire(self, pick: int, wait: float, priority: int, kind: int, other: int) -> None:
        more: dict[str, Any] = {}
        if kind == 0:
            more["background"] = True
        elif kind <= 3:
            more["claim"] = True
        elif kind == 4 and self.leases():
            more["holding"] = frozenset({self.leases()[other % len(self.leases())].ask.ticket})
        elif kind == 5:
            more["replaces"] = self.key(other)
        elif kind == 6:
            more["arrival"] = max(0.0, self.world.now - other % 30)
        self.world.acquire(self.key(pick), wait, priority=priority, **more)

    @rule(pick=index)
    def acquire_patiently(self, pick: int) -> None:
        self.world.acquire(self.key(pick), 300.0)

    @precondition(lambda self: self.leases())
    @rule(pick=index)
    def release(self, pick: int) -> None:
        leases = self.leases()
        self.world.release(leases[pick % len(leases)])

    @precondition(lambda self: self.leases())
    @rule()
    def release_all(self) -> None:
        for ticket in self.leases():
            self.world.release(ticket)

    @precondition(lambda self: self.queued())
    @rule(pick=index)
    def give_up(self, pick: int) -> None:
        queued = self.queued()
        self.world.send(ev.GiveUp(queued[pick % len(queued)].ask.ticket))

    @precondition(lambda self: self.world.tickets)
    @rule(pick=index, give_up=st.booleans())
    def end_again(self, pick: int, give_up: bool) -> None:
        """Releases and give-ups of tickets in any state, most of them over already."""
        number = TicketId(1 + pick % len(self.world.tickets))
        self.world.send(ev.GiveUp(number) if give_up else ev.Release(number))

    # --- backends -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.jobs("preflight"))
    @rule(pick=index, luck=often, more=st.sampled_from([0, 0, 0, 1]))
    def preflighted(self, pick: int, luck: int, more: int) -> None:
        jobs = self.jobs("preflight")
        job = jobs[pick % len(jobs)]
        if luck == 0:
            self.world.preflight_failed(job)
            return
        need = self.world.specs[job.key].need
        grown = replace(need, device_bytes=need.device_bytes + more * UNIT)
        self.world.preflight_ok(job, grown if more else None)

    @precondition(lambda self: self.jobs("load"))
    @rule(pick=index, luck=often, took=pauses)
    def loaded(self, pick: int, luck: int, took: float) -> None:
        jobs = self.jobs("load")
        job = jobs[pick % len(jobs)]
        self.world.advance(min(took, 7.0))
        if job not in self.world.jobs:
            return
        need = self.world.specs[job.key].need
        measured = {
            0: replace(need, device_bytes=need.device_bytes + UNIT // 2),
            1: replace(need, device_bytes=need.device_bytes // 2),
            2: need,
        }
        self.world.load_ok(job, measured.get(luck))

    @precondition(lambda self: self.jobs("load"))
    @rule(pick=index, how=often)
    def load_went_wrong(self, pick: int, how: int) -> None:
        jobs = self.jobs("load")
        job = jobs[pick % len(jobs)]
        if job.cancelled and not job.stuck and how < 7:
            self.world.load_cancelled(job)
        elif how == 0 and not job.stuck and not job.cancelled:
            self.world.load_stuck(job)
        else:
            lost = dict.fromkeys(job.devices, UNIT // 4) if how == 1 else {}
            self.world.load_failed(job, oom=how in (1, 2, 3), residue=lost)

    @precondition(lambda self: self.jobs("unload"))
    @rule(pick=index, luck=often)
    def unloaded(self, pick: int, luck: int) -> None:
        jobs = self.jobs("unload")
        job = jobs[pick % len(jobs)]
        self.world.unload_ok(job, {job.devices[0]: UNIT // 4} if luck == 0 else None)

    @precondition(lambda self: self.jobs("demote"))
    @rule(pick=index, luck=often)
    def demoted(self, pick: int, luck: int) -> None:
        jobs = self.jobs("demote")
        job = jobs[pick % len(jobs)]
        life = self.world.lives[job.key]
        took = life.true[HOST_BUDGET]
        if luck == 0 or (luck > 5 and self.world.sleep_failures[job.key]):  # who failed once, often fails again
            self.world.demote_failed(job)
        else:
            ram = {1: took // 2, 2: took + UNIT // 2}.get(luck, took)
            self.world.demote_ok(job, ram, {job.devices[0]: UNIT // 4} if luck in (3, 4) else None)

    @precondition(lambda self: self.jobs("promote"))
    @rule(pick=index, luck=often, took=pauses)
    def promoted(self, pick: int, luck: int, took: float) -> None:
        jobs = self.jobs("promote")
        job = jobs[pick % len(jobs)]
        self.world.advance(min(took, 3.0))
        if luck == 0 or (luck > 5 and self.world.sleep_failures[job.key]):
            self.world.promote_failed(job)
        else:
            self.world.promote_ok(job)

    @precondition(lambda self: self.world.lives)
    @rule(pick=index, really=often)
    def died(self, pick: int, really: int) -> None:
        lives = list(self.world.lives.items())
        key, life = lives[pick % len(lives)]
        if any(job.key == key and job.kind in ("demote", "promote") for job in self.world.jobs):
            return  # that will end in an event of its own
        if really < 4 and life.loaded_at is not None and not life.dead:
            self.world.send(ev.Died(key, life.generation, Broken("died")))

    @precondition(lambda self: self.world.generations)
    @rule(pick=index, kind=st.integers(0, 9))
    def stale(self, pick: int, kind: int) -> None:
        """An event of an earlier life changes nothing, and nor does one of a life that is over."""
        key = list(self.world.generations)[pick % len(self.world.generations)]
        generation = self.world.generations[key] - 1
        before = self.world.core.status(key)
        events: list[ev.Event] = [
            ev.Loaded(key, generation),
            ev.LoadFailed(key, generation, Broken("stale")),
            ev.Unloaded(key, generation),
            ev.LoadCancelled(key, generation),
            ev.LoadStuck(key, generation),
            ev.Died(key, generation, Broken("stale")),
            ev.Demoted(key, generation, 1),
            ev.DemoteFailed(key, generation, Broken("stale")),
            ev.Promoted(key, generation),
            ev.PromoteFailed(key, generation, Broken("stale")),
        ]
        actions = self.world.send(events[kind])
        after = self.world.core.status(key)
        assert (after.generation, after.leases, after.charges) == (before.generation, before.leases, before.charges), (
            f"{events[kind]} of an earlier life changed {before} to {after}, with {actions}"
        )

    @precondition(lambda self: any(self.world.residue.values()))
    @rule(pick=index, all_of_it=st.booleans())
    def reclaimed(self, pick: int, all_of_it: bool) -> None:
        keys = [key for key, lost in self.world.residue.items() if lost]
        key = keys[pick % len(keys)]
        rest = {} if all_of_it else {device: count // 2 for device, count in self.world.residue[key].items()}
        self.world.send(ev.Reclaimed(key, rest))

    # --- the neighbourhood and its people -------------------------------------------------------------------------

    @rule(foreign=st.sampled_from([0, 0, 1, 4, 11, 20]), overhead=st.sampled_from([0, 0, 1]), pick=index)
    def observed(self, foreign: int, overhead: int, pick: int) -> None:
        gpus = [device for device in self.world.devices if device != CPU]
        self.world.send(ev.Observed({gpus[pick % len(gpus)]: DeviceReading(foreign * UNIT, overhead * (UNIT >> 2))}))

    @rule(pick=index, pinned=often)
    def pin(self, pick: int, pinned: int) -> None:
        self.world.send(ev.Pin(self.key(pick), pinned < 3))

    @rule(pick=index, how=often)
    def manage(self, pick: int, how: int) -> None:
        key = self.key(pick)
        spec = self.world.specs[key]
        if how < 4:
            self.world.send(ev.Retire(key))
        elif how < 8:
            changed = replace(spec, priority=how - 5, slots=[None, 1, 2, 3][how - 4], keep_alive_s=[None, 3.0][how % 2])
            self.world.send(ev.Reconfigure(changed))
        else:
            self.world.send(ev.ClearCooldown(key))

    @rule(picks=st.lists(index, max_size=2), room=st.sampled_from([None, 10, 12, 12, 5]), change=often)
    def configure(self, picks: list[int], room: int | None, change: int) -> None:
        """Some leave the file, who had left it comes back; a budget changes, and now and then how it is decided."""
        world = self.world
        leave = {self.key(pick) for pick in picks} - world.removed
        devices = [replace(world.devices[GPU0], budget=room and room * UNIT), *list(world.devices.values())[1:]]
        settings = world.settings
        if change == 0:
            settings = replace(settings, policy="lru" if settings.policy == "cost_aware" else "cost_aware")
        elif change <= 2:
            settings = replace(settings, max_models=(settings.max_models + change) % 3)
        elif change == 3:
            settings = replace(settings, host_budget=0 if settings.host_budget else 20 * UNIT)
        named = tuple(spec for key, spec in world.specs.items() if key not in leave)
        world.send(ev.Configure(named, tuple(devices), settings))

    @rule(source=st.integers(0, 1), picks=st.lists(index, max_size=4), lasts=pauses)
    def hint(self, source: int, picks: list[int], lasts: float) -> None:
        keys = tuple(dict.fromkeys(self.key(pick) for pick in picks))
        self.world.send(ev.Hint(f"pipeline {source}", keys, self.world.now + lasts))

    @rule(pause=pauses)
    def time_passes(self, pause: float) -> None:
        self.world.advance(pause)

    @precondition(lambda self: self.world.wake is not None)
    @rule(late=st.sampled_from([0.0, 0.0, 0.01, 5.0, 70.0]))
    def tick(self, late: float) -> None:
        """At its instant, or late as a busy event loop would send it."""
        assert self.world.wake is not None
        self.world.now = max(self.world.now, self.world.wake + late)
        self.world.send(ev.Tick())

    @rule()
    def needless_tick(self) -> None:
        self.world.send(ev.Tick())

    # --- everyone is served in the end ----------------------------------------------------------------------------

    @rule(together=st.booleans())
    def quiesce(self, together: bool) -> None:
        self.calm()
        keys = [key for key in self.world.specs if self.must_fit(key)]
        if together:
            tickets = [self.world.acquire(key, 3600.0) for key in keys]
            self.serve(tickets)
        for key in keys:
            self.serve([self.world.acquire(key, 3600.0)])

    def calm(self) -> None:
        """Stop all disturbance and let everything under way end well."""
        world = self.world
        for device in world.devices:
            world.send(ev.Observed({device: DeviceReading()}))
        for source in range(2):
            world.send(ev.Hint(f"pipeline {source}", (), 0.0))
        for key, spec in list(world.specs.items()):
            if spec.pinned:
                world.send(ev.Pin(key, False))
        for _ in range(400):
            for ticket in self.leases():
                world.release(ticket)
            if not self.finish_one():
                if not self.queued() and not self.leases():
                    break
                world.advance(10.0)
        assert not self.queued(), world.story(f"in a quiet house these still wait: {[t.ask for t in self.queued()]}")
        for key in list(world.residue):
            world.send(ev.Reclaimed(key, {}))
        left = world.removed & world.lives.keys()
        assert not left, world.story(f"in a quiet house these are still there, and no longer configured: {left}")
        if world.removed:
            everybody = tuple(world.specs.values()), tuple(world.devices.values())
            world.send(ev.Configure(*everybody, world.settings))
        for key in world.specs:
            if world.state(key) is State.COOLDOWN:
                world.send(ev.ClearCooldown(key))
        world.advance(world.settings.residency_cap_s)

    def finish_one(self) -> bool:
        if not self.world.jobs:
            return False
        job = self.world.jobs[0]
        self.world.advance(1.0)
        if job in self.world.jobs:
            if job.kind == "preflight":
                self.world.preflight_ok(job)
            elif job.kind == "unload":
                self.world.unload_ok(job)
            elif job.kind == "demote":
                self.world.demote_ok(job, self.world.lives[job.key].true[HOST_BUDGET])
            elif job.kind == "promote":
                self.world.promote_ok(job)
            elif job.cancelled:
                self.world.load_cancelled(job)
            else:
                self.world.load_ok(job)
        return True

    def serve(self, tickets: list[Ticket]) -> None:
        for _ in range(300):
            for ticket in tickets:
                if ticket.live:
                    self.world.release(ticket)
            if not any(ticket.state == "waiting" for ticket in tickets):
                break
            if not self.finish_one():
                self.world.advance(1.0)
        left = [(ticket.ask, ticket.state, ticket.refusal) for ticket in tickets if ticket.state != "over"]
        assert not left, self.world.story(f"in a quiet house these weren't served: {left}")

    def must_fit(self, key: ModelKey) -> bool:
        """Whether it fits the house alone, by the largest need that anyone may have learnt."""
        need = self.world.need_high[key]
        return any(
            all(count <= (self.world.allowed(d)) for d, count in self.world.spread(need, devices).items())
            for devices in self.world.specs[key].placements
        )


def machine_for(core: CoreFactory) -> type[Machine]:
    """The state machine for one core."""
    return type("MachineFor", (Machine,), {"core": staticmethod(core)})
