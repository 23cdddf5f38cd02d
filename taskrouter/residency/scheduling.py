"""The pass: who of those that wait may act now, and the books of what they decide.

One pass looks at the wants (cold models somebody waits for) from the oldest on. Each acts, or reserves what its plan
would use and waits; younger ones act only outside the reservations of older ones (law 9). The cases, as numbered in
``_consider``:

1. A draining want whose plan is no longer needed (idle victims were found) or no longer possible lifts its drain.
2. Nothing would suffice: refused if it never could, else it waits for the world to change.
3. Warm-up and restoring wants take free bytes only. Warm-up decides in its order: whose need is still being found out
   comes before those behind it, who would take its bytes, or be refused for bytes it leaves in the end.
4. Free, pending or idle bytes suffice, and neither the serial group nor a device is taken: commit and evict.
5. Only busy victims would suffice, and it is time: commit and drain.
6. Otherwise: reserve, and say when to look again.
"""

from __future__ import annotations

from heapq import heapify, heappop, nsmallest
from math import inf

from taskrouter.residency import messages
from taskrouter.residency.actions import WakeAt, Why
from taskrouter.residency.books import HOST_BUDGET, State
from taskrouter.residency.decisions import Rule
from taskrouter.residency.events import Reason
from taskrouter.residency.impossible import blocked_for_ever
from taskrouter.residency.planning import Mode, Plan, Reserved
from taskrouter.residency.records import Model
from taskrouter.residency.sleeping import Sleeping
from taskrouter.residency.waiting import Phase, Ticket, Want
from taskrouter.types import CPU

PASS_LIMIT = 64
"""Wants looked at in one pass; those behind are younger than 64 others and can wait for the next."""

LONGEST_WAIT_S = 3600.0
"""Who waits longer, or without end, is drained for as if it waited so long: half of for ever never comes."""

MOST_PASSES = 1000
"""Passes at one instant. Each but the last refuses, grants, lifts or commits something, so they end by themselves."""


