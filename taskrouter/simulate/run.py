"""The loop: requests come, leases end, backends take their time; the real core decides, and nothing sleeps.

What happens at one instant happens in this order: leases end, backends are done, the core's timer, requests come. The
clock is the core's; it starts with the warm-up, and the first request comes when that is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any

from taskrouter.errors import UnknownTask
from taskrouter.residency import Residency
from taskrouter.residency.actions import (
    Action,
    CancelLoad,
    Demote,
    Grant,
    Load,
    Preflight,
    Promote,
    Refuse,
    Unload,
    WakeAt,
)
from taskrouter.residency.decisions import Decided
from taskrouter.residency.events import (
    Acquire,
    Demoted,
    Event,
    Hint,
    LoadCancelled,
    Loaded,
    Preflighted,
    Promoted,
    Reason,
    Release,
    Tick,
    Unloaded,
)
from taskrouter.simulate.house import UNLOAD_S, House, durations
from taskrouter.simulate.report import Count, DeviceReport, Meter, Report, task_report
from taskrouter.simulate.traces import Request
from taskrouter.types import DeviceId, ModelKey, TicketId

FREED_BY_ROOM = (Reason.ROOM, Reason.SHRUNK)
"""Reasons a model goes for that count as an eviction; ``keep_alive_s`` that has passed does not."""

ENDS = (Loaded, LoadCancelled, Promoted)
"""What ends something that may have been called off meanwhile."""

NOTHING: tuple[Event | None, float, Count] = None, 0.0, Count()


class Simulation:
    """One rehearsal. ``on_decided`` is told every decision, at seconds from the first request (of the warm-up: from
    its beginning).
    """

    def __init__(self, house: House, *, on_decided: Callable[[float, Decided], None] | None = None) -> None:
        self.house = house
        self.core = Residency(house.devices, house.models, house.settings)
        self._on_decided = on_decided
        self._takes = durations(house)
        self._owners = house.owners()
        self._counts = {name: Count() for name in house.tasks}
        self._meters: dict[DeviceId, Meter] = {}
        self._charged: tuple[int, ...] | None = None
        self._requests: Sequence[Request] = ()
        self._shift = 0.0
        self._wake = inf
        self._ends: list[tuple[float, TicketId]] = []
        self._agenda: list[tuple[float, int, Event]] = []
        self._order = count()
        self._ready_at: dict[ModelKey, float] = {}
        self._under_way: dict[ModelKey, tuple[Event, float, Count]] = {}
        self._answered = 0
        self._late = 0
        self._decided = 0
        self._warming = Count()
        self._warm_left = 0
        self._perform: dict[type, Callable[[float, Any], None]] = {
            Grant: self._grant,
            Refuse: self._refuse,
            Preflight: self._preflight,
            Load: self._load,
            CancelLoad: self._cancel,
            Unload: self._unload,
            Demote: self._demote,
            Promote: self._promote,
            WakeAt: self._wake_at,
        }

    def run(self, requests: Sequence[Request]) -> Report:
        """Rehearse these requests, which are sorted by their arrival. A simulation runs once.

        Raises ``UnknownTask`` for a request that names no task of the house.
        """
        self._requests = requests
        first = requests[0].at if requests else 0.0
        self._shift = self._warm_up() - first
        self._read_meters(first + self._shift)
        asked = self._play(requests)
        end = self._finish(asked)
        return self._report(first, end - self._shift)

    # --- the clock ----------------------------------------------------------------------------------------------------

    def _play(self, requests: Sequence[Request]) -> int:
        """Let all requests come; answers how many the core was asked for. The hot path of a rehearsal."""
        tasks, counts, after, shift = self.house.tasks, self._counts, self.house.after, self._shift
        handle, ends = self.core.handle, self._ends
        asked = 0
        for number, request in enumerate(requests):
            now = request.at + shift
            self._until(now)
            name = request.task
            task = tasks.get(name)
            if task is None:
                raise UnknownTask(f"the trace asks for the task {name!r}, which this house doesn't have")
            key = task.key
            if key is None:
                if task.refused:
                    counts[name].refused[task.refused] += 1
                else:
                    counts[name].external += 1
                continue
            asked += 1
            priority = task.priority if request.priority is None else request.priority
            actions = handle(Acquire(TicketId(number), key, now + task.max_wait_s, priority), now=now)
            if len(actions) == 1 and type(actions[0]) is Grant and actions[0].tickets == (number,):
                # A grant to others is none to this request: it may come first now, and lift a drain they waited behind.
                counts[name].instant += 1
                self._answered += 1
                heappush(ends, (now + request.hold_s, TicketId(number)))
            elif actions:
                self._perform_all(now, actions)
            if name in after:
                for source, keys in after[name]:
                    self._send(now, Hint(f"pipeline {source}", keys, now + self.house.patience_s))
        return asked

    def _until(self, instant: float) -> None:
        """Let everything happen that happens up to this instant."""
        ends, agenda, handle = self._ends, self._agenda, self.core.handle
        while True:
            end = ends[0][0] if ends else inf
            due = agenda[0][0] if agenda else inf
            if end <= due and end <= self._wake:
                if end > instant or end == inf:
                    return
                actions = handle(Release(heappop(ends)[1]), now=end)
                if actions:
                    self._perform_all(end, actions)
            elif due <= self._wake:
                if due > instant:
                    return
                self._done(heappop(agenda)[2], due)
            else:
                if self._wake > instant:
                    return
                now, self._wake = self._wake, inf
                self._send(now, Tick())

    def _finish(self, asked: int) -> float:
        """Let the rest happen: until all are answered and no lease and no load is under way; answers when."""
        now = self._requests[-1].at + self._shift if self._requests else self._shift
        while self._ends or self._agenda or self._answered < asked:
            now = min(self._ends[0][0] if self._ends else inf, self._agenda[0][0] if self._agenda else inf, self._wake)
            assert now < inf, "somebody waits, and nothing is under way"
            self._until(now)
        return now

    def _warm_up(self) -> float:
        """Load what is selected and fits, before anybody asks; answers when that is over."""
        for place, name in enumerate(self.house.warm):
            task = self.house.tasks[name]
            if task.key is not None:
                self._warm_left += 1
                ticket = TicketId(-1 - place)
                event = Acquire(ticket, task.key, task.max_wait_s, task.priority, claim=True, background=True)
                self._send(0.0, event)
        now = 0.0
        while self._agenda or self._warm_left:
            now = min(self._agenda[0][0] if self._agenda else inf, self._wake)
            self._until(now)
        return now

    # --- events and actions -------------------------------------------------------------------------------------------

    def _send(self, now: float, event: Event) -> None:
        self._perform_all(now, self.core.handle(event, now=now))

    def _perform_all(self, now: float, actions: Sequence[Action]) -> None:
        perform = self._perform
        for action in actions:
            perform[type(action)](now, action)
        if self._meters:
            self._read_meters(now)
        if self.core.decided != self._decided:
            if self._on_decided is not None:
                for record in self.core.decided_since(self._decided):
                    self._on_decided(now - self._shift, record)
            self._decided = self.core.decided

    def _later(self, when: float, event: Event) -> Event:
        heappush(self._agenda, (when, next(self._order), event))
        return event

    def _done(self, event: Event, now: float) -> None:
        """A backend is done, unless it was told to stop meanwhile."""
        if isinstance(event, ENDS):
            current, since, whose = self._under_way.get(event.key, NOTHING)
            if current is not event:
                return
            del self._under_way[event.key]
            if not isinstance(event, Promoted):
                whose.load_s += now - since
            if not isinstance(event, LoadCancelled):
                self._ready_at[event.key] = now
        self._send(now, event)

    def _whose(self, key: ModelKey, ticket: TicketId | None) -> Count:
        """In whose line a load stands: of the request that set it off, else of the model's first task."""
        if not self._meters:
            return self._warming
        if ticket is not None and ticket >= 0:
            return self._counts[self._requests[ticket].task]
        return self._counts[self._owners[key]]

    def _preflight(self, now: float, action: Preflight) -> None:
        self._later(now, Preflighted(action.key, action.generation, None, self.house.load_s.get(action.key)))

    def _load(self, now: float, action: Load) -> None:
        whose = self._whose(action.key, action.ticket)
        whose.loads += 1
        event = self._later(now + self._takes[action.key].load_s, Loaded(action.key, action.generation))
        self._under_way[action.key] = event, now, whose

    def _cancel(self, now: float, action: CancelLoad) -> None:
        _, since, whose = self._under_way[action.key]
        event = self._later(now + UNLOAD_S, LoadCancelled(action.key, action.generation))
        self._under_way[action.key] = event, since, whose

    def _unload(self, now: float, action: Unload) -> None:
        if action.why.reason in FREED_BY_ROOM:
            self._counts[self._owners[action.key]].evictions += 1
        self._later(now + UNLOAD_S, Unloaded(action.key, action.generation))

    def _demote(self, now: float, action: Demote) -> None:
        count = self._counts[self._owners[action.key]]
        count.sleeps += 1
        count.evictions += action.why.reason in FREED_BY_ROOM
        asleep = Demoted(action.key, action.generation, action.ram_bytes)
        self._later(now + self._takes[action.key].sleep_s, asleep)

    def _promote(self, now: float, action: Promote) -> None:
        whose = self._whose(action.key, action.ticket)
        whose.wakes += 1
        event = self._later(now + self._takes[action.key].wake_s, Promoted(action.key, action.generation))
        self._under_way[action.key] = event, now, whose

    def _wake_at(self, now: float, action: WakeAt) -> None:
        self._wake = inf if action.when is None else action.when

    # --- answers ------------------------------------------------------------------------------------------------------

    def _grant(self, now: float, action: Grant) -> None:
        ready_at = self._ready_at[action.key]
        for ticket in action.tickets:
            if ticket < 0:
                self._warm_left -= 1
                heappush(self._ends, (now, ticket))
                continue
            request = self._requests[ticket]
            arrival = request.at + self._shift
            count = self._counts[request.task]
            count.waits.append(now - arrival)
            count.cold += ready_at > arrival
            self._answer(request, now - arrival)
            heappush(self._ends, (now + request.hold_s, ticket))

    def _refuse(self, now: float, action: Refuse) -> None:
        for ticket in action.tickets:
            if ticket < 0:
                self._warm_left -= 1
                continue
            request = self._requests[ticket]
            self._counts[request.task].refused[action.refusal.reason.value] += 1
            self._answer(request, now - request.at - self._shift)

    def _answer(self, request: Request, waited_s: float) -> None:
        self._answered += 1
        self._late += waited_s > self.house.tasks[request.task].max_wait_s + 1e-6

    # --- figures ------------------------------------------------------------------------------------------------------

    def _read_meters(self, now: float) -> None:
        if not self._meters:
            self._meters = {device: Meter(self.core.books(device).capacity) for device in self.core.devices()}
        charged = self.core.charged()
        if charged != self._charged:
            self._charged = charged
            for meter, size in zip(self._meters.values(), charged, strict=True):
                meter.step(now - self._shift, size)

    def _report(self, first: float, end: float) -> Report:
        tasks = tuple(task_report(name, [each]) for name, each in self._counts.items())
        return Report(
            policy=self.house.settings.policy,
            span_s=end - first,
            tasks=tasks,
            devices=tuple(
                DeviceReport(device, meter.capacity, meter.mean(end), meter.peak, meter.at, meter.bytes)
                for device, meter in self._meters.items()
            ),
            total=task_report("total", self._counts.values()),
            warmup_loads=self._warming.loads,
            warmup_s=self._warming.load_s,
            late=self._late,
            decisions=self.core.decided,
        )


def simulate(
    house: House, requests: Sequence[Request], *, on_decided: Callable[[float, Decided], None] | None = None
) -> Report:
    """Rehearse these requests in this house; they are sorted by their arrival. Raises ``UnknownTask``."""
    return Simulation(house, on_decided=on_decided).run(requests)
