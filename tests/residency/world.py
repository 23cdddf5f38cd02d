"""A world beside the core: performs its actions, keeps its own true bytes, and judges every step.

``World.send`` hands one event to the core and carries out what it answers. The world believes nothing the core says
about itself: bytes come into use at ``Load`` and go at ``Unloaded``, ``LoadFailed`` or ``LoadCancelled``; a lease lives
from ``Grant`` to ``Release``. What must hold is in ``laws.py`` and ``audit.py``; a breach raises ``Violation`` with the
events that led there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from taskrouter.residency import actions as act
from taskrouter.residency import events as ev
from taskrouter.residency.books import HOST_BUDGET, MODEL_SLOTS, Settings, State
from taskrouter.types import CPU, DeviceId, DeviceReading, DeviceSpec, Footprint, ModelKey, ModelSpec, TicketId

from . import audit, laws, show
from .account import Broken, Bytes, CoreFactory, Job, Life, Step, Ticket, Violation, Watcher


class World:
    """Performs a core's actions and keeps the account it is judged by."""

    def __init__(
        self, core: CoreFactory, devices: Iterable[DeviceSpec], models: Iterable[ModelSpec], settings: Settings,
        *, audit_every: int = 1,
    ) -> None:  # fmt: skip
        self.devices = {device.id: device for device in devices}
        self.specs = {spec.key: spec for spec in models}
        self.settings = settings
        self.core = core(list(self.devices.values()), list(self.specs.values()), settings)
        self.now = 0.0
        self.wake: float | None = None
        self.readings: dict[DeviceId, DeviceReading] = {}
        self.residue: dict[ModelKey, Bytes] = {}
        self.lives: dict[ModelKey, Life] = {}
        self.jobs: list[Job] = []
        self.tickets: dict[TicketId, Ticket] = {}
        self.waiting: dict[ModelKey, dict[TicketId, Ticket]] = defaultdict(dict)
        self.held: dict[ModelKey, dict[TicketId, Ticket]] = defaultdict(dict)
        self.need_low = {key: spec.need for key, spec in self.specs.items()}
        self.need_high = dict(self.need_low)
        self.generations: dict[ModelKey, int] = {}
        self.preflighted: set[ModelKey] = set()
        self.found_slots: dict[ModelKey, int | None] = {}
        self.retired: set[ModelKey] = set()
        self.removed: set[ModelKey] = set()
        self.oom_retries: dict[ModelKey, int] = {}
        self.sleep_failures: dict[ModelKey, int] = defaultdict(int)
        self.hints: dict[str, ev.Hint] = {}
        self.longest = {"lease": 1.0, "load": 0.0, "unload": 1.0}
        self.shut = False
        self.failed_loads = 0
        self.counts: dict[str, int] = defaultdict(int)
        self.performed: list[act.Action] = []
        self.log: list[tuple[float, ev.Event, list[act.Action]]] = []
        self.step: Step | None = None
        self.watcher: Watcher | None = None
        self._audit_every = audit_every
        self._steps = 0
        self._next_ticket = 0

    # --- asking ---------------------------------------------------------------------------------------------------

    def acquire(
        self, key: ModelKey, wait: float = 120.0, *, priority: int = 0, claim: bool = False, background: bool = False,
        holding: frozenset[TicketId] = frozenset(), replaces: ModelKey | None = None, arrival: float | None = None,
        note: Any = None,
    ) -> Ticket:  # fmt: skip
        """Send an ``Acquire`` and return its ticket, as it stands afterwards."""
        self._next_ticket += 1
        number = TicketId(self._next_ticket)
        ask = ev.Acquire(number, key, self.now + wait, priority, claim, arrival, holding, background, replaces)
        ticket = Ticket(ask, self.now if arrival is None else arrival, note=note)
        self.tickets[number] = ticket
        self.waiting[key][number] = ticket
        self.send(ask)
        return ticket

    def release(self, ticket: Ticket) -> None:
        self.send(ev.Release(ticket.ask.ticket))

    def live(self, key: ModelKey, *, claims: bool = False) -> list[Ticket]:
        """The leases (or the claims) that the world knows to be held on this model."""
        return [ticket for ticket in self.held[key].values() if ticket.ask.claim == claims]

    def job(self, kind: str, key: ModelKey) -> Job | None:
        return next((job for job in self.jobs if job.kind == kind and job.key == key), None)

    # --- bytes ----------------------------------------------------------------------------------------------------

    def allowed(self, device: DeviceId) -> int:
        """Bytes that models may hold there now, in truth."""
        if device == MODEL_SLOTS:
            return self.settings.max_models or 1 << 60
        if device == HOST_BUDGET:
            return self.settings.host_budget
        spec = self.devices[device]
        reading = self.readings.get(device, DeviceReading())
        return min(spec.capacity, spec.limit - reading.foreign - reading.overhead)

    def used(self, device: DeviceId, *, booked: bool = False) -> int:
        """Bytes that models and residue hold there; ``booked``: by the larger of what they hold and are charged."""
        lives = sum((life.booked if booked else life.true).get(device, 0) for life in self.lives.values())
        return lives + sum(lost.get(device, 0) for lost in self.residue.values())

    def spread(self, need: Footprint, devices: Iterable[DeviceId]) -> Bytes:
        """What a footprint takes on each device of a set (and in RAM, and of ``max_models``)."""
        out: Bytes = dict.fromkeys(devices, need.device_bytes)
        if need.ram_bytes and CPU in self.devices:
            out[CPU] = out.get(CPU, 0) + need.ram_bytes
        if self.settings.max_models:
            out[MODEL_SLOTS] = 1
        return out

    def rank(self, key: ModelKey) -> float:
        """How soon pipelines say it will be needed: 0 is next, infinity where none does."""
        lists = [hint.keys for hint in self.hints.values() if hint.until > self.now]
        return min((keys.index(key) for keys in lists if key in keys), default=inf)

    # --- one step -------------------------------------------------------------------------------------------------

    def send(self, event: ev.Event) -> list[act.Action]:
        """Hand one event to the core, carry out its actions, and judge the step."""
        self._steps += 1
        full = self._steps % self._audit_every == 0
        before = {key: self.core.status(key) for key in self.specs} if full else {}
        free = {device: self.core.books(device).free for device in self.devices} if full else {}
        self.step = Step(event, before, free)
        self._note(event)
        try:
            actions = self.core.handle(event, now=self.now)
        except Exception as error:
            self.log.append((self.now, event, []))
            raise Violation(self.story(f"handle raised {type(error).__name__}: {error}")) from error
        self.step.actions = actions
        self.log.append((self.now, event, actions))
        try:
            for action in actions:
                self._perform(action)
            laws.after_step(self, self.step)
            if full:
                audit.audit(self, self.step)
        except Violation:
            raise
        except Exception as error:  # an assertion of the laws, or of the core's own check()
            raise Violation(self.story(f"{type(error).__name__}: {error}")) from error
        return actions

    def story(self, what: str) -> str:
        head = show.house(list(self.devices.values()), list(self.specs.values()), self.settings)
        steps = [
            f"{now:8.2f}  {show.line(event)}  ->  {', '.join(map(show.line, actions)) or '-'}"
            for now, event, actions in self.log[-80:]
        ]
        return "\n".join([what, *head, *steps])

    def _perform(self, action: act.Action) -> None:
        match action:
            case act.Preflight(key, generation):
                laws.on_preflight(self, action)
                self._begin(Job("preflight", key, generation, self.now))
            case act.Load(key, generation, devices, charges, reason, _):
                laws.on_load(self, action)
                held = {device: count for device, count in charges.items() if count}
                self.lives[key] = Life(generation, devices, dict(held), held, self.now)
                self._begin(Job("load", key, generation, self.now, devices, reason=reason))
                self.generations[key] = generation
            case act.CancelLoad():
                laws.on_cancel(self, action)
                self.job_of(action).cancelled = self.lives[action.key].cancelled = True
            case act.Demote(key, generation, _, ram, why):
                laws.on_demote(self, action)
                life = self.lives[key]
                life.awake = dict(life.true)
                life.true = {**life.true, CPU: life.true.get(CPU, 0) + ram, HOST_BUDGET: ram}
                self._begin(Job("demote", key, generation, self.now, life.devices, why.wanted, why.reason))
                self._claims_end(key)
            case act.Promote(key, generation, devices, charges, reason, _):
                laws.on_promote(self, action)
                life = self.lives[key]
                life.booked = {device: count for device, count in charges.items() if count}
                life.true = {d: max(life.true.get(d, 0), life.awake.get(d, 0)) for d in {**life.true, **life.awake}}
                self._begin(Job("promote", key, generation, self.now, devices, reason=reason))
            case act.Unload(key, generation, _, why):
                laws.on_unload(self, action)
                self._begin(Job("unload", key, generation, self.now, self.lives[key].devices, why.wanted, why.reason))
                self._claims_end(key)
            case act.Kill(key, generation, _):
                laws.on_kill(self, action)
                self._begin(Job("unload", key, generation, self.now, self.lives[key].devices))
            case act.Grant(key, generation, numbers):
                for number in numbers:
                    ticket = laws.on_grant(self, action, number)
                    ticket.state, ticket.generation, ticket.granted_at = "granted", generation, self.now
                    self.retired.discard(key)  # who asked while it still loaded kept it
                    del self.waiting[key][number]
                    self.held[key][number] = ticket
                    self._answered(ticket)
            case act.Refuse(numbers, refusal):
                for number in numbers:
                    ticket = laws.on_refuse(self, number, refusal)
                    ticket.state, ticket.refusal = "refused", refusal
                    if self.step is not None:
                        self.step.refused.append(ticket)
                    del self.waiting[ticket.ask.key][number]
                    self._answered(ticket)
            case act.WakeAt(when):
                assert when is None or when > self.now, f"WakeAt({when}) lies not after now ({self.now})"
                self.wake = when
        self.counts[type(action).__name__] += 1
        self.performed.append(action)

    def _claims_end(self, key: ModelKey) -> None:
        """They protect no longer, and end with their model."""
        if self.held[key] and self.step is not None:
            self.step.ended_claims[key] = list(self.held[key].values())
        for number in list(self.held[key]):
            self._end(number)

    def _begin(self, job: Job) -> None:
        self.jobs.append(job)
        if self.watcher is not None:
            self.watcher.started(job)

    def _answered(self, ticket: Ticket) -> None:
        if self.watcher is not None:
            self.watcher.answered(ticket)

    def job_of(self, action: act.CancelLoad) -> Job:
        return next(job for job in self.jobs if job.kind == "load" and job.key == action.key)

    def _note(self, event: ev.Event) -> None:
        """Bring the account up to date with what the event says has happened, before the core hears of it."""
        match event:
            case ev.Release(number) | ev.GiveUp(number):
                self._end(number)
            case ev.Died(key, generation, _):
                life = self.lives.get(key)
                if life and life.generation == generation and life.loaded_at is not None:
                    life.dead = True
                    for number in list(self.held[key]):
                        self._end(number)
            case ev.Hint(source):
                self.hints[source] = event
            case ev.Observed(readings):
                self.readings.update(readings)
            case ev.Reconfigure(spec):
                self.specs[spec.key] = spec
                self.need_low.setdefault(spec.key, spec.need)
                self.need_high.setdefault(spec.key, spec.need)
            case ev.Configure(specs, devices, settings):
                self._configure(specs, devices, settings)
            case ev.Pin(key, pinned):
                self.specs[key] = replace(self.specs[key], pinned=pinned)
            case ev.Retire(key):
                if key in self.lives:
                    self.retired.add(key)
            case ev.Reclaimed(key, residue):
                self.residue[key] = dict(residue)
            case ev.Shutdown():
                self.shut = True
            case ev.Tick():
                if self.wake is not None and self.now >= self.wake:
                    self.wake = None

    def _configure(self, specs: tuple[ModelSpec, ...], devices: tuple[DeviceSpec, ...], settings: Settings) -> None:
        self.devices = {device.id: device for device in devices}
        self.settings = settings
        named = {spec.key: spec for spec in specs}
        self.retired |= {key for key in self.lives if key not in named}
        self.retired -= self.removed & named.keys()
        self.removed = self.specs.keys() - named.keys()
        self.specs.update(named)
        for life in self.lives.values():
            life.true.pop(MODEL_SLOTS, None)
            if settings.max_models and not life.asleep:
                life.true[MODEL_SLOTS] = life.booked[MODEL_SLOTS] = 1

    def _end(self, number: TicketId) -> None:
        ticket = self.tickets.get(number)
        if ticket is None or ticket.state not in ("waiting", "granted"):
            return
        key = ticket.ask.key
        if ticket.state == "granted":
            del self.held[key][number]
            if not ticket.ask.claim:
                self.longest["lease"] = max(self.longest["lease"], self.now - ticket.granted_at)
                self.lives[key].idle_since = self.now
        else:
            del self.waiting[key][number]
        ticket.state = "over"

    # --- how jobs end ---------------------------------------------------------------------------------------------

    def preflight_ok(
        self, job: Job, need: Footprint | None = None, load_s: float | None = None, slots: int | None = None
    ) -> None:
        self.jobs.remove(job)
        self.preflighted.add(job.key)
        self.found_slots[job.key] = slots
        if need is not None:
            self._learn(job.key, need)
        self.send(ev.Preflighted(job.key, job.generation, need, load_s, slots))

    def preflight_failed(self, job: Job) -> None:
        self.jobs.remove(job)
        self.preflighted.discard(job.key)
        self.send(ev.PreflightFailed(job.key, job.generation, Broken("preflight")))

    def load_ok(self, job: Job, measured: Footprint | None = None) -> None:
        self.jobs.remove(job)
        life = self.lives[job.key]
        life.loaded_at = life.idle_since = self.now
        life.load_s = self.now - life.started
        self.longest["load"] = max(self.longest["load"], life.load_s)
        self.oom_retries.pop(job.key, None)
        if measured is not None:
            self._learn(job.key, measured)
            life.true = {d: n for d, n in self.spread(measured, life.devices).items() if n}
            life.booked = {d: max(n, life.booked.get(d, 0)) for d, n in life.true.items()}
        self.send(ev.Loaded(job.key, job.generation, measured))

    def load_failed(self, job: Job, *, oom: bool = False, residue: Mapping[DeviceId, int] | None = None) -> None:
        self._gone(job, residue)
        self.failed_loads += 1
        if oom:
            spec = self.specs[job.key]
            most = max(self.devices[d].capacity for placement in spec.placements for d in placement)
            known = self.need_high[job.key]  # which may be more than a budget that was lowered meanwhile
            self.need_high[job.key] = Footprint(max(most, known.device_bytes), known.ram_bytes)
        event = ev.LoadFailed(job.key, job.generation, Broken("load"), oom, residue or {})
        self.send(event)

    def load_cancelled(self, job: Job) -> None:
        assert job.cancelled, "only a cancelled load ends in LoadCancelled"
        self._gone(job, None)
        self.send(ev.LoadCancelled(job.key, job.generation))

    def load_stuck(self, job: Job) -> None:
        job.stuck = True
        self.send(ev.LoadStuck(job.key, job.generation))

    def demote_ok(self, job: Job, ram: int, residue: Mapping[DeviceId, int] | None = None) -> None:
        self.jobs.remove(job)
        self.longest["unload"] = max(self.longest["unload"], self.now - job.since)
        left = dict(residue or {})
        life = self.lives[job.key]
        life.true = {**left, CPU: left.get(CPU, 0) + ram, HOST_BUDGET: ram}
        life.asleep = True
        self.send(ev.Demoted(job.key, job.generation, ram, left))

    def demote_failed(self, job: Job) -> None:
        self.jobs.remove(job)
        self.lives[job.key].true = dict(self.lives[job.key].awake)
        self.sleep_failures[job.key] += 1
        self.send(ev.DemoteFailed(job.key, job.generation, Broken("sleep")))

    def promote_ok(self, job: Job) -> None:
        self.jobs.remove(job)
        life = self.lives[job.key]
        life.true, life.asleep = dict(life.awake), False
        life.loaded_at = life.idle_since = self.now
        life.load_s = self.now - job.since
        self.longest["load"] = max(self.longest["load"], life.load_s)
        self.sleep_failures[job.key] = 0
        self.send(ev.Promoted(job.key, job.generation))

    def promote_failed(self, job: Job) -> None:
        self.jobs.remove(job)
        self.sleep_failures[job.key] += 1
        self.send(ev.PromoteFailed(job.key, job.generation, Broken("wake")))

    def unload_ok(self, job: Job, residue: Mapping[DeviceId, int] | None = None) -> None:
        self.longest["unload"] = max(self.longest["unload"], self.now - job.since)
        self._gone(job, residue)
        self.send(ev.Unloaded(job.key, job.generation, residue or {}))

    def _gone(self, job: Job, residue: Mapping[DeviceId, int] | None) -> None:
        self.jobs.remove(job)
        life = self.lives.pop(job.key)
        self.retired.discard(job.key)
        assert life.generation == job.generation, f"{job.key}: a job of life {job.generation} ended another"
        if residue:
            lost = self.residue.setdefault(job.key, {})
            for device, count in residue.items():
                lost[device] = lost.get(device, 0) + count

    def _learn(self, key: ModelKey, seen: Footprint) -> None:
        spec, low, high = self.specs[key], self.need_low[key], self.need_high[key]
        extra = Footprint(0, 0) if spec.declared else spec.need
        self.need_high[key] = Footprint(
            max(high.device_bytes, seen.device_bytes + extra.device_bytes),
            max(high.ram_bytes, seen.ram_bytes + extra.ram_bytes),
        )
        if not spec.declared:
            self.need_low[key] = Footprint(min(low.device_bytes, seen.device_bytes), min(low.ram_bytes, seen.ram_bytes))

    # --- time -----------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass, sending each ``Tick`` at its instant."""
        self.advance_to(self.now + seconds)

    def advance_to(self, target: float) -> None:
        ticks = 0
        while self.wake is not None and self.wake <= target:
            ticks += 1
            assert ticks < 1000, self.story("WakeAt storm: a thousand ticks in one pause")
            self.now = max(self.now, self.wake)
            self.send(ev.Tick())
        self.now = max(self.now, target)

    def state(self, key: ModelKey) -> State:
        return self.core.status(key).state
