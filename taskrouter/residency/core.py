"""The residency core: events in, actions out, and the only code that decides what is resident and who waits.

The laws it keeps are numbered in ``docs/design.md``; in short:

1.  Book when you decide: granting is leasing, deciding a load promises its bytes, starting it charges them.
2.  Unloading frees nothing until the bytes were seen free.
3.  Preflight before you evict.
4.  Plan before you evict; what a committed plan's victims free is promised to its load.
5.  In use is untouchable. A lease ends when the operation has stopped; a claim protects for a while.
6.  The load belongs to the manager: N callers, one load; only the last waiter's giving up cancels it.
7.  Giving up is an event.
8.  Every action ends in exactly one event; events of an earlier life are ignored.
9.  Every ticket is granted or refused by its deadline: older ones reserve, then drain.
10. Just loaded is protected for a while.
11. One bad load harms nobody who is serving.
12. What can't be freed is said.
13. Progress is health.

How it works: a handler books what the event says and marks the books dirty when somebody's plan could change by it;
then passes run until nothing changes (``scheduling``). A ready model with a free slot is granted without a pass.
Passes look for room with ``planning``, which changes nothing. The states of a model and how they follow each other::

    DISK ─Load→ LOADING ─Loaded→ READY ⇄ DRAINING
     ↑             │ ↘ STUCK        └──────┴─Unload→ UNLOADING ─Unloaded→ DISK
     │             │                └──────┴─Demote→ DEMOTING ─Demoted→ HOST ─Promote→ PROMOTING ─Promoted→ READY
     └─────────────┴── failed, cancelled    repeated failure: COOLDOWN → DISK; a failed sleep or wake: UNLOADING
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from taskrouter.residency import messages
from taskrouter.residency.actions import Action
from taskrouter.residency.books import ModelStatus, Snapshot, State
from taskrouter.residency.configuring import Configuring
from taskrouter.residency.decisions import Decided
from taskrouter.residency.events import (
    Acquire,
    ClearCooldown,
    Configure,
    Demoted,
    DemoteFailed,
    Died,
    Event,
    GiveUp,
    Hint,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadStuck,
    Observed,
    Pin,
    Preflighted,
    PreflightFailed,
    Promoted,
    PromoteFailed,
    Reclaimed,
    Reconfigure,
    Release,
    Retire,
    Shutdown,
    Tick,
    Unloaded,
)
from taskrouter.residency.records import Model
from taskrouter.residency.waiting import Phase
from taskrouter.types import DeviceId, ModelKey


class Residency(Configuring):
    """The one mutator. ``handle`` takes an event and the time and answers what is to be done; it does no I/O."""

    def handle(self, event: Event, *, now: float) -> list[Action]:
        """Take an event; answer the actions it leads to, in the order they are to be performed.

        ``now`` is seconds on one monotonic clock; an earlier instant than the last one (or none at all, NaN) counts
        as the last one.
        """
        if now > self._now:
            self._now = now
        else:
            now = self._now
        out = self._out = []
        if self._timers and self._timers[0][0] < now:
            # The event comes late: what was due before this instant is over, and must not be granted by it.
            self._expire(now, before=True)
        _HANDLERS[type(event)](self, event, now)
        if self._dirty:
            self._settle(now)
        elif self._timers_changed:
            self._set_wake()
        return out

    # --- what can be asked --------------------------------------------------------------------------------------------

    def lru(self) -> ModelKey | None:
        """The idle, unpinned model that goes first (used longest ago; ``cost_aware``: worth least), or ``None``."""
        for model in self._plans.by_use(self._now):
            if model.state is State.READY and not model.leases and not model.spec.pinned:
                return model.key
        return None

    def placements(self, key: ModelKey) -> tuple[tuple[DeviceId, ...], ...]:
        """The device sets this model may be put on."""
        return self._models[key].spec.placements

    def resident(self) -> list[ModelKey]:
        """Models that are ready (or draining), least recently used first."""
        return list(self._resident)

    def status(self, key: ModelKey) -> ModelStatus:
        model = self._models[key]
        return ModelStatus(
            key=model.key,
            label=model.spec.label,
            state=model.state,
            generation=model.generation,
            devices=model.devices,
            charges=self._held(model),
            leases=len(model.leases),
            claims=len(model.claims),
            waiting=model.queued,
            pinned=model.spec.pinned,
            last_used=model.last_used,
            loaded_at=model.loaded_at,
            load_s=model.load_s,
            wake_s=model.wake_s,
            cooldown_until=model.cooldown_until,
            residue=dict(model.residue),
            need_bytes=model.need.device_bytes,
            measured=model.measured,
        )

    @staticmethod
    def _held(model: Model) -> dict[DeviceId, int]:
        """What it is charged, the RAM it is being put to sleep in included."""
        held = dict(model.charges)
        for device, amount in model.sleep_charges.items():
            held[device] = held.get(device, 0) + amount
        return held

    def expected_start(self, key: ModelKey, *, now: float) -> float:
        """Seconds until a request that comes now could start: the queue, and the load as it was measured before.

        0 where that isn't known: a model that was never loaded may be quick.
        """
        model = self._models[key]
        if model.state in (State.READY, State.DRAINING):
            if model.slots is None or len(model.leases) + model.queued < model.slots:
                return 0.0
            return (model.queued + 1) * model.lease_s / model.slots
        if model.state in (State.HOST, State.PROMOTING, State.DEMOTING):
            if not model.wake_measured:
                return 0.0
            if model.state is State.PROMOTING:
                return max(model.load_started + model.wake_s - now, 0.0)
            leaving = max(model.unload_started + model.unload_s - now, 0.0) if model.state is State.DEMOTING else 0.0
            return leaving + model.wake_s
        if not model.load_measured:
            return 0.0
        if model.state is State.LOADING:
            return max(model.load_started + model.load_s - now, 0.0)
        return self._behind_others(model, now) + model.load_s

    def _behind_others(self, model: Model, now: float) -> float:
        """Seconds until no load that is under way, as far as it was measured, keeps this one from starting."""
        left = {
            other.key: max(other.load_started + other.load_s - now, 0.0)
            for other in self._loading.values()
            if other.load_measured and other.state is State.LOADING
        }
        group = self._groups.get(model.spec.traits.serial_group or "")
        turn = left.get(group.key, 0.0) if group is not None else 0.0
        if group is not None and group.state is not State.LOADING and group.load_measured and group is not model:
            turn = group.load_s  # its room is being made
        exclusive = model.spec.traits.exclusive_on_device

        def free(devices: tuple[DeviceId, ...]) -> float:
            there = [
                left.get(other.key, 0.0)
                for other in self._loading.values()
                if not set(other.devices).isdisjoint(devices) and (exclusive or other.spec.traits.exclusive_on_device)
            ]
            return max(there, default=0.0)

        return max(turn, min(map(free, model.spec.placements), default=0.0))

    def decisions(self, key: ModelKey | None = None) -> tuple[Decided, ...]:
        """The latest decisions (at most ``KEPT``), oldest first; of all models, or those that one was part of."""
        return tuple(
            each for each in self._decided
            if key is None or each.key == key or any(victim.key == key for victim in each.victims)
        )  # fmt: skip

    def snapshot(self) -> Snapshot:
        """Everything, frozen; holds no reference to a model."""
        return Snapshot(
            devices={device: account.view() for device, account in self._accounts.items()},
            models={key: self.status(key) for key, model in self._models.items() if not self._is_gone(model)},
            waiting=len(self._tickets),
            oldest_arrival=min((ticket.arrival for ticket in self._tickets.values()), default=None),
            earliest_deadline=min((ticket.deadline for ticket in self._tickets.values()), default=None),
        )

    def __repr__(self) -> str:
        ready = sum(model.state is State.READY for model in self._resident.values())
        rooms = ", ".join(
            messages.share(device, account.charged, account.capacity) for device, account in self._accounts.items()
        )
        return f"<Residency {ready} ready, {len(self._loading)} loading, {rooms}, {len(self._tickets)} waiting>"

    # --- the books, asserted ------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert that the books are true to the records. For tests and debugging; costs O(models)."""
        for device, account in self._accounts.items():
            models = self._models.values()
            charged = sum(m.charges.get(device, 0) + m.sleep_charges.get(device, 0) for m in models)
            assert account.charged == charged, f"{device} charged"
            assert account.residue == sum(m.residue.get(device, 0) for m in models), f"{device} residue"
            committed = [w for w in self._wants.values() if w.phase in (Phase.DRAINING, Phase.EVICTING)]
            committed += [m.bed for m in models if m.bed is not None]
            promised = sum(self._owed(want).get(device, 0) for want in committed)
            assert account.promised == promised, f"{device} promised {account.promised}, owed {promised}"
        for model in self._models.values():
            self._check_model(model)
        assert len(self._granted) == sum(len(m.leases) + len(m.claims) for m in self._models.values()), "leases"
        assert len(self._tickets) == sum(m.queued for m in self._models.values()), "tickets"

    def _check_model(self, model: Model) -> None:
        holds = model.state not in (State.DISK, State.COOLDOWN)
        assert holds or not model.charges, f"{model} charges without being there"
        assert holds == bool(model.devices), f"{model} has devices {model.devices}"
        assert model.state in (State.READY, State.DRAINING) or not model.leases, f"{model} leased"
        assert (model.key in self._resident) == (model.state in (State.READY, State.DRAINING)), f"{model} resident"
        loading = model.state in (State.LOADING, State.STUCK, State.PROMOTING)
        assert (model.key in self._loading) == loading, f"{model} loading"
        freeing = model.state in (State.UNLOADING, State.DEMOTING) or model.cancelling
        assert (model.key in self._freeing) == freeing, f"{model} freeing"
        assert (model.key in self._asleep) == (model.state is State.HOST), f"{model} asleep"
        assert not model.removed or (model.state is not State.READY and not model.queued), f"{model} serves, removed"
        assert model.state is State.DEMOTING or not (model.bed or model.sleep_charges), f"{model} has a bed"
        for device in model.charges:
            assert model.unowned(device) >= 0, f"{model} promised more than it holds"
        for want, draw in model.draws.items():
            assert model in want.sources, f"{model} drawn by {want.model} without being its source"
            assert draw, f"{model} drawn by nothing"
        if model.state is State.DRAINING:
            owner = model.drain_for
            live = owner is not None and self._wants.get(owner.model.key) is owner and owner.phase is Phase.DRAINING
            assert live or model.retiring, f"{model} drains for nobody"
        if model.want is not None:
            assert model.state in (State.DISK, State.HOST), f"{model} wanted though it is there"
            assert not model.retiring, f"{model} wanted though it is told to go"
        elif model.state in (State.DISK, State.HOST) and not model.retiring:
            assert not model.queued, f"{model} has waiters and nobody wants it"


_Handler = Callable[[Any, Any, float], None]

_HANDLERS: Mapping[type, _Handler] = {
    Acquire: Residency._on_acquire,
    Release: Residency._on_release,
    GiveUp: Residency._on_give_up,
    Preflighted: Residency._on_preflighted,
    PreflightFailed: Residency._on_preflight_failed,
    Loaded: Residency._on_loaded,
    LoadFailed: Residency._on_load_failed,
    LoadCancelled: Residency._on_load_cancelled,
    LoadStuck: Residency._on_load_stuck,
    Demoted: Residency._on_demoted,
    DemoteFailed: Residency._on_demote_failed,
    Promoted: Residency._on_promoted,
    PromoteFailed: Residency._on_promote_failed,
    Unloaded: Residency._on_unloaded,
    Reclaimed: Residency._on_reclaimed,
    Died: Residency._on_died,
    Observed: Residency._on_observed,
    Pin: Residency._on_pin,
    Retire: Residency._on_retire,
    Reconfigure: Residency._on_reconfigure,
    Configure: Residency._on_configure,
    ClearCooldown: Residency._on_clear_cooldown,
    Hint: Residency._on_hint,
    Tick: Residency._on_tick,
    Shutdown: Residency._on_shutdown,
}
