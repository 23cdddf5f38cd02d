"""What the core remembers, and the moves every event family shares: granting, refusing, timers, plain questions."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from heapq import heappush
from itertools import islice
from math import inf

from taskrouter.residency.accounts import Account
from taskrouter.residency.actions import Action, Grant, Refusal, Refuse
from taskrouter.residency.books import HOST_BUDGET, MODEL_SLOTS, DeviceBooks, Settings, State
from taskrouter.residency.decisions import KEPT, Decided, Rule
from taskrouter.residency.lookahead import Hints
from taskrouter.residency.messages import size
from taskrouter.residency.planning import Planner
from taskrouter.residency.records import Model
from taskrouter.residency.waiting import Ticket, Want
from taskrouter.types import CPU, DeviceId, DeviceSpec, ModelKey, ModelSpec, TicketId


class Store:
    """The core's state. ``Residency``, at the end of this chain of classes, is the one to make."""

    def __init__(
        self,
        devices: Iterable[DeviceSpec],
        models: Iterable[ModelSpec] = (),
        settings: Settings = Settings(),  # noqa: B008  (frozen)
    ) -> None:
        self.settings = settings
        self._accounts: dict[DeviceId, Account] = {spec.id: Account(spec) for spec in devices}
        if settings.max_models:
            count = settings.max_models
            self._accounts[MODEL_SLOTS] = Account(DeviceSpec(MODEL_SLOTS, total=count, budget=count))
        if settings.host_budget:
            most = settings.host_budget
            self._accounts[HOST_BUDGET] = Account(DeviceSpec(HOST_BUDGET, total=most, budget=most))
        self._models: dict[ModelKey, Model] = {}
        self._asleep: dict[ModelKey, Model] = {}
        self._resident: OrderedDict[ModelKey, Model] = OrderedDict()
        self._loading: dict[ModelKey, Model] = {}
        self._freeing: dict[ModelKey, Model] = {}
        self._retiring: dict[ModelKey, Model] = {}
        self._wants: dict[ModelKey, Want] = {}
        self._evicting: dict[ModelKey, Want] = {}
        self._restore: dict[ModelKey, Model] = {}
        self._groups: dict[str, Model] = {}
        self._granted: dict[TicketId, Model] = {}
        self._tickets: dict[TicketId, Ticket] = {}
        self._timers: list[tuple[float, int, Ticket | Model]] = []
        self._seq = 0
        self._now = -inf
        self._woken_at: float | None = None
        self._dirty = False
        self._timers_changed = False
        self._short = False
        self._closed = False
        self._out: list[Action] = []
        self._decided: deque[Decided] = deque(maxlen=KEPT)
        self.decided = 0
        """How many decisions fell so far, those that are forgotten included."""
        self._hints = Hints()
        self._plans = Planner(
            self._accounts, self._resident, self._freeing, self._loading, self._asleep, self._hints, settings
        )
        for spec in models:
            self._add(spec)

    def _add(self, spec: ModelSpec) -> Model:
        model = self._models.get(spec.key)
        if model is None:
            model = self._models[spec.key] = Model(spec)
        else:
            model.configure(spec)
        self._let_sleep(model)
        model.expect_back()
        if spec.priority:
            self._plans.priorities_differ = True
        if spec.pinned:
            self._plans.some_stay = True
        return model

    def _let_sleep(self, model: Model) -> None:
        model.sleeps = model.can_sleep and self.settings.host_budget > 0 and CPU in self._accounts

    @property
    def _counts_models(self) -> bool:
        return MODEL_SLOTS in self._accounts

    # --- timers -------------------------------------------------------------------------------------------------------

    def _timer(self, when: float, what: Ticket | Model) -> None:
        if when < inf:
            self._seq += 1
            heappush(self._timers, (when, self._seq, what))
            if self._woken_at is None or when < self._woken_at:
                self._timers_changed = True

    def _arm_keep_alive(self, model: Model, when: float) -> None:
        if not model.keep_alive_armed:
            model.keep_alive_armed = True
            self._timer(when, model)

    # --- what is remembered -------------------------------------------------------------------------------------------

    def _decide(self, record: Decided) -> None:
        self.decided += 1
        self._decided.append(record)

    def decided_since(self, count: int) -> tuple[Decided, ...]:
        """The decisions that fell after the first ``count``, oldest first; of more than ``KEPT`` only the latest."""
        fresh = min(self.decided - count, len(self._decided))
        return tuple(islice(self._decided, len(self._decided) - fresh, None))

    # --- granting and refusing ----------------------------------------------------------------------------------------

    def _grant_waiting(self, model: Model, now: float) -> None:
        """Grant who waits for a ready model, in order: claims all, leases while there are slots."""
        granted: list[TicketId] = []
        if model.slots is None:
            for waiting in model.take_all():
                del self._tickets[waiting.id]
                self._lease(model, waiting.id, waiting.claim, now)
                granted.append(waiting.id)
        elif model.claims_queued:
            granted += [self._admit(ticket, now) for ticket in model.waiting() if ticket.claim]
        while (ticket := model.first()) is not None and (model.slots is None or len(model.leases) < model.slots):
            granted.append(self._admit(ticket, now))
        if granted:
            self._out.append(Grant(model.key, model.generation, tuple(granted)))

    def _admit(self, ticket: Ticket, now: float) -> TicketId:
        ticket.model.dequeue(ticket)
        del self._tickets[ticket.id]
        self._lease(ticket.model, ticket.id, ticket.claim, now)
        return ticket.id

    def _lease(self, model: Model, id: TicketId, claim: bool, now: float) -> None:
        """Granting is leasing: book it now."""
        self._granted[id] = model
        if claim:
            model.claims[id] = now
            model.last_claim = now
        else:
            model.leases[id] = now
            model.use(now)
        model.last_used = now
        model.used = True
        self._resident.move_to_end(model.key)

    def _refuse(self, tickets: tuple[TicketId, ...], refusal: Refusal) -> None:
        """Refuse tickets that wait no longer, or never did."""
        self._out.append(Refuse(tickets, refusal))
        model = self._models.get(refusal.key)
        label = model.spec.label if model is not None else refusal.key
        self._decide(Decided(self._now, refusal.key, label, Rule.REFUSED, text=refusal.message))

    def _refuse_waiting(self, model: Model, refusal: Refusal, only: Ticket | None = None) -> None:
        """Refuse who waits for a model (all, or only one)."""
        tickets = model.waiting() if only is None else [only]
        for ticket in tickets:
            model.dequeue(ticket)
            del self._tickets[ticket.id]
        if tickets:
            self._refuse(tuple(ticket.id for ticket in tickets), refusal)

    # --- plain questions ----------------------------------------------------------------------------------------------

    def devices(self) -> tuple[DeviceId, ...]:
        return tuple(self._accounts)

    def resident_models(self) -> Iterator[Model]:
        """Models that hold bytes and are not about to lose them, oldest use first. For messages; read only."""
        yield from self._resident.values()
        yield from self._loading.values()
        yield from self._asleep.values()

    def residue_on(self, device: DeviceId) -> str:
        """Who left residue on a device, for people."""
        names = [f"{m.spec.label} {size(m.residue[device])}" for m in self._models.values() if m.residue.get(device)]
        stuck = [f"{m.spec.label} (stuck)" for m in self._loading.values() if m.state is State.STUCK]
        return ", ".join(names + stuck) or "nothing"

    def charged(self) -> tuple[int, ...]:
        """Bytes that models are charged on each of ``devices()``: what ``books`` says, without the rest."""
        return tuple([account.charged for account in self._accounts.values()])

    def books(self, device: DeviceId) -> DeviceBooks:
        return self._accounts[device].view()
