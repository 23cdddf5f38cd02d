"""Events that come from backends: how preflights, loads and unloads ended, and models that died."""

from __future__ import annotations

from collections.abc import Mapping

from taskrouter.residency import messages
from taskrouter.residency.actions import Kill, Refusal, Why
from taskrouter.residency.books import State
from taskrouter.residency.events import (
    Died,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadStuck,
    Preflighted,
    PreflightFailed,
    Reason,
    Reclaimed,
    Unloaded,
)
from taskrouter.residency.records import Model
from taskrouter.residency.requests import Requests
from taskrouter.residency.waiting import Phase, Want
from taskrouter.types import DeviceId, Footprint, ModelKey


class Lifecycle(Requests):
    """What ended, and what that means for the books and for those who wait."""

    def _living(self, key: ModelKey, generation: int, *states: State) -> Model | None:
        """The model this event is about, unless the event is of an earlier life or the model is elsewhere by now."""
        model = self._models.get(key)
        if model is None or model.generation != generation or model.state not in states:
            return None
        return model

    # --- before loading -----------------------------------------------------------------------------------------------

    def _on_preflighted(self, event: Preflighted, now: float) -> None:
        model = self._living(event.key, event.generation, State.DISK)
        if model is None or not model.preflighting:
            return
        model.preflighting = False
        if event.need is not None:
            self._learn(model, event.need)
        if event.load_s is not None and not model.load_measured:
            model.measured_load(event.load_s)
        model.found_slots = event.slots
        model.count_slots()
        if model.want is not None and model.want.phase is Phase.PREFLIGHT:
            model.want.phase = Phase.BLOCKED
            self._dirty = True

    def _learn(self, model: Model, need: Footprint) -> None:
        """A better footprint: never below what a person declared, nor below what an out-of-memory taught."""
        device_bytes = max(need.device_bytes, 0)
        if model.spec.declared:
            device_bytes = max(device_bytes, model.spec.need.device_bytes)
        ram_bytes = max(need.ram_bytes, model.spec.need.ram_bytes)
        if model.oom_grown:
            device_bytes = max(device_bytes, model.need.device_bytes)
        model.need = Footprint(device_bytes, ram_bytes)
        model.learned = True
        model.expect_load()

    def _on_preflight_failed(self, event: PreflightFailed, now: float) -> None:
        model = self._living(event.key, event.generation, State.DISK)
        if model is None or not model.preflighting:
            return
        model.preflighting = False
        want = model.want
        self._hints.bar(model.key)
        if want is not None and want.phase is Phase.PREFLIGHT:
            refusal = Refusal(Reason.PREFLIGHT, model.key, str(event.error), error=event.error)
            self._refuse_waiting(model, refusal)
            self._drop(want, now)

    # --- the end of a load --------------------------------------------------------------------------------------------

    def _on_loaded(self, event: Loaded, now: float) -> None:
        model = self._living(event.key, event.generation, State.LOADING, State.STUCK)
        if model is None:
            return
        model.measured_load(now - model.load_started)
        self._leave_group(model)
        del self._loading[model.key]
        # A cancelled load that ended well all the same is as good as any other, unless somebody draws on its bytes.
        model.cancelling = False
        self._freeing.pop(model.key, None)
        if event.measured is not None:
            model.oom_grown = False
            self._learn(model, event.measured)
            model.measured = True
            self._recharge(model)
        model.state = State.READY
        self._moved_in(model, now)

    def _moved_in(self, model: Model, now: float) -> None:
        """It is ready: serve who waits, unless it was told to go meanwhile."""
        model.loaded_at = model.last_used = model.idle_since = now
        model.made_room = []
        model.expect_back()
        self._resident[model.key] = model
        self._dirty = True
        for want in list(model.draws):
            if not want.model.queued:
                self._drop(want, now)  # Whoever it was cancelled for has been refused meanwhile: it had better stay.
            elif self._stays_short(want, model):
                self._back_to_blocked(want, now)  # Nor does it go for who could not start all the same.
        if self._closed or (model.retiring and not model.queued):
            self._unload(model, Why(self._why_retired(model)), now)
            return
        if model.draws:
            # Cancelled for its bytes, and the load ended well all the same: unload it now.
            self._unload(model, Why(Reason.ROOM, next(iter(model.draws)).model.key), now)
            return
        model.retiring = False
        if model.spec.keep_alive_s is not None:
            self._arm_keep_alive(model, now + model.spec.keep_alive_s)
        self._grant_waiting(model, now)

    def _stays_short(self, want: Want, model: Model) -> bool:
        """Whether others took so much meanwhile that this want can't start when all it waits for has gone."""
        going = {model, *want.sources, *self._freeing.values()}
        return any(
            self._accounts[device].free + sum(other.unowned(device) for other in going) < 0 for device in want.need
        )

    def _recharge(self, model: Model) -> None:
        """Replace what was charged by what was measured (or declared, where that is more)."""
        charges = model.charges_on(model.devices, count_models=self._counts_models)
        for device in {*charges, *model.charges}:
            self._accounts[device].charged += charges.get(device, 0) - model.charges.get(device, 0)
        model.charges = charges
        # A cancelled load that ended well may hold less than was drawn on it: the rest is owed from elsewhere.
        for device in charges:
            over = -model.unowned(device)
            for draw in model.draws.values():
                cut = min(max(over, 0), draw.get(device, 0))
                if cut:
                    draw[device] -= cut
                    self._accounts[device].promised += cut
                    over -= cut

    def _on_load_failed(self, event: LoadFailed, now: float) -> None:
        model = self._living(event.key, event.generation, State.LOADING, State.STUCK)
        if model is None:
            return
        if model.cancelling:
            # It was told to stop; in what way it did is no failure of the model.
            self._on_load_cancelled(LoadCancelled(event.key, event.generation, event.residue), now)
            return
        made_room, retired = model.made_room, model.retiring
        self._load_over(model, event.residue, now)
        if event.out_of_memory and not model.oom_grown and not retired and model.queued and self._grow(model):
            self._want(model, now)
            assert model.want is not None
            model.want.evicted = made_room
            return
        model.oom_grown = False
        reason = Reason.OUT_OF_MEMORY if event.out_of_memory else Reason.LOAD_FAILED
        self._refuse_waiting(model, Refusal(reason, model.key, str(event.error), error=event.error))
        self._failed(model, now)
        self._remember(made_room)

    def _grow(self, model: Model) -> bool:
        """After out of memory: more room, once; never more than the device has."""
        capacity = max(min(self._accounts[device].capacity for device in p) for p in model.spec.placements)
        grown = model.grown(capacity)
        if grown.device_bytes <= model.need.device_bytes:
            return False
        model.need = grown
        model.oom_grown = True
        return True

    def _on_load_cancelled(self, event: LoadCancelled, now: float) -> None:
        model = self._living(event.key, event.generation, State.LOADING, State.STUCK)
        if model is None:
            return
        made_room, drawn = model.made_room, bool(model.draws)
        self._load_over(model, event.residue, now)
        self._remember(made_room)
        if model.queued and drawn and all(ticket.background for ticket in model.waiting()):
            self._refuse_waiting(model, messages.no_free_room(self, model))
        if model.queued:
            self._want(model, now)

    def _load_over(self, model: Model, residue: Mapping[DeviceId, int], now: float) -> None:
        """A load ended without a model: its bytes are free (residue apart), its group too."""
        self._leave_group(model)
        del self._loading[model.key]
        self._freeing.pop(model.key, None)
        model.cancelling = False
        model.retiring = False
        model.made_room = []
        self._freed(model, residue, now)

    def _failed(self, model: Model, now: float) -> None:
        """Count a failure; repeated failure refuses at once for a while."""
        model.failures += 1
        settings = self.settings
        if model.failures < settings.failures_to_cooldown:
            return
        doublings = min(model.failures - settings.failures_to_cooldown, 30)
        model.cooldown_until = now + min(settings.cooldown_s * 2.0**doublings, settings.cooldown_cap_s)
        self._timer(model.cooldown_until, model)
        if model.state is State.DISK:
            self._cool_down(model, now)

    def _cool_down(self, model: Model, now: float) -> None:
        model.state = State.COOLDOWN
        self._refuse_waiting(model, messages.cooldown(model, now))

    def _on_load_stuck(self, event: LoadStuck, now: float) -> None:
        model = self._living(event.key, event.generation, State.LOADING)
        if model is None:
            return
        model.state = State.STUCK
        self._plans.some_stay = True
        model.cancelling = False
        self._freeing.pop(model.key, None)
        self._refuse_waiting(model, messages.stuck(model, model))
        for want in list(model.draws):
            self._back_to_blocked(want, now)
        group = model.spec.traits.serial_group
        if group is not None:
            for want in list(self._wants.values()):
                if want.model.spec.traits.serial_group == group and want.model.state is not State.HOST:
                    self._refuse_waiting(want.model, messages.stuck(want.model, model))
                    self._drop(want, now)
        self._dirty = True

    # --- the end of a life --------------------------------------------------------------------------------------------

    def _on_unloaded(self, event: Unloaded, now: float) -> None:
        model = self._living(event.key, event.generation, State.UNLOADING)
        if model is None:
            return
        model.measured_unload(now - model.unload_started)
        del self._freeing[model.key]
        made_room, model.made_room = model.made_room, []
        self._freed(model, event.residue, now)
        if model.cooldown_until is not None and model.cooldown_until > now:
            self._cool_down(model, now)
        elif model.queued:
            self._want(model, now)
            assert model.want is not None, "it is on disk, and nothing tells it to go"
            model.want.evicted = made_room  # of a wake that failed
            return
        self._remember(made_room)

    def _freed(self, model: Model, residue: Mapping[DeviceId, int], now: float) -> None:
        """The bytes are free: what was drawn on them is promised from free now, what is missing is residue."""
        for device, amount in model.charges.items():
            self._accounts[device].charged -= amount
        for device, amount in residue.items():
            if amount > 0:
                self._accounts[device].residue += amount
                model.residue[device] = model.residue.get(device, 0) + amount
        owners, model.draws = model.draws, {}
        for want, draw in owners.items():
            for device, amount in draw.items():
                self._accounts[device].promised += amount
            want.sources.discard(model)
        model.charges = {}
        model.configure(model.spec)  # a need that was lowered meanwhile counts now, and how it is to sleep
        self._let_sleep(model)
        model.devices = ()
        model.loaded_at = None
        model.state = State.DISK
        model.expect_back()
        for want in owners:
            if want.model.bed is want:
                self._lie_down(want)
        self._dirty = True

    def _on_reclaimed(self, event: Reclaimed, now: float) -> None:
        model = self._models.get(event.key)
        if model is None:
            return
        for device, amount in model.residue.items():
            self._accounts[device].residue -= amount
        model.residue = {device: amount for device, amount in event.residue.items() if amount > 0}
        for device, amount in model.residue.items():
            self._accounts[device].residue += amount
        self._dirty = True

    def _on_died(self, event: Died, now: float) -> None:
        model = self._living(event.key, event.generation, State.READY, State.DRAINING)
        if model is None:
            return
        self._end_leases(model)
        self._begin_freeing(model, now)
        self._failed(model, now)
        self._out.append(Kill(model.key, model.generation, dict(model.charges)))
        self._dirty = True
