"""Committing a plan, and carrying it out: what is promised, what drains, what unloads, when the load starts.

Every change of a plan's bytes goes through ``_adopt``, ``_suspend`` and ``_resume``; between them the account's
``promised`` is need − the bytes the plan's sources still hold for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from taskrouter.residency.actions import CancelLoad, Load, Preflight, Promote, Unload, Why
from taskrouter.residency.books import MODEL_SLOTS, State
from taskrouter.residency.decisions import Decided, Rule, Victim
from taskrouter.residency.events import Reason
from taskrouter.residency.planning import Mode, Plan
from taskrouter.residency.records import Model
from taskrouter.residency.store import Store
from taskrouter.residency.waiting import Phase, Want
from taskrouter.types import DeviceId

RULES: Mapping[Mode, Rule] = {Mode.FREE: Rule.FREE, Mode.PENDING: Rule.PENDING, Mode.IDLE: Rule.IDLE}
WENT: Mapping[Reason, Rule] = {
    Reason.IDLE: Rule.KEEP_ALIVE,
    Reason.SHRUNK: Rule.SHRUNK,
    Reason.HOST_ROOM: Rule.HOST_ROOM,
    Reason.RETIRED: Rule.RETIRED,
    Reason.REMOVED: Rule.REMOVED,
}
"""Why a model went that made room for no other."""


class Commits(Store, ABC):
    """Plans that became promises."""

    # --- committing a plan --------------------------------------------------------------------------------------------

    def _adopt(self, want: Want, plan: Plan) -> None:
        """Book a plan: what its victims and the unloads under way will free is drawn, the rest promised from free."""
        want.devices = plan.devices
        want.need = plan.need
        want.considered = plan.considered
        want.victims = list(plan.victims)
        missing = {device: amount - plan.from_free.get(device, 0) for device, amount in plan.need.items()}
        for device, coming in plan.from_pending.items():
            for model in self._freeing.values():
                # Some of what comes may only fill what foreign growth took: that is drawn by nobody.
                part = min(coming, model.unowned(device), missing[device])
                if part > 0:
                    self._draw(want, model, device, part)
                    coming -= part
                    missing[device] -= part
        for victim in plan.victims:
            for device, held in victim.charges.items():
                part = min(missing.get(device, 0), held)
                if part > 0:
                    self._draw(want, victim, device, part)
                    missing[device] -= part
        self._promise(want)

    @staticmethod
    def _draw(want: Want, model: Model, device: DeviceId, amount: int) -> None:
        model.draws.setdefault(want, {})[device] = amount
        want.sources.add(model)

    def _promise(self, want: Want) -> None:
        """Promised = need − the bytes its sources still hold for it."""
        for device, amount in self._owed(want).items():
            self._accounts[device].promised += amount

    def _withdraw(self, want: Want) -> None:
        for device, amount in self._owed(want).items():
            self._accounts[device].promised -= amount

    @staticmethod
    def _owed(want: Want) -> dict[DeviceId, int]:
        owed = dict(want.need)
        for model in want.sources:
            for device, amount in model.draws.get(want, {}).items():
                owed[device] -= amount
        return owed

    def _suspend(self, want: Want) -> dict[Model, dict[DeviceId, int]]:
        """Take a committed plan out of the books, to see whether there is a better one."""
        self._withdraw(want)
        return {model: model.draws.pop(want) for model in want.sources}

    def _resume(self, want: Want, drawn: dict[Model, dict[DeviceId, int]]) -> None:
        """Put a suspended plan back as it was."""
        for model, draw in drawn.items():
            model.draws[want] = draw
        self._promise(want)

    @staticmethod
    def _clear_plan(want: Want) -> None:
        """Forget a plan that is out of the books."""
        want.sources = set()
        want.victims = []
        want.need = {}
        want.devices = ()

    def _drain(self, want: Want, plan: Plan, now: float) -> None:
        self._note(want, plan, Rule.DRAIN, now)
        self._adopt(want, plan)
        want.phase = Phase.DRAINING
        for victim in plan.victims:
            if victim.state is State.LOADING:
                self._cancel_load(victim)  # A warm-up nobody waits for gives way now; it has nothing to drain.
            elif victim.state is State.HOST:
                self._unload(victim, Why(Reason.ROOM, want.model.key), now)  # Nor has one that sleeps.
            else:
                victim.state = State.DRAINING
                victim.drain_for = want
        if not any(victim.leases for victim in plan.victims):
            # Only claims or protection stood in the way, and a drain ends both.
            self._unload_victims(want, now)

    def _lift(self, victims: Iterable[Model], now: float) -> None:
        """End a drain: its victims serve again, those that wait for them first."""
        for victim in list(victims):
            if victim.state is State.DRAINING:
                victim.drain_for = None
                if not victim.retiring:
                    victim.state = State.READY
                    self._grant_waiting(victim, now)
                self._dirty = True

    def _evict(self, want: Want, plan: Plan, now: float) -> None:
        """Commit a plan whose victims are all idle, and carry it out."""
        self._clear_plan(want)
        rule = Rule.AHEAD if want.ahead else Rule.RESTORE if want.restoring else RULES[plan.mode]
        self._note(want, plan, rule, now)
        self._adopt(want, plan)
        self._unload_victims(want, now)

    def _note(self, want: Want, plan: Plan, rule: Rule, now: float) -> None:
        """Remember a plan that is committed, and why, as things stand just before."""
        model = want.model
        free = sum(max(self._accounts[device].free, 0) for device in plan.devices)
        victims = tuple(
            Victim(
                victim.key,
                victim.spec.label,
                sum(victim.charges.get(device, 0) for device in plan.need if device != MODEL_SLOTS),
                self._plans.cost([victim], now),
                victim.may_sleep and victim.state is not State.HOST,
            )
            for victim in plan.victims
        )
        need = sum(plan.need.get(device, 0) for device in plan.devices)
        self._decide(
            Decided(now, model.key, model.spec.label, rule, plan.devices, need, free, victims, plan.considered)
        )

    def _went(self, model: Model, rule: Rule, now: float) -> None:
        self._decide(Decided(now, model.key, model.spec.label, rule))

    def _unload_victims(self, want: Want, now: float) -> None:
        want.phase = Phase.EVICTING
        self._evicting[want.model.key] = want
        if want.model.state is not State.HOST:
            self._take_group(want.model)
        for victim in want.victims:
            if victim.state is State.LOADING:
                if not victim.cancelling:
                    self._cancel_load(victim)
                continue
            if victim.state in (State.UNLOADING, State.DEMOTING):
                continue
            if victim.spec.selected and victim.used:
                want.evicted.append(victim)
            first = want.model.first()
            reason = Reason.AHEAD if want.ahead else Reason.ROOM
            self._put_away(victim, Why(reason, want.model.key, first.id if first else None, want.considered), now)
        self._start_if_settled(want, now)

    def _take_group(self, model: Model) -> None:
        group = model.spec.traits.serial_group
        if group is not None:
            self._groups[group] = model

    def _leave_group(self, model: Model) -> None:
        group = model.spec.traits.serial_group
        if group is not None and self._groups.get(group) is model:
            del self._groups[group]

    def _start_if_settled(self, want: Want, now: float) -> None:
        """Start the load once every source was seen free, the bytes are really there, and its devices are quiet."""
        model = want.model
        if want.sources:
            return
        if any(self._accounts[device].free < 0 for device in want.need):
            # Foreign growth or residue ate what was promised: plan again with what there is.
            self._back_to_blocked(want, now)
            return
        wakes = model.state is State.HOST
        exclusive = model.spec.traits.exclusive_on_device and not wakes
        for other in (*self._loading.values(), *self._freeing.values()):
            if set(other.devices).isdisjoint(want.devices):
                continue
            if exclusive or (other.state is State.LOADING and other.spec.traits.exclusive_on_device):
                return
        first = model.first()
        self._withdraw(want)
        for device, amount in want.need.items():
            self._accounts[device].charged += amount
        if wakes:
            model.charges = {d: model.charges.get(d, 0) + want.need.get(d, 0) for d in {*model.charges, *want.need}}
            model.state = State.PROMOTING
            del self._asleep[model.key]
        else:
            model.charges = want.need
            model.devices = want.devices
            model.state = State.LOADING
        model.load_started = now
        model.background = want.restoring or want.ahead or (first is not None and first.background)
        model.used = want.restoring and model.used
        self._loading[model.key] = model
        del self._wants[model.key]
        del self._evicting[model.key]
        model.want = None
        model.made_room = want.evicted
        if not wakes:
            self._take_group(model)
        reason = Reason.WARMUP if first and first.background else Reason.REQUEST
        if want.restoring or want.ahead:
            reason = Reason.AHEAD if want.ahead else Reason.RESTORE
        action = Promote if wakes else Load
        self._out.append(
            action(model.key, model.generation, model.devices, dict(model.charges), reason, first.id if first else None)
        )

    def _back_to_blocked(self, want: Want, now: float) -> None:
        """Take a committed want back: its victims go on unloading, owned by nobody."""
        self._suspend(want)
        self._lift(want.victims, now)
        self._clear_plan(want)
        if self._evicting.pop(want.model.key, None) is not None:
            self._leave_group(want.model)
        want.phase = Phase.BLOCKED
        if not want.model.queued and not want.restoring:
            self._drop(want, now)
        else:
            self._dirty = True

    # --- unloading ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _put_away(self, model: Model, why: Why, now: float) -> None:
        """Take an idle model off its devices: to sleep where that is better, else unload it."""

    def _unload(self, model: Model, why: Why, now: float) -> None:
        self._begin_freeing(model, now, why)
        self._out.append(Unload(model.key, model.generation, dict(model.charges), why))

    def _why_retired(self, model: Model) -> Reason:
        """What it was that told it to go."""
        if self._closed:
            return Reason.SHUTDOWN
        return Reason.REMOVED if model.removed else Reason.RETIRED

    def _begin_freeing(self, model: Model, now: float, why: Why | None = None) -> None:
        """Nobody gets it any more. One that died needs no ``why``: nobody decided that."""
        if why is not None and why.reason in WENT:
            self._went(model, WENT[why.reason], now)
        model.state = State.UNLOADING
        model.drain_for = None
        model.retiring = False
        model.unload_started = now
        for claim in model.claims:
            del self._granted[claim]
        model.claims.clear()
        self._resident.pop(model.key, None)
        self._asleep.pop(model.key, None)
        self._retiring.pop(model.key, None)
        self._freeing[model.key] = model

    def _cancel_load(self, model: Model) -> None:
        model.cancelling = True
        self._freeing[model.key] = model
        self._out.append(CancelLoad(model.key, model.generation))

    # --- wants --------------------------------------------------------------------------------------------------------

    def _want(self, model: Model, now: float, *, restoring: bool = False, ahead: bool = False) -> None:
        """Somebody waits for a cold model: check first that it can be loaded at all (law 3)."""
        if model.state not in (State.DISK, State.HOST) or model.want is not None or model.retiring:
            return  # Who sleeps and was told to go is loaded anew once it has gone.
        want = model.want = self._wants[model.key] = Want(model, restoring=restoring)
        want.ahead = ahead
        want.phase = Phase.PREFLIGHT if model.state is State.DISK else Phase.BLOCKED
        if model.state is State.DISK and not model.preflighting:
            model.preflighting = True
            model.generation += 1
            self._out.append(Preflight(model.key, model.generation))
        if want.phase is Phase.BLOCKED:
            self._dirty = True  # While its need is found out it does nothing but keep room from younger ones.

    def _drop(self, want: Want, now: float) -> None:
        """Nobody waits for it any more: lift its drain, give back its promise; what unloads already goes on unowned."""
        model = want.model
        if want.phase in (Phase.DRAINING, Phase.EVICTING):
            self._suspend(want)
            if want.phase is Phase.EVICTING:
                self._leave_group(model)
                self._remember(want.evicted)
            self._lift(want.victims, now)
        self._clear_plan(want)
        self._evicting.pop(model.key, None)
        self._wants.pop(model.key, None)
        model.want = None
        self._dirty = True

    def _remember(self, evicted: Iterable[Model]) -> None:
        """These were evicted for a load that came to nothing."""
        self._restore.update((victim.key, victim) for victim in evicted if not victim.removed)
