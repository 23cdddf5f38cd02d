"""The core's record of a model: what it is, what it holds, who waits for it, and what was measured of it."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from math import inf

from taskrouter.residency.books import MODEL_SLOTS, State
from taskrouter.residency.waiting import Ticket, Want
from taskrouter.types import CPU, GIB, DeviceId, Footprint, ModelKey, ModelSpec, TicketId

LEASE_PRIOR_S = 1.0
WAKE_PRIOR_S, COPY_BYTES_PER_S = 0.2, 4 * GIB
"""A wake that was never measured: some overhead, and a copy over the bus."""
MOST_SLEEP_FAILURES = 2
"""After so many failures to sleep or to wake in a row a model isn't put to sleep any more."""
UNLOAD_PRIOR_S = 1.0
READ_BYTES_PER_S = GIB // 2
USES = 8
"""The latest leases of a model whose instants are kept, also while it isn't resident."""
LEAST_S = 0.001
"""A load that was measured to take no time at all still takes some."""
ALPHA = 0.2
"""Weight of the newest sample in the moving averages of lease, load and unload seconds."""


def wake_prior_s(device_bytes: int, *, keeps_weights: bool) -> float:
    """Seconds of a wake that was never measured: the weights come over the bus, or are read anew."""
    return WAKE_PRIOR_S + device_bytes / (COPY_BYTES_PER_S if keeps_weights else READ_BYTES_PER_S)


