"""A changed configuration while everything runs: what it no longer names drains and goes, all else goes on.

A model is who it was as long as its key is the same, whatever task it belongs to now. One that is removed is refused to
whoever asks, keeps its leases to their end and its residue until it was seen free; named again before it has gone, it
stays. Its record is dropped by the next ``Configure`` that doesn't name it either: by then nothing of it is under way.
"""

from __future__ import annotations

from collections.abc import Callable

from taskrouter.residency import messages
from taskrouter.residency.accounts import Account
from taskrouter.residency.books import HOST_BUDGET, MODEL_SLOTS, Settings, State
from taskrouter.residency.events import Configure
from taskrouter.residency.operating import Operating
from taskrouter.residency.records import Model
from taskrouter.residency.waiting import Phase, Want
from taskrouter.types import DeviceId, DeviceSpec, ModelKey


class Configuring(Operating):
    """Configure."""

    def _on_configure(self, event: Configure, now: float) -> None:
        self._remove({spec.key for spec in event.specs}, now)
        for device in event.devices:
            self._budget(device)
        self._retune(event.settings, now)
        self._replan(lambda want: any(n > self._accounts[device].lasting for device, n in want.need.items()), now)
        for spec in event.specs:
            known = self._models.get(spec.key)
            if known is not None and known.removed:
                self._take_back(known)
            self._reconfigure(spec, now)
        self._plans.priorities_differ = any(model.spec.priority for model in self._models.values())
        self._dirty = True

    # --- models -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _is_gone(model: Model) -> bool:
        """Whether it was removed, and nothing of it is left or under way."""
        return (
            model.removed
            and model.state in (State.DISK, State.COOLDOWN)
            and not model.residue
            and not model.preflighting
        )

    def _remove(self, named: set[ModelKey], now: float) -> None:
        """Let go of all others. They are refused to everybody first: plans that are dropped grant who they held up."""
        leave = [model for key, model in self._models.items() if key not in named and not model.removed]
        for model in [model for key, model in self._models.items() if key not in named and self._is_gone(model)]:
            del self._models[model.key]
        for model in leave:
            model.removed = True
            self._restore.pop(model.key, None)
            self._refuse_waiting(model, messages.removed(model))
        for model in leave:
            self._retire(model, now)

    def _take_back(self, model: Model) -> None:
        """It is named again: unless it is being freed already, it stays."""
        model.removed = False
        if model.retiring and not model.cancelling:
            model.retiring = False
            self._retiring.pop(model.key, None)
            if model.state is State.DRAINING and model.drain_for is None:
                model.state = State.READY

    # --- budgets and settings -----------------------------------------------------------------------------------------

    def _budget(self, spec: DeviceSpec) -> None:
        account = self._accounts.get(spec.id)
        if account is None:
            self._accounts[spec.id] = Account(spec)
        else:
            account.configure(spec)

    def _retune(self, settings: Settings, now: float) -> None:
        self.settings = settings
        self._plans.configure(settings)
        if settings.host_budget or HOST_BUDGET in self._accounts:  # of 0 bytes: who sleeps is unloaded
            self._budget(_of(HOST_BUDGET, settings.host_budget))
        if bool(settings.max_models) != self._counts_models:
            self._count_models(settings.max_models, now)
        elif settings.max_models:
            self._budget(_of(MODEL_SLOTS, settings.max_models))

    def _count_models(self, most: int, now: float) -> None:
        """Begin to count models, or cease to: no plan was made for that, so all that are committed are made anew."""
        self._replan(lambda want: True, now)
        if most:
            self._budget(_of(MODEL_SLOTS, most))
            for model in self._models.values():
                if model.charges and model.state is not State.HOST:
                    model.charges[MODEL_SLOTS] = 1
                    self._accounts[MODEL_SLOTS].charged += 1
        else:
            del self._accounts[MODEL_SLOTS]
            for model in self._models.values():
                model.charges.pop(MODEL_SLOTS, None)

    def _replan(self, affected: Callable[[Want], bool], now: float) -> None:
        """Take plans back that were committed for another configuration."""
        for want in list(self._wants.values()):
            if want.phase in (Phase.DRAINING, Phase.EVICTING) and affected(want):
                self._back_to_blocked(want, now)


def _of(device: DeviceId, most: int) -> DeviceSpec:
    return DeviceSpec(device, total=most, budget=most)
