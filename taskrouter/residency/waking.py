"""Events of models that sleep and wake: how demotions and promotions ended."""

from __future__ import annotations

from taskrouter.residency.actions import Kill, Unload, Why
from taskrouter.residency.books import HOST_BUDGET, State
from taskrouter.residency.events import Demoted, DemoteFailed, Died, Promoted, PromoteFailed, Reason
from taskrouter.residency.lifecycle import Lifecycle
from taskrouter.types import CPU, Footprint


class Waking(Lifecycle):
    """What became of those that went to sleep, and of those that woke."""

    def _on_demoted(self, event: Demoted, now: float) -> None:
        model = self._living(event.key, event.generation, State.DEMOTING)
        if model is None or model.bed is not None:
            return
        model.measured_unload(now - model.unload_started)
        devices, retiring = model.devices, model.retiring
        held = Footprint(
            max(amount for device, amount in model.charges.items() if device in devices), model.charges.get(CPU, 0)
        )
        del self._freeing[model.key]
        self._strip(model)
        self._freed(model, {}, now)
        # It will need as much again, whatever its configuration says by then.
        model.need = Footprint(
            max(model.need.device_bytes, held.device_bytes), max(model.need.ram_bytes, held.ram_bytes)
        )
        if event.ram_bytes > 0:
            model.sleep_bytes, model.sleep_measured = event.ram_bytes, True
        # What stayed on its devices is its own as long as it sleeps.
        left = {device: amount for device, amount in event.residue.items() if amount > 0 and device in self._accounts}
        model.left = left
        model.charges = {**left, CPU: left.get(CPU, 0) + model.sleep_bytes, HOST_BUDGET: model.sleep_bytes}
        for device, amount in model.charges.items():
            self._accounts[device].charged += amount
        model.devices = devices
        model.state = State.HOST
        self._asleep[model.key] = model
        model.expect_back()
        if model.spec.keep_alive_s is not None:
            self._arm_keep_alive(model, max(model.idle_since + model.spec.keep_alive_s, now))
        if retiring or self._closed:
            self._unload(model, Why(self._why_retired(model)), now)
        elif model.queued:
            self._want(model, now)

    def _on_demote_failed(self, event: DemoteFailed, now: float) -> None:
        model = self._living(event.key, event.generation, State.DEMOTING)
        if model is None or model.bed is not None:
            return
        model.sleep_failures += 1
        model.expect_back()
        self._strip(model)
        model.retiring = False
        model.state = State.UNLOADING
        self._out.append(Unload(model.key, model.generation, dict(model.charges), Why(Reason.SLEEP_FAILED)))
        self._dirty = True

    def _on_promoted(self, event: Promoted, now: float) -> None:
        model = self._living(event.key, event.generation, State.PROMOTING)
        if model is None:
            return
        del self._loading[model.key]
        model.state = State.READY
        model.sleep_failures = 0
        model.measured_wake(now - model.load_started)
        self._recharge(model)
        self._moved_in(model, now)

    def _on_promote_failed(self, event: PromoteFailed, now: float) -> None:
        model = self._living(event.key, event.generation, State.PROMOTING)
        if model is None:
            return
        del self._loading[model.key]
        model.sleep_failures += 1
        self._unload(model, Why(Reason.SLEEP_FAILED), now)  # whoever made room for it made it for its load, too
        model.expect_back()
        self._dirty = True

    def _on_died(self, event: Died, now: float) -> None:
        model = self._living(event.key, event.generation, State.HOST, State.DEMOTING)
        if model is None:
            super()._on_died(event, now)
            return
        if model.state is State.DEMOTING:
            if model.bed is None:
                return  # its ``Demote`` ends in an event of its own
            self._strip(model)
        elif model.want is not None:
            self._drop(model.want, now)
        self._begin_freeing(model, now)
        self._failed(model, now)
        self._out.append(Kill(model.key, model.generation, dict(model.charges)))
        self._dirty = True