class Model:
    """One model's life.

    ``back_s``: the seconds until it could serve again, were it evicted. ``draws`` says which want was promised how many
    of its bytes once they are free. ``weight`` (seconds) and ``since`` (an instant) are what ``policy.worth_at`` needs
    of its latest ``uses`` and ``back_s``, once it was ``weighed``.
    """

    __slots__ = (
        "_latest",
        "_latest_left",
        "_queue",
        "back_s",
        "background",
        "bed",
        "brought_s",
        "can_sleep",
        "cancelling",
        "charges",
        "claims",
        "claims_queued",
        "cooldown_until",
        "devices",
        "drain_for",
        "draws",
        "failures",
        "foreground",
        "found_slots",
        "generation",
        "holders",
        "idle_since",
        "keep_alive_armed",
        "keeps_weights",
        "last_claim",
        "last_used",
        "learned",
        "lease_s",
        "leases",
        "left",
        "load_measured",
        "load_s",
        "load_started",
        "loaded_at",
        "made_room",
        "measured",
        "need",
        "oom_grown",
        "preflighting",
        "queued",
        "removed",
        "residue",
        "retiring",
        "since",
        "sleep_bytes",
        "sleep_charges",
        "sleep_failures",
        "sleep_measured",
        "sleeps",
        "slots",
        "spec",
        "state",
        "unload_s",
        "unload_started",
        "used",
        "uses",
        "wake_measured",
        "wake_s",
        "want",
        "weighed",
        "weight",
    )

    def __init__(self, spec: ModelSpec) -> None:
        self.state = State.DISK
        self.generation = 0
        self.devices: tuple[DeviceId, ...] = ()
        self.charges: dict[DeviceId, int] = {}
        self.residue: dict[DeviceId, int] = {}
        self.draws: dict[Want, dict[DeviceId, int]] = {}
        self.leases: dict[TicketId, float] = {}
        self.claims: dict[TicketId, float] = {}
        self.last_claim = -inf
        self.want: Want | None = None
        self.drain_for: Want | None = None
        self.preflighting = False
        self.cancelling = False
        self.retiring = False
        self.removed = False
        self.background = False
        self.used = False
        self.uses: deque[float] = deque(maxlen=USES)
        self.weight = 0.0
        self.since = -inf
        self.weighed = False
        self.oom_grown = False
        self.learned = False
        self.keep_alive_armed = False
        self.last_used: float | None = None
        self.idle_since = 0.0
        self.loaded_at: float | None = None
        self.load_started = 0.0
        self.unload_started = 0.0
        self.lease_s = LEASE_PRIOR_S
        self.unload_s = UNLOAD_PRIOR_S
        self.load_s = 0.0
        self.back_s = LEAST_S
        self.load_measured = False
        self.brought_s = 0.0
        self.can_sleep = spec.traits.can_sleep
        self.keeps_weights = spec.traits.keeps_weights
        self.sleeps = False
        self.sleep_bytes = 0
        self.sleep_measured = False
        self.sleep_charges: dict[DeviceId, int] = {}
        self.sleep_failures = 0
        self.left: dict[DeviceId, int] = {}
        self.bed: Want | None = None
        self.wake_s = WAKE_PRIOR_S
        self.wake_measured = False
        self.measured = False
        self.failures = 0
        self.cooldown_until: float | None = None
        self.queued = 0
        self.foreground = 0
        self.holders = 0
        self.claims_queued = 0
        self.made_room: list[Model] = []
        self._queue: list[tuple[tuple[float, float, int], Ticket]] = []
        self._latest = -inf
        self._latest_left = False
        self.need = spec.need
        self.found_slots: int | None = None
        self.configure(spec)

    def configure(self, spec: ModelSpec) -> None:
        """Take over what isn't part of the model's identity.

        How it sleeps was decided when it was started: one that is loaded may only be told not to any more.
        """
        self.spec = spec
        self.can_sleep = spec.traits.can_sleep and (self.can_sleep or not self.charges)
        if not self.charges and self.keeps_weights != spec.traits.keeps_weights:
            self.keeps_weights = spec.traits.keeps_weights
            self.sleep_measured = self.wake_measured = False
        self.count_slots()
        if not (self.learned or self.oom_grown or self.charges):
            self.need = spec.need
        elif spec.declared:
            # What a person says is a floor at once; what was said before, and is less now, until it is loaded anew.
            self.need = Footprint(
                max(self.need.device_bytes, spec.need.device_bytes), max(self.need.ram_bytes, spec.need.ram_bytes)
            )
        self.expect_load()

    def count_slots(self) -> None:
        """Operations it works on at a time, ``None``: any number. The file's word, else what was found, else traits."""
        known = (self.spec.slots, self.found_slots, self.spec.traits.slots)
        self.slots = next((slots for slots in known if slots is not None), None)

    @property
    def key(self) -> ModelKey:
        return self.spec.key

    def __repr__(self) -> str:
        return f"<Model {self.spec.label} {self.state.value} {len(self.leases)} leases, {self.queued} waiting>"

    # --- the queue ----------------------------------------------------------------------------------------------------

    def enqueue(self, ticket: Ticket) -> bool:
        """Let a ticket wait; answers whether it may be the first to be served."""
        heappush(self._queue, (ticket.order, ticket))
        if not ticket.background:
            self._latest = max(self._latest, ticket.deadline) if self.foreground else ticket.deadline
            self.foreground += 1
        elif not self.foreground:
            self._latest = max(self._latest, ticket.deadline)
        self.queued += 1
        self.holders += bool(ticket.holding)
        self.claims_queued += ticket.claim
        head = self._queue[0][1]
        return head is ticket or not head.waiting

    def dequeue(self, ticket: Ticket) -> None:
        """Forget a waiting ticket; its heap entries are dropped when they come up."""
        ticket.waiting = False
        self.queued -= 1
        self.foreground -= not ticket.background
        if ticket.deadline >= self._latest:
            self._latest_left = True
        self.holders -= bool(ticket.holding)
        self.claims_queued -= ticket.claim

    def first(self) -> Ticket | None:
        """The ticket to serve next."""
        queue = self._queue
        while queue and not queue[0][1].waiting:
            heappop(queue)
        return queue[0][1] if queue else None

    def latest_deadline(self) -> float:
        """The last instant at which anybody still waits for this model; −inf when nobody does.

        Background tickets count only where no other waits: nothing is drained or evicted for them.
        """
        if self._latest_left:
            self._latest_left = False
            real = self.foreground > 0
            waiting = (ticket for _, ticket in self._queue if ticket.waiting and not (real and ticket.background))
            self._latest = max((ticket.deadline for ticket in waiting), default=-inf)
        return self._latest

    def take_all(self) -> list[Ticket]:
        """Everybody who waits, in order, and they wait no longer."""
        tickets = self.waiting()
        for ticket in tickets:
            ticket.waiting = False
        self._queue = []
        self._latest = -inf
        self._latest_left = False
        self.queued = self.foreground = self.holders = self.claims_queued = 0
        return tickets

    def waiting(self) -> list[Ticket]:
        """Everybody who waits, in the order they will be served."""
        self._queue.sort()  # a sorted list is a heap, too
        return [ticket for _, ticket in self._queue if ticket.waiting]

    # --- bytes --------------------------------------------------------------------------------------------------------

    def charges_on(self, devices: tuple[DeviceId, ...], *, count_models: bool) -> dict[DeviceId, int]:
        """What this model will be charged on these devices, host RAM and the model count included."""
        charges = dict.fromkeys(devices, self.need.device_bytes)
        if self.need.ram_bytes:
            charges[CPU] = charges.get(CPU, 0) + self.need.ram_bytes
        if count_models:
            charges[MODEL_SLOTS] = 1
        return charges

    def missing_on(self, devices: tuple[DeviceId, ...], *, count_models: bool) -> dict[DeviceId, int]:
        """What it needs there beside what it holds already, which is something while it sleeps."""
        charges = self.charges_on(devices, count_models=count_models)
        if self.state is not State.HOST:
            return charges
        return {device: max(amount - self.charges.get(device, 0), 0) for device, amount in charges.items()}

    def unowned(self, device: DeviceId) -> int:
        """Bytes on their way to being free that nobody was promised."""
        held = self.charges.get(device, 0)
        for draw in self.draws.values():
            held -= draw.get(device, 0)
        return held

    # --- time ---------------------------------------------------------------------------------------------------------

    def expect_load(self) -> None:
        """Without a measurement, a load takes the backend's start time and reading the weights at 0.5 GiB/s.

        A sleep takes all its device bytes of RAM, and a wake copies them at 4 GiB/s; who keeps no weights takes what it
        needs of RAM anyway, and reads them again.
        """
        if not self.load_measured:
            self.load_s = self.spec.traits.start_s + self.need.device_bytes / READ_BYTES_PER_S
        if not self.wake_measured:
            self.wake_s = wake_prior_s(self.need.device_bytes, keeps_weights=self.keeps_weights)
        if not self.sleep_measured and not self.keeps_weights:
            self.sleep_bytes = self.need.ram_bytes
        elif not self.sleep_measured:
            spanned = max(map(len, self.spec.placements), default=1)
            self.sleep_bytes = max(self.need.device_bytes * spanned, self.need.ram_bytes)
        self.expect_back()

    def measured_load(self, seconds: float) -> None:
        self.load_s = seconds if not self.load_measured else (1 - ALPHA) * self.load_s + ALPHA * seconds
        self.load_measured = True
        self.brought_s = self.load_s
        self.expect_back()

    def measured_wake(self, seconds: float) -> None:
        self.wake_s = seconds if not self.wake_measured else (1 - ALPHA) * self.wake_s + ALPHA * seconds
        self.wake_measured = True
        self.brought_s = self.wake_s
        self.expect_back()

    @property
    def comes_s(self) -> float:
        """Seconds it takes to be ready from where it is: a wake, or a load."""
        return self.wake_s if self.state is State.HOST else self.load_s

    @property
    def may_sleep(self) -> bool:
        """Whether sleeping is possible, and better than being loaded anew."""
        return (
            self.sleeps
            and self.sleep_failures < MOST_SLEEP_FAILURES
            and self.wake_s < self.load_s
            and CPU not in self.devices
        )

    def expect_back(self) -> None:
        """What its eviction would cost: a wake where it may sleep, else a load; asleep, what its RAM saves."""
        seconds = self.load_s
        if self.state is State.HOST:
            seconds = self.load_s - self.wake_s
        elif self.may_sleep:
            seconds = self.wake_s
        self.back_s = max(seconds, LEAST_S)
        self.weighed = False

    def use(self, now: float) -> None:
        """Somebody was given it."""
        self.uses.append(now)
        self.weighed = False

    def weigh(self) -> None:
        """Sum up its uses: seldom, as models are used far more often than compared, and most between two uses."""
        self.weighed = True
        if self.uses:
            self.weight = self.back_s * len(self.uses)
            self.since = self.uses[0] - self.back_s

    def measured_unload(self, seconds: float) -> None:
        self.unload_s += ALPHA * (seconds - self.unload_s)

    def busy_for(self, now: float) -> float:
        """Seconds until the last lease is expected to end: average − age, or the age of one that is overdue.

        Of leases in the order they were granted only the oldest (most overdue) and the newest (most to go) can be last.
        """
        if not self.leases:
            return 0.0
        remaining = 0.0
        for since in (next(iter(self.leases.values())), next(reversed(self.leases.values()))):
            age = now - since
            remaining = max(remaining, self.lease_s - age if age <= self.lease_s else age)
        return remaining

    def grown(self, capacity: int) -> Footprint:
        """The footprint to try after running out of memory: a quarter more, never more than the device has."""
        more = self.need.device_bytes + max(self.need.device_bytes // 4, 1)
        return Footprint(device_bytes=min(more, capacity), ram_bytes=self.need.ram_bytes)