class Scheduling(Sleeping):
    """Who of those that wait may act now."""

    # --- one settling: passes, expiries, the next wake-up -------------------------------------------------------------

    def _settle(self, now: float) -> None:
        for _ in range(MOST_PASSES):
            if not self._dirty:
                break
            self._dirty = False
            self._pass(now)
            self._expire(now)
        else:
            # Never seen. Should it happen, callers are still answered by their deadlines, and the loop stays free.
            self._plans.wake = min(self._plans.wake, now + 1.0)
        self._set_wake()

    def _set_wake(self) -> None:
        self._timers_changed = False
        timers = self._timers
        if timers and self._stale(timers[0][2]):
            # Who was granted or gave up left a timer behind. Sweeping all of them at once costs less than popping each.
            timers[:] = [entry for entry in timers if not self._stale(entry[2])]
            heapify(timers)
        when = min(timers[0][0] if timers else inf, self._plans.wake)
        wake = None if when == inf else when
        if wake != self._woken_at:
            self._woken_at = wake
            self._out.append(WakeAt(wake))

    @staticmethod
    def _stale(what: Ticket | Model) -> bool:
        return not what.waiting if isinstance(what, Ticket) else False

    def _expire(self, now: float, *, before: bool = False) -> None:
        """Everything whose time has come: deadlines, cooldowns, keep-alives. After the grants of the same instant.

        ``before``: only what was due before this instant.
        """
        late: dict[Model, list[Ticket]] = {}
        timers = self._timers
        while timers and (timers[0][0] < now or (timers[0][0] == now and not before)):
            what = heappop(timers)[2]
            if isinstance(what, Ticket):
                if what.waiting:
                    late.setdefault(what.model, []).append(what)
                    what.model.dequeue(what)
                    del self._tickets[what.id]
            else:
                if what.cooldown_until is not None and what.cooldown_until <= now:
                    self._end_cooldown(what)
                self._keep_alive(what, now)
        for model, tickets in late.items():
            refusal = messages.deadline(self, model, now - tickets[0].arrival, now)
            self._refuse(tuple(ticket.id for ticket in tickets), refusal)
            if model.queued:
                self._dirty = True  # Only warm-up may be left waiting, and that waits for less.
            elif model.want is not None and model.want.phase is not Phase.EVICTING:
                self._drop(model.want, now)

    @staticmethod
    def _end_cooldown(model: Model) -> None:
        if model.state is State.COOLDOWN:
            model.state = State.DISK
        model.cooldown_until = None

    # --- the pass -----------------------------------------------------------------------------------------------------

    def _pass(self, now: float) -> None:
        self._plans.wake = inf
        self._unload_retiring(now)
        self._shrink(now)
        reserved = Reserved()
        if self._hints.ranks:
            self._hints.forget_old(now)
            self._plans.wake = min(self._plans.wake, self._hints.next_end())
        if self._wants:
            self._pass_wants(reserved, now)
        if self._hints.ranks:
            self._look_ahead(reserved, now)
        if self._restore:
            self._restore_next(now)

    def _pass_wants(self, reserved: Reserved, now: float) -> None:
        ahead = [want for want in self._wants.values() if want.ahead]
        if ahead and self._somebody_waits():
            # What is asked comes before what may be asked.
            for want in ahead:
                self._drop(want, now)
        for want in list(self._evicting.values()):
            self._start_if_settled(want, now)
            exclusive = want.model.spec.traits.exclusive_on_device and want.model.state is State.DISK
            if want.phase is Phase.EVICTING and exclusive:
                reserved.devices.update(want.devices)
        open_wants = [want for want in self._wants.values() if want.phase is not Phase.EVICTING]
        if len(open_wants) > 1:
            open_wants = nsmallest(PASS_LIMIT, open_wants, key=self._order)
        for want in open_wants:
            self._consider(want, reserved, now)

    def _order(self, want: Want) -> tuple[float, float, int]:
        first = want.model.first()
        return first.order if first is not None else (inf, self._hints.rank(want.model), 0)

    def _somebody_waits(self) -> bool:
        """Whether a ticket waits for room that isn't promised to it yet, or for a model that has to go first."""
        if any(want.model.queued and want.phase is not Phase.EVICTING for want in self._wants.values()):
            return True
        return any(model.queued for model in (*self._freeing.values(), *self._retiring.values()))

    def _look_ahead(self, reserved: Reserved, now: float) -> None:
        """Want the models that are needed soon, in order, as far as there is room for them and nobody waits."""
        if self._closed or self._somebody_waits():
            return
        for key in sorted(self._hints.ranks, key=self._hints.ranks.__getitem__):
            model = self._models.get(key)
            if model is None or model.want is not None or model.state is not State.DISK:
                continue  # A wake can't be called off.
            if not model.spec.traits.cancellable:
                continue  # Whoever asks meanwhile would wait for what nobody asked for.
            if model.failures or key in self._hints.barred or model.retiring or model.removed:
                continue
            probe = Want(model)
            probe.ahead = True
            plan = self._plans.find(probe, reserved, now=now, count_models=self._counts_models)
            if plan is None and blocked_for_ever(self._plans, model, frozenset(), count_models=self._counts_models):
                continue  # What never fits is waited for by nobody.
            if plan is None or plan.mode > Mode.IDLE:
                return
            reserved.add(plan, exclusive=False)
            self._want(model, now, ahead=True)

    def _consider(self, want: Want, reserved: Reserved, now: float) -> None:
        model = want.model
        if want.ahead and model.key not in self._hints.ranks:
            self._drop(want, now)
            return
        if model.queued and model.latest_deadline() <= now:
            return  # Everybody who waits for it is refused in this very instant; nothing is done for them any more.
        draining = want.phase is Phase.DRAINING
        drawn = self._suspend(want) if draining else {}
        plan = self._plans.find(want, reserved, now=now, count_models=self._counts_models)
        first = model.first()
        free_only = want.restoring or first is None or first.background
        able = plan is not None and self._able(want, plan, reserved)

        if draining:  # 1
            if plan is not None and plan.mode <= Mode.IDLE and able:
                self._lift([victim for victim in want.victims if victim not in plan.victims], now)
                self._evict(want, plan, now)
                return
            kept = plan is not None and able and not free_only
            if kept and not any(victim.spec.pinned for victim in want.victims):
                self._resume(want, drawn)
                return
            self._lift(want.victims, now)
            self._clear_plan(want)
            want.phase = Phase.BLOCKED
        if first is not None and first.background:  # 3
            if want.phase is Phase.PREFLIGHT:
                reserved.warming_up = True
            elif reserved.warming_up:
                return
        if plan is None and self._colder(want, reserved, now):
            return
        if plan is None:  # 2
            self._refuse_impossible(want, now)
            if free_only and self._wants.get(model.key) is want and want.phase is Phase.BLOCKED:
                self._yield(want, now)
            return
        if want.phase is Phase.PREFLIGHT:
            reserved.add(plan, exclusive=False)
        elif free_only and plan.mode > (Mode.IDLE if want.ahead else Mode.FREE):  # 3
            self._yield(want, now)
        elif plan.mode <= Mode.IDLE and able:  # 4
            self._evict(want, plan, now)
        elif plan.mode is Mode.DRAIN and able and self._time_to_drain(want, plan, now):  # 5
            self._drain(want, plan, now)
        else:  # 6
            reserved.add(plan, exclusive=model.spec.traits.exclusive_on_device and model.state is State.DISK)

    def _colder(self, want: Want, reserved: Reserved, now: float) -> bool:
        """Who can't wake where it sleeps, but could be loaded elsewhere, is forgotten and loaded there."""
        model = want.model
        if model.state is not State.HOST or not model.foreground or self._plans.frozen(model):
            return False
        plan = self._plans.find(want, reserved, now=now, count_models=self._counts_models, cold=True)
        if plan is None:
            return False
        if plan.mode > Mode.IDLE and not blocked_for_ever(
            self._plans, model, frozenset(), count_models=self._counts_models, placements=(model.devices,)
        ):
            return False  # what keeps it from waking may pass sooner
        self._drop(want, now)
        self._went(model, Rule.COLDER, now)
        self._unload(model, Why(Reason.ROOM, model.key), now)
        return True

    def _able(self, want: Want, plan: Plan, reserved: Reserved) -> bool:
        """Whether nothing but bytes stands between this want and acting: its group and its devices are not taken."""
        group = want.model.spec.traits.serial_group if want.model.state is not State.HOST else None
        holder = self._groups.get(group) if group is not None else None
        if holder is not None and holder is not want.model:
            return False
        if not reserved.devices.isdisjoint(plan.devices):
            return False
        for victim in plan.victims:
            if not reserved.devices.isdisjoint(victim.devices) or self._plans.frozen(victim):
                return False
        return not self._plans.taken(plan.devices)

    def _time_to_drain(self, want: Want, plan: Plan, now: float) -> bool:
        """``drain_at = min(arrival + wait/2, deadline − 1.5 × (lease + unload + load))``, if it can help."""
        lease = max(max(victim.lease_s, victim.busy_for(now)) if victim.leases else 0.0 for victim in plan.victims)
        unload = max(victim.unload_s for victim in plan.victims)
        busy = max(victim.busy_for(now) for victim in plan.victims)
        first = self._first_in_time(want.model, now + busy + unload + want.model.comes_s)
        if first is None:
            return False
        wait = min(first.deadline - first.arrival, LONGEST_WAIT_S)
        drain_at = min(first.arrival + wait / 2, first.deadline - 1.5 * (lease + unload + want.model.comes_s))
        if drain_at > now:
            self._plans.wake = min(self._plans.wake, drain_at)
            return False
        return True

    @staticmethod
    def _first_in_time(model: Model, ready: float) -> Ticket | None:
        """The first ticket, but for warm-up, that would still wait at that instant."""
        first = model.first()
        if first is None or (first.deadline >= ready and not first.background):
            return first
        return next((t for t in model.waiting() if t.deadline >= ready and not t.background), None)

    # --- unloading ----------------------------------------------------------------------------------------------------

    def _unload_retiring(self, now: float) -> None:
        for model in list(self._retiring.values()):
            gone = model.state in (State.DRAINING, State.HOST) and not model.leases
            if gone and not self._plans.frozen(model):
                self._unload(model, Why(self._why_retired(model)), now)

    def _keep_alive(self, model: Model, now: float) -> None:
        """A keep-alive timer fired: unload a model that has really been idle that long, else look again then."""
        model.keep_alive_armed = False
        seconds = model.spec.keep_alive_s
        sleeps = model.state is State.HOST and model.want is None and not model.draws
        if seconds is None or not (model.state is State.READY or sleeps) or model.leases or model.spec.pinned:
            return
        since = max(model.idle_since, model.last_claim if model.claims else -inf)
        self._hints.forget_old(now)
        if model.key in self._hints.ranks:
            self._arm_keep_alive(model, now + max(seconds, 1.0))  # It is needed soon: it would be loaded again at once.
        elif since + seconds <= now and not self._plans.frozen(model):
            self._unload(model, Why(Reason.IDLE), now)
            self._dirty = True
        else:
            self._arm_keep_alive(model, max(since + seconds, now + 1.0))

    def _shrink(self, now: float) -> None:
        """Foreign growth, a larger measurement or residue: evict idle models until the books hold again; drain none."""
        self._short = False
        for device, account in self._accounts.items():
            excess = -account.free
            if excess <= 0:
                continue
            self._short = True
            excess -= sum(model.unowned(device) for model in self._freeing.values())
            in_ram = device in (CPU, HOST_BUDGET)
            awake, sleepers = self._plans.by_use(now), self._plans.sleepers()
            for model in [*sleepers, *awake] if in_ram else [*awake, *sleepers]:
                if excess <= 0:
                    break
                held = model.charges.get(device, 0)
                idle = model.state is State.HOST or (model.state is State.READY and not model.leases)
                if not held or not idle or model.spec.pinned or self._plans.frozen(model):
                    continue
                excess -= held
                if in_ram or model.state is State.HOST:
                    self._unload(model, Why(Reason.SHRUNK), now)
                else:
                    self._put_away(model, Why(Reason.SHRUNK), now)

    def _refuse_impossible(self, want: Want, now: float) -> None:
        """No plan was found: refuse at once those for whom there never will be one as things stand."""
        model = want.model
        verdict = blocked_for_ever(self._plans, model, frozenset(), count_models=self._counts_models)
        if verdict is not None:
            self._refuse_waiting(model, messages.no_room(self, model, *verdict))
        elif model.holders:
            for ticket in model.waiting():
                if not ticket.holding.isdisjoint(self._granted):
                    blocked = blocked_for_ever(self._plans, model, ticket.holding, count_models=self._counts_models)
                    if blocked is not None:
                        refusal = messages.no_room(self, model, *blocked)
                        self._refuse_waiting(model, refusal, only=ticket)
        if not model.queued:
            self._drop(want, now)

    def _yield(self, want: Want, now: float) -> None:
        """Warm-up and restoring take free bytes only; there are none."""
        self._refuse_waiting(want.model, messages.no_free_room(self, want.model))
        self._drop(want, now)

    def _restore_next(self, now: float) -> None:
        """Load back what a failed load had evicted, once nobody waits (law 11)."""
        if self._closed:
            self._restore.clear()
        if any(not want.ahead for want in self._wants.values()) or any(m.queued for m in self._loading.values()):
            return
        while self._restore:
            _, model = self._restore.popitem()
            gone = (State.DISK, State.HOST)
            if model.state in (*gone, State.UNLOADING, State.DEMOTING) and model.spec.selected:
                if model.state in gone:
                    self._want(model, now, restoring=True)
                else:
                    self._restore[model.key] = model
                return
