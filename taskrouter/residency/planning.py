"""Finding room for one cold model: what a plan would use, in the order of law 4, without changing anything.

A plan uses, in this order: free bytes; bytes of unloads nobody owns; idle unpinned victims; then busy or loading ones,
which can only be reserved. Victims without which the others suffice are dropped. Of several device sets it takes the
one that needs the cheapest evictions, then the tightest fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain
from math import inf

from taskrouter.residency.accounts import Account
from taskrouter.residency.books import HOST_BUDGET, Settings, State
from taskrouter.residency.lookahead import Hints
from taskrouter.residency.policy import POLICIES, Missing, by_priority, drop_unneeded, take, worth_at
from taskrouter.residency.records import Model
from taskrouter.residency.waiting import Want
from taskrouter.types import CPU, DeviceId, ModelKey

PRIORITY_WORTH = 1e3
"""What one step of priority is worth: more than a hundred models by their use, each of which is worth at most 8."""
SOON_WORTH = 20.0
"""What a model is worth beside that is needed next: more than any use; half of it the one after, and so on."""


class Mode(IntEnum):
    """What the plan would have to touch, from nothing to models that are still in use or loading."""

    FREE = 0
    PENDING = 1
    IDLE = 2
    DRAIN = 3
    RESERVE = 4


@dataclass(slots=True)
class Plan:
    """Where a model could go and at whose cost. ``from_free`` and ``from_pending`` are bytes per device."""

    mode: Mode
    devices: tuple[DeviceId, ...]
    need: dict[DeviceId, int]
    from_free: dict[DeviceId, int]
    from_pending: dict[DeviceId, int]
    victims: list[Model]
    considered: int
    leftover: int


@dataclass(slots=True)
class Reserved:
    """What older wants of the same pass have set aside; younger ones act only outside it."""

    free: dict[DeviceId, int] = field(default_factory=dict)
    pending: dict[DeviceId, int] = field(default_factory=dict)
    bytes: dict[DeviceId, int] = field(default_factory=dict)
    """All of them per device: from ``free``, from ``pending``, and what ``models`` hold."""
    models: set[Model] = field(default_factory=set)
    devices: set[DeviceId] = field(default_factory=set)
    warming_up: bool = False
    """Whether the need of an older warm-up is still being found out."""

    def add(self, plan: Plan, *, exclusive: bool) -> None:
        for device, amount in plan.from_free.items():
            self.free[device] = self.free.get(device, 0) + amount
            self.bytes[device] = self.bytes.get(device, 0) + amount
        for device, amount in plan.from_pending.items():
            self.pending[device] = self.pending.get(device, 0) + amount
            self.bytes[device] = self.bytes.get(device, 0) + amount
        for victim in plan.victims:
            for device, amount in victim.charges.items():
                self.bytes[device] = self.bytes.get(device, 0) + amount
        self.models.update(plan.victims)
        if exclusive:
            self.devices.update(plan.devices)


class Planner:
    """Reads the core's books and answers plans. ``wake`` collects the next instant at which an answer could change.

    ``priorities_differ`` and ``some_stay`` (a model was pinned, or a load is stuck) may be true for longer than they
    are: they only save looking for what isn't there.
    """

    __slots__ = (
        "accounts",
        "asleep",
        "by_worth",
        "freeing",
        "hints",
        "loading",
        "policy",
        "priorities_differ",
        "resident",
        "settings",
        "some_stay",
        "wake",
    )

    def __init__(
        self,
        accounts: Mapping[DeviceId, Account],
        resident: Mapping[ModelKey, Model],
        freeing: Mapping[ModelKey, Model],
        loading: Mapping[ModelKey, Model],
        asleep: Mapping[ModelKey, Model],
        hints: Hints,
        settings: Settings,
    ) -> None:
        self.accounts = accounts
        self.resident = resident
        self.freeing = freeing
        self.loading = loading
        self.asleep = asleep
        self.hints = hints
        self.priorities_differ = False
        self.some_stay = False
        self.wake = inf
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Decide by these from now on."""
        self.settings = settings
        self.policy = POLICIES[settings.policy]
        self.by_worth = settings.policy != "lru"

    # --- who may be a victim ------------------------------------------------------------------------------------------

    def idle_at(self, model: Model, arrival: float) -> float:
        """When an unleased model may be evicted for a ticket of this arrival: its protection and claims are over."""
        assert model.loaded_at is not None
        settings = self.settings
        if settings.min_residency_s is not None:
            until = model.loaded_at + settings.min_residency_s
        else:
            until = min(
                model.loaded_at + min(model.brought_s, settings.residency_cap_s),
                model.idle_since + 0.2 * model.brought_s,
            )
        if model.claims:
            until = max(until, min(model.last_claim, arrival) + settings.claim_s)
        return until

    def by_use(self, now: float) -> list[Model]:
        """Resident models in the order in which they go: lower priority first, then oldest use (or least worth)."""
        models = list(self.resident.values())
        if self.by_worth:
            models.sort(key=lambda model: worth_at(model, now))
        return by_priority(models) if self.priorities_differ else models

    def cost(self, victims: Iterable[Model], now: float) -> float:
        """What evicting these costs: seconds until all are back, under ``cost_aware`` by how soon they are asked."""
        if self.by_worth:
            return sum(worth_at(victim, now) for victim in victims)
        return sum(victim.back_s for victim in victims)

    def frozen(self, model: Model) -> bool:
        """Whether an exclusive load is under way on one of its devices: nothing there may be freed meanwhile."""
        return self.taken(model.devices)

    def taken(self, devices: Iterable[DeviceId]) -> bool:
        """Whether an exclusive load is under way on one of these devices. One that is stuck is written off."""
        return any(
            loading.spec.traits.exclusive_on_device
            and loading.state is State.LOADING
            and not set(loading.devices).isdisjoint(devices)
            for loading in self.loading.values()
        )

    def _victims(self, want: Want, reserved: Reserved) -> Iterable[Model]:
        """Resident models this want may ever take, oldest use first. Leases and protection are the caller's to see."""
        held, own, draining = self.held_by(want), want.model, State.DRAINING
        models: Iterable[Model] = (  # lazily: under lru the first is mostly enough, of however many
            model
            for model in self.resident.values()
            if (model.state is not draining or model.drain_for is want) and model is not own
        )
        if self.some_stay:
            models = (model for model in models if not model.spec.pinned)
        if reserved.models or held:
            models = (model for model in models if model not in reserved.models and model.key not in held)
        return models

    def sleepers(self, reserved: Reserved | None = None) -> list[Model]:
        """Sleeping models that may be forgotten for their bytes, oldest use first: nobody waits for them."""
        found = [
            model
            for model in self.asleep.values()
            if not model.spec.pinned
            and model.want is None
            and not model.draws
            and (reserved is None or model not in reserved.models)
        ]
        found.sort(key=lambda model: model.last_used or 0.0)
        return found

    def held_by(self, want: Want) -> frozenset[ModelKey]:
        """Models on which somebody who waits for this want holds a lease."""
        if not want.model.holders:
            return frozenset()
        ids = {id for ticket in want.model.waiting() for id in ticket.holding}
        return frozenset(key for key, model in self.resident.items() if not ids.isdisjoint(model.leases))

    # --- plans --------------------------------------------------------------------------------------------------------

    def find(
        self, want: Want, reserved: Reserved, *, now: float, count_models: bool, cold: bool = False
    ) -> Plan | None:
        """The best plan for this want, or ``None`` where nothing would suffice outside the older reservations.

        ``cold``: for a model that sleeps, the best plan to load it anew.
        """
        model = want.model
        best: Plan | None = None
        best_cost: tuple[int, float, int] | None = None
        # Who sleeps wakes where it was.
        for devices in (model.devices,) if model.state is State.HOST and not cold else model.spec.placements:
            plan = self._find_on(want, devices, reserved, now=now, count_models=count_models)
            if plan is None:
                continue
            cost = (int(plan.mode), self.cost(plan.victims, now), plan.leftover)
            if best_cost is None or cost < best_cost:
                best, best_cost = plan, cost
        return best

    def _find_on(
        self, want: Want, devices: tuple[DeviceId, ...], reserved: Reserved, *, now: float, count_models: bool
    ) -> Plan | None:
        model = want.model
        need = model.missing_on(devices, count_models=count_models)
        for device, amount in need.items():
            account = self.accounts[device]
            most = account.usable - account.promised - account.residue - reserved.bytes.get(device, 0)
            if amount > most:
                return None  # not even with all that is charged there
        plan = Plan(Mode.FREE, devices, need, {}, {}, [], 0, 0)
        missing: Missing = {}
        for device, amount in need.items():
            free = self.accounts[device].free - reserved.free.get(device, 0)
            plan.from_free[device] = max(0, min(amount, free))
            plan.leftover += max(0, free - amount)
            if amount > free:
                missing[device] = amount - free
        if not missing:
            return plan

        plan.mode = Mode.PENDING
        for device in tuple(missing):
            coming = sum(freeing.unowned(device) for freeing in self.freeing.values())
            coming -= reserved.pending.get(device, 0)
            if coming > 0:
                plan.from_pending[device] = min(missing[device], coming)
                missing[device] -= plan.from_pending[device]
                if not missing[device]:
                    del missing[device]
        if not missing:
            return plan

        lacking = dict(missing)
        chosen = self._choose(want, missing, reserved, plan, now=now)
        if missing:
            return None
        plan.victims = drop_unneeded(chosen, lacking)
        for device, amount in lacking.items():
            # What the victims free beyond need is taken off what was to come from unloads under way.
            surplus = sum(victim.charges.get(device, 0) for victim in plan.victims) - amount
            coming = plan.from_pending.get(device, 0)
            if coming:
                plan.from_pending[device] = coming - min(coming, surplus)
        plan.mode = max(self._mode(victim, want, now) for victim in plan.victims)
        return plan

    def _choose(self, want: Want, missing: Missing, reserved: Reserved, plan: Plan, *, now: float) -> list[Model]:
        """Idle victims by the policy, then busy ones by the end of their leases, then loads under way."""
        first = want.model.first()
        arrival = first.arrival if first else now
        latest = want.model.latest_deadline() if first else inf
        hopeless = latest < now + want.model.comes_s
        replaces = first.replaces if first else None
        busy: list[tuple[float, Model]] = []

        def idle() -> Iterator[Model]:
            for model in victims:
                plan.considered += 1
                if model.state is State.HOST:
                    if self.frozen(model):
                        busy.append((now, model))
                    else:
                        yield model
                    continue
                if model.leases:
                    busy.append((now + model.busy_for(now), model))
                    continue
                free_at = self.idle_at(model, arrival)
                if hopeless:
                    free_at = max(free_at, model.idle_since + max(model.load_s, want.model.comes_s))
                if free_at > now or self.frozen(model):
                    if not hopeless and free_at > now:
                        self.wake = min(self.wake, free_at)
                    busy.append((now, model))
                    continue
                yield model
            if first is not None and not first.background:
                for model in self.loading.values():
                    if self.preemptible(model) and model not in reserved.models:
                        yield model

        residents: Iterable[Model] = self._victims(want, reserved)
        if self.asleep:
            # For RAM those that sleep go first; what they leave on a device is the last that is taken.
            early = not missing.keys().isdisjoint((CPU, HOST_BUDGET))
            sleepers = self.sleepers(reserved)
            residents = chain(sleepers, residents) if early else chain(residents, sleepers)
        victims = self.policy.order(residents, missing, now)
        if self.priorities_differ:
            victims = by_priority(victims)
        if self.hints.ranks:
            victims = sorted(victims, key=lambda model: (model.spec.priority, -self.hints.rank(model)))
            if want.ahead:
                at = {model: self.hints.gives_way_at(model, want.model) for model in victims}
                self.wake = min(self.wake, min((when for when in at.values() if when > now), default=inf))
                victims = [model for model in victims if at[model] <= now]
        if replaces is not None:
            victims = sorted(victims, key=lambda model: model.key != replaces)
        chosen = self.policy.choose(idle(), missing, self._worths(now, replaces))
        if not missing or hopeless or first is None or first.background:
            return chosen
        busy.sort(key=lambda entry: (entry[1].spec.priority, entry[0]))
        chosen += take((model for end, model in busy if end <= latest), missing)
        chosen += take(
            (
                model
                for model in self.loading.values()
                if model.state is State.LOADING
                and not model.spec.pinned
                and not model.cancelling
                and model is not want.model
                and model not in reserved.models
                and model not in chosen
            ),
            missing,
        )
        return chosen

    def _worths(self, now: float, replaces: ModelKey | None) -> Callable[[Model], float]:
        """What each victim is worth: what is replaced nothing, and more the higher its priority, whatever its use."""
        differ = self.priorities_differ
        least = min((model.spec.priority for model in self.resident.values()), default=0) if differ else 0

        def worth(model: Model) -> float:
            if model.key == replaces:
                return 0.0
            soon = SOON_WORTH / (1 + self.hints.rank(model)) if self.hints.ranks else 0.0
            return worth_at(model, now) + soon + max(model.spec.priority - least, 0) * PRIORITY_WORTH

        return worth

    def preemptible(self, model: Model) -> bool:
        """Whether a load under way may be cancelled for its bytes: nobody waits for it, and it can be stopped."""
        return (
            model.state is State.LOADING
            and model.background
            and model.spec.traits.cancellable
            and not model.cancelling
            and not model.spec.pinned
            and not any(not ticket.background for ticket in model.waiting())
        )

    def _mode(self, victim: Model, want: Want, now: float) -> Mode:
        if victim.state is State.LOADING:
            return Mode.IDLE if self.preemptible(victim) else Mode.RESERVE
        if victim.state is State.HOST:
            return Mode.RESERVE if self.frozen(victim) else Mode.IDLE
        first = want.model.first()
        if victim.leases or self.idle_at(victim, first.arrival if first else now) > now:
            return Mode.DRAIN
        return Mode.RESERVE if self.frozen(victim) else Mode.IDLE
