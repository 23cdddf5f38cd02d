"""Events that come from callers: asking, releasing, giving up. The hot path: a ready model is granted in one step."""

from __future__ import annotations

from taskrouter.residency import messages
from taskrouter.residency.actions import Grant, Refusal
from taskrouter.residency.books import State
from taskrouter.residency.events import Acquire, GiveUp, Reason, Release
from taskrouter.residency.impossible import blocked_for_ever
from taskrouter.residency.records import ALPHA, Model
from taskrouter.residency.scheduling import Scheduling
from taskrouter.residency.waiting import Ticket


class Requests(Scheduling):
    """Acquire, Release, GiveUp."""

    def _on_acquire(self, event: Acquire, now: float) -> None:
        model = self._models.get(event.key)
        if (
            model is not None
            and model.state is State.READY
            and (event.claim or (not model.queued and (model.slots is None or len(model.leases) < model.slots)))
        ):
            # _lease, written out: this is the path of every call to a resident model.
            self._granted[event.ticket] = model
            if event.claim:
                model.claims[event.ticket] = now
                model.last_claim = now
            else:
                model.leases[event.ticket] = now
                model.uses.append(now)
                model.weighed = False
            model.last_used = now
            model.used = True
            self._resident.move_to_end(event.key)
            self._out.append(Grant(event.key, model.generation, (event.ticket,)))
            return
        if model is None:
            text = f"There is no model {event.key}. Reload the configuration."
            self._refuse((event.ticket,), Refusal(Reason.UNKNOWN_MODEL, event.key, text))
            return
        if model.removed:
            self._refuse((event.ticket,), messages.removed(model))
            return
        joins = model.want is not None or model.state in (State.LOADING, State.PROMOTING)
        if not joins or event.holding or not event.deadline > now or self._closed:
            # One more behind others that wait for the same model already is no new question.
            refusal = self._refused_at_once(model, event, now)
            if refusal is not None:
                self._refuse((event.ticket,), refusal)
                return
        self._enqueue(model, event, now)

    def _refused_at_once(self, model: Model, event: Acquire, now: float) -> Refusal | None:
        if self._closed:
            return messages.shutdown(model)
        if model.state is State.COOLDOWN:
            if model.cooldown_until is not None and model.cooldown_until > now:
                return messages.cooldown(model, now)
            self._end_cooldown(model)
        if model.state is State.STUCK:
            return messages.stuck(model, model)
        if not event.deadline > now:  # nor is NaN: nobody could be woken for it
            return messages.deadline(self, model, now - (now if event.arrival is None else event.arrival), now)
        if model.state in (State.DISK, State.UNLOADING):
            culprit = self._groups.get(model.spec.traits.serial_group or "")
            if culprit is not None and culprit.state is State.STUCK:
                return messages.stuck(model, culprit)
        if model.state in (State.DISK, State.UNLOADING, State.DEMOTING, State.HOST):
            verdict = blocked_for_ever(self._plans, model, event.holding, count_models=self._counts_models)
            if verdict is not None:
                return messages.no_room(self, model, *verdict)
        return None

    def _enqueue(self, model: Model, event: Acquire, now: float) -> None:
        self._seq += 1
        arrival = now if event.arrival is None else event.arrival
        static = float("inf") if event.background else arrival - self.settings.ageing_s * event.priority
        ticket = Ticket(event, model, arrival, (static, arrival, self._seq))
        want = model.want
        hopeless = want is not None and model.latest_deadline() < now + model.comes_s
        self._tickets[event.ticket] = ticket
        leads = model.enqueue(ticket)
        self._timer(event.deadline, ticket)
        if not event.background:
            model.background = False
        if want is None:
            self._want(model, now)
        else:
            want.restoring = want.ahead = False
            # One more behind the first changes nobody's plan, unless it is the only one that can still be served.
            self._dirty = self._dirty or hopeless or leads

    def _on_release(self, event: Release, now: float) -> None:
        model = self._granted.pop(event.ticket, None)
        if model is None:
            if event.ticket in self._tickets:
                self._on_give_up(GiveUp(event.ticket), now)
            return
        since = model.leases.pop(event.ticket, None)
        if since is None:
            del model.claims[event.ticket]
        else:
            model.lease_s += ALPHA * (now - since - model.lease_s)
            model.failures = 0
            model.last_used = now
            self._resident.move_to_end(model.spec.key)
        if model.queued and model.state is State.READY:
            self._grant_waiting(model, now)
        if not model.leases:
            if since is not None:
                model.idle_since = now
            if model.spec.keep_alive_s is not None and not model.keep_alive_armed:
                self._arm_keep_alive(model, now + model.spec.keep_alive_s)
            if self._wants or self._retiring or self._restore or self._short or self._hints.ranks:
                self._dirty = True

    def _on_give_up(self, event: GiveUp, now: float) -> None:
        ticket = self._tickets.pop(event.ticket, None)
        if ticket is None:
            if event.ticket in self._granted:
                self._on_release(Release(event.ticket), now)
            return
        model = ticket.model
        model.dequeue(ticket)
        if model.queued:
            if ticket.holding or not model.foreground:
                self._dirty = True
            return
        if model.want is not None:
            self._drop(model.want, now)
        elif (
            model.state is State.LOADING
            and model.spec.traits.cancellable
            and not model.cancelling
            and not model.background
        ):
            self._cancel_load(model)
            self._dirty = True

    def _end_leases(self, model: Model) -> None:
        """The model is gone: its leases and claims mean nothing any more, and late releases are ignored."""
        for ticket in (*model.leases, *model.claims):
            del self._granted[ticket]
        model.leases.clear()
        model.claims.clear()
