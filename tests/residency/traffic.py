"""Traffic on a virtual clock: callers come and go, backends take the time they are given, nothing sleeps.

``Traffic`` is a discrete-event loop around a ``World``: every step of every scenario is judged by the same laws as
random events are. A scenario is a function of a core that returns its ``Traffic``, whose figures the tests read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf

from taskrouter.residency import events as ev
from taskrouter.residency.books import HOST_BUDGET, Settings
from taskrouter.types import CPU, GIB, DeviceId, DeviceSpec, Footprint, ModelKey, ModelSpec, Traits

from .account import CoreFactory, Job, Ticket
from .world import World

GPU = DeviceId("cuda:0")
GPU1 = DeviceId("cuda:1")


RAM = DeviceSpec(CPU, 256 * GIB, budget=256 * GIB)
"""Where models sleep."""
BEDS = 128 * GIB


def gpu(gib: float, device: DeviceId = GPU) -> DeviceSpec:
    return DeviceSpec(device, int(gib * GIB), budget=int(gib * GIB))


def model(
    name: str, gib: float, *, devices: Sequence[DeviceId] = (GPU,), slots: int | None = None, group: str | None = None,
    sleeps: bool = False,
) -> ModelSpec:  # fmt: skip
    return ModelSpec(
        ModelKey(name),
        name,
        Footprint(int(gib * GIB)),
        tuple((device,) for device in devices),
        traits=Traits(serial_group=group, can_sleep=sleeps),
        slots=slots,
    )


class Traffic:
    """Runs a world: ``load_s`` for every load, ``unload_s`` for every unload, and whatever callers were scheduled."""

    def __init__(
        self, core: CoreFactory, devices: Sequence[DeviceSpec], models: Sequence[ModelSpec], *,
        settings: Settings | None = None, load_s: float = 10.0, unload_s: float = 1.0, wake_s: float = 1.0,
        audit_every: int = 1,
    ) -> None:  # fmt: skip
        self.world = World(core, devices, models, settings or Settings(), audit_every=audit_every)
        self.world.watcher = self
        self.durations = {
            "preflight": 0.0, "load": load_s, "unload": unload_s, "demote": unload_s, "promote": wake_s,
        }  # fmt: skip
        self.granted: list[Ticket] = []
        self.refused: list[Ticket] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    # --- what scenarios use ---------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        heappush(self._agenda, (when, next(self._order), what))

    def call(self, key: str, lease_s: float, *, wait: float = 120.0, then: Callable[[], None] | None = None) -> None:
        """Somebody asks now, keeps a granted lease for ``lease_s``, and does ``then`` when it is over or refused."""
        self.world.acquire(ModelKey(key), wait, note=(lease_s, then))

    def calls(self, times: Iterable[float], key: str, lease_s: float, *, wait: float = 120.0) -> None:
        for when in times:
            self.at(when, lambda: self.call(key, lease_s, wait=wait))

    def run(self, until: float = inf) -> None:
        """Let the clock run until nothing is left to happen, or to that instant."""
        world = self.world
        while True:
            due = self._agenda[0][0] if self._agenda else inf
            if min(due, world.wake or inf) > until or (due == inf and world.wake is None):
                break
            if world.wake is not None and world.wake <= due:
                world.now = max(world.now, world.wake)
                world.send(ev.Tick())
            else:
                world.now = due
                heappop(self._agenda)[2]()

    # --- what the world tells -------------------------------------------------------------------------------------

    def started(self, job: Job) -> None:
        self.at(self.world.now + self.durations[job.kind], lambda: self._finish(job))

    def answered(self, ticket: Ticket) -> None:
        lease_s, then = ticket.note
        now = self.world.now
        if ticket.live:
            self.granted.append(ticket)
            self.at(now + lease_s, lambda: self.world.release(ticket))
            now += lease_s
        else:
            self.refused.append(ticket)
        if then is not None:
            self.at(now, then)

    def _finish(self, job: Job) -> None:
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

    # --- figures --------------------------------------------------------------------------------------------------

    @property
    def loads(self) -> int:
        return self.world.counts["Load"]

    def waits(self, key: str | None = None) -> list[float]:
        """Seconds from arrival to grant, of everybody who was granted this model."""
        return [t.granted_at - t.arrival for t in self.granted if key in (None, t.ask.key)]

    def refusals(self, key: str | None = None) -> list[ev.Reason]:
        return [t.refusal.reason for t in self.refused if t.refusal is not None and key in (None, t.ask.key)]


# --- scenarios --------------------------------------------------------------------------------------------------------


def endless_a_rare_c(core: CoreFactory, settings: Settings | None = None, *, sleeps: bool = False) -> Traffic:
    """Room for one; A always has a lease running; 25 times, every 60 to 70 s, somebody wants C."""
    specs = [model("a", 8, sleeps=sleeps), model("c", 8, sleeps=sleeps)]
    traffic = Traffic(core, [gpu(10), RAM], specs, settings=settings)
    rng = random.Random(1)
    end = 25 * 65.0 + 200
    traffic.calls([0.4 * step for step in range(int(end / 0.4))], "a", 0.5)
    when = 60.0
    for _ in range(25):
        traffic.calls([when], "c", 1.0)
        when += rng.uniform(60, 70)
    traffic.run()
    return traffic


def alternating(core: CoreFactory, settings: Settings | None = None, *, sleeps: bool = False) -> Traffic:
    """Room for one; A B A B …, one a second for half an hour, ten seconds a load."""
    specs = [model("a", 8, sleeps=sleeps), model("b", 8, sleeps=sleeps)]
    traffic = Traffic(core, [gpu(10), RAM], specs, settings=settings)
    for second in range(1800):
        traffic.calls([float(second)], "ab"[second % 2], 0.1)
    traffic.run()
    return traffic


def everything_at_once(core: CoreFactory, settings: Settings | None = None, *, sleeps: bool = False) -> Traffic:
    """Room for three of twelve; all twelve are asked for in one instant, ten times each, three times over."""
    specs = [model(f"m{number}", 10, sleeps=sleeps) for number in range(12)]
    traffic = Traffic(core, [gpu(30), RAM], specs, settings=settings, load_s=10.0)
    for start in (0.0, 400.0, 800.0):
        for number in range(12):
            traffic.calls([start] * 10, f"m{number}", 2.0, wait=360.0)
    traffic.run()
    return traffic


def one_large_among_small(core: CoreFactory, settings: Settings | None = None, *, sleeps: bool = False) -> Traffic:
    """44 GB: twenty models of 2 GB in steady use all fit; every 100 s somebody wants the one of 20 GB."""
    small = [model(f"s{number}", 2, sleeps=sleeps) for number in range(20)]
    specs = [model("large", 20, sleeps=sleeps), *small]
    traffic = Traffic(core, [gpu(44), RAM], specs, settings=settings, load_s=3.0, audit_every=5)
    rng = random.Random(2)
    when = 0.0
    while when < 1200:
        when += rng.expovariate(2.0)
        traffic.calls([when], f"s{rng.randrange(20)}", 0.5)
    traffic.calls([100.0 * step for step in range(1, 12)], "large", 2.0)
    traffic.run()
    return traffic


def closed_loop(core: CoreFactory, *, gpus: int, until: float = 1800.0) -> Traffic:
    """200 users × 12 models of 10 GB on devices of 40 GB: each asks for a random model, uses it for about a second,
    thinks for about ten, and asks again, for half an hour; a load takes 4 s.
    """
    rng = random.Random(3)
    devices = (GPU, GPU1)[:gpus]
    specs = [model(f"m{number}", 10, devices=devices) for number in range(12)]
    traffic = Traffic(core, [gpu(40, device) for device in devices], specs, load_s=4.0, audit_every=100)

    def ask() -> None:
        if traffic.world.now < until:
            traffic.call(f"m{rng.randrange(12)}", rng.expovariate(1.0), then=think)

    def think() -> None:
        traffic.at(traffic.world.now + rng.expovariate(0.1), ask)

    for _ in range(200):
        traffic.at(rng.uniform(0, 5), ask)
    traffic.run()
    return traffic


def leases_of_twenty_minutes(core: CoreFactory) -> Traffic:
    """Room for two; A and B each lent for twenty minutes again and again; C asks with a minute, then with an hour."""
    traffic = Traffic(core, [gpu(20)], [model("a", 8), model("b", 8), model("c", 8)])
    traffic.calls([0.0, 1300.0, 2600.0, 3900.0], "a", 1200.0)
    traffic.calls([600.0, 1900.0, 3200.0], "b", 1200.0)
    traffic.calls([660.0], "c", 5.0, wait=60.0)
    traffic.calls([2000.0], "c", 5.0, wait=3600.0)
    traffic.run()
    return traffic


def deadline_shorter_than_the_load(core: CoreFactory) -> Traffic:
    """Room for one; A in steady use; C, which loads in 30 s, asked for every 20 s with 5 s to wait."""
    traffic = Traffic(core, [gpu(10)], [model("a", 8), model("c", 8)], load_s=30.0)
    traffic.calls([0.5 * step for step in range(1200)], "a", 1.2)
    traffic.calls([100.0 + 20.0 * step for step in range(20)], "c", 1.0, wait=5.0)
    traffic.run()
    return traffic


def hopeless_then_patient(core: CoreFactory) -> Traffic:
    """Nothing else is there; C loads in 30 s and is asked for with 5 s to wait, then again after half a minute."""
    traffic = Traffic(core, [gpu(10)], [model("c", 8)], load_s=30.0)
    traffic.calls([0.0, 10.0, 20.0, 29.0, 32.0], "c", 1.0, wait=5.0)
    traffic.run()
    return traffic
