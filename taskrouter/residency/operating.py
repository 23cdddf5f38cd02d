"""Events of the people who run it, and of the clock: readings, pins, retirements, changes, hints, the end."""

from __future__ import annotations

from dataclasses import replace

from taskrouter.residency import messages
from taskrouter.residency.books import State
from taskrouter.residency.events import ClearCooldown, Hint, Observed, Pin, Reconfigure, Retire, Shutdown, Tick
from taskrouter.residency.records import Model
from taskrouter.residency.waking import Waking
from taskrouter.types import ModelSpec


class Operating(Waking):
    """What was seen or wished from outside, by nobody who waits."""

    def _on_observed(self, event: Observed, now: float) -> None:
        for device, reading in event.readings.items():
            account = self._accounts.get(device)
            if account is not None:
                account.read(reading)
        if self._wants or any(account.free < 0 for account in self._accounts.values()):
            self._dirty = True

    def _on_pin(self, event: Pin, now: float) -> None:
        model = self._models.get(event.key)
        if model is not None:
            model.spec = replace(model.spec, pinned=event.pinned)
            self._plans.some_stay = self._plans.some_stay or event.pinned
            self._let_idle(model, now)  # A timer that fired under the pin armed no other.
            self._dirty = True

    def _on_reconfigure(self, event: Reconfigure, now: float) -> None:
        self._reconfigure(event.spec, now)

    def _reconfigure(self, spec: ModelSpec, now: float) -> None:
        known = self._models.get(spec.key)
        if known is not None and known.spec.keep_alive_s != spec.keep_alive_s:
            known.keep_alive_armed = False  # The timer of the old keep-alive may fire far too late.
        model = self._add(spec)
        if model.state in (State.READY, State.DRAINING):
            self._recharge(model)
        if model.state is State.READY:
            self._grant_waiting(model, now)
        self._let_idle(model, now)
        self._dirty = True

    def _let_idle(self, model: Model, now: float) -> None:
        idles = model.state in (State.READY, State.HOST)
        if idles and model.spec.keep_alive_s is not None and not model.spec.pinned:
            self._arm_keep_alive(model, now + model.spec.keep_alive_s)

    def _on_clear_cooldown(self, event: ClearCooldown, now: float) -> None:
        model = self._models.get(event.key)
        if model is not None:
            model.failures = 0
            self._end_cooldown(model)

    def _on_retire(self, event: Retire, now: float) -> None:
        model = self._models.get(event.key)
        if model is not None:
            self._restore.pop(model.key, None)
            self._hints.bar(model.key)  # nor is it loaded ahead at once
            self._refuse_waiting(model, messages.retired(model))
            self._retire(model, now)

    def _retire(self, model: Model, now: float) -> None:
        if model.want is not None:
            self._drop(model.want, now)
        if model.state in (State.LOADING, State.STUCK, State.DEMOTING, State.PROMOTING):
            model.retiring = True
            if model.spec.traits.cancellable and not model.cancelling and model.state is State.LOADING:
                self._cancel_load(model)
        elif model.state in (State.READY, State.DRAINING):
            model.retiring = True
            model.state = State.DRAINING
            self._retiring[model.key] = model
        elif model.state is State.HOST:
            model.retiring = True
            self._retiring[model.key] = model
        self._dirty = True

    def _on_shutdown(self, event: Shutdown, now: float) -> None:
        self._closed = True
        for model in self._models.values():
            self._refuse_waiting(model, messages.shutdown(model))
            self._retire(model, now)

    def _on_hint(self, event: Hint, now: float) -> None:
        if self._hints.take(event, now):
            self._dirty = True

    def _on_tick(self, event: Tick, now: float) -> None:
        self._woken_at = None
        if self._plans.wake <= now:
            self._dirty = True
        else:
            self._expire(now)
            self._timers_changed = True
