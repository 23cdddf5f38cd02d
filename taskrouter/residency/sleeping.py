"""Putting models to sleep instead of unloading them, and what each leaves behind: the HOST tier.

A model that is taken off its devices sleeps where its backend can do that, where waking is quicker than loading, and
where there is room for it in host RAM: free, or held by models that sleep already and are worth less. Its *bed* is a
want like any other: bytes of RAM are promised to it when it is decided, drawn from who is forgotten for it, and charged
when its ``Demote`` starts. While it goes to sleep its device bytes are on their way to being free, and drawn like those
of an unload.
"""

from __future__ import annotations

from taskrouter.residency.actions import Demote, Unload, Why
from taskrouter.residency.books import HOST_BUDGET, State
from taskrouter.residency.commits import Commits
from taskrouter.residency.events import Reason
from taskrouter.residency.policy import drop_unneeded, take, worth_at
from taskrouter.residency.records import Model
from taskrouter.residency.waiting import Phase, Want
from taskrouter.types import CPU


class Sleeping(Commits):
    """Beds."""

    def _put_away(self, model: Model, why: Why, now: float) -> None:
        forgotten = self._room_to_sleep(model, now)
        if forgotten is None:
            self._unload(model, why, now)
            return
        bed = model.bed = Want(model)
        bed.phase = Phase.EVICTING
        bed.need = {CPU: model.sleep_bytes, HOST_BUDGET: model.sleep_bytes}
        bed.why = why
        self._begin_freeing(model, now, why)
        model.state = State.DEMOTING
        short = {device: amount - max(self._accounts[device].free, 0) for device, amount in bed.need.items()}
        for other in forgotten:
            for device in bed.need:
                part = min(short[device], other.charges.get(device, 0))
                if part > 0:
                    self._draw(bed, other, device, part)
                    short[device] -= part
        self._promise(bed)
        for other in forgotten:
            self._unload(other, Why(Reason.HOST_ROOM, model.key), now)
        self._lie_down(bed)

    def _room_to_sleep(self, model: Model, now: float) -> list[Model] | None:
        """Who is to be forgotten so that this model can sleep; ``None`` where it had better be unloaded."""
        if not model.may_sleep or model.state is State.HOST or model.retiring or self._closed:
            return None
        if any(model.unowned(device) < amount for device, amount in model.left.items()):
            return None  # What it left there when it slept last is promised to who it makes room for.
        missing = {}
        for device in (CPU, HOST_BUDGET):
            account = self._accounts[device]
            if model.sleep_bytes > account.capacity:
                return None
            if model.sleep_bytes > account.free:
                missing[device] = model.sleep_bytes - account.free
        if not missing:
            return []
        lack = dict(missing)
        sleepers = [other for other in self._plans.sleepers() if not self._plans.frozen(other)]
        if self._plans.by_worth:
            sleepers.sort(key=lambda other: worth_at(other, now))
        chosen = take(sleepers, missing)
        if missing:
            return None
        chosen = drop_unneeded(chosen, lack)
        if self._plans.by_worth:
            saved = worth_at(model, now) * (model.load_s - model.wake_s) / model.back_s
            if sum(worth_at(other, now) for other in chosen) >= saved:
                return None
        return chosen

    def _lie_down(self, bed: Want) -> None:
        """Begin to sleep, once all that is forgotten for it was seen free; unload instead where the RAM is gone."""
        if bed.sources:
            return
        model, why = bed.model, bed.why
        assert why is not None, "a bed says for whom it makes room"
        if any(self._accounts[device].free < 0 for device in bed.need):
            self._strip(model)
            model.retiring = False
            model.state = State.UNLOADING
            self._out.append(Unload(model.key, model.generation, dict(model.charges), why))
            return
        self._withdraw(bed)
        model.bed = None
        model.sleep_charges = bed.need
        for device, amount in bed.need.items():
            self._accounts[device].charged += amount
        self._out.append(Demote(model.key, model.generation, dict(model.charges), model.sleep_bytes, why))

    def _strip(self, model: Model) -> None:
        """Give back the RAM a model was to sleep in; who was forgotten for it goes on unloading, owned by nobody."""
        bed, model.bed = model.bed, None
        if bed is not None:
            self._suspend(bed)
            self._clear_plan(bed)
        for device, amount in model.sleep_charges.items():
            self._accounts[device].charged -= amount
        model.sleep_charges = {}
