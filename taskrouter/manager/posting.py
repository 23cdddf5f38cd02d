"""Between the core and those who call: events in, actions out, and the callers that wait for their tickets.

``post`` hands an event to the core and performs what it answers; it never awaits, so nothing comes between deciding and
booking. Callers wait on futures; ten thousand of them that are granted at once are woken in slices, so that the loop
stays free for others.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from taskrouter import errors
from taskrouter.backends.base import Preflight
from taskrouter.demands import demands_of, fields_of, surely_longer
from taskrouter.manager.pipelines import Pipelines
from taskrouter.manager.recording import Recorder
from taskrouter.manager.refusals import error_of
from taskrouter.manager.residents import Resident
from taskrouter.manager.spans import Spans
from taskrouter.manager.watching import Watchers
from taskrouter.residency import Residency
from taskrouter.residency.actions import Action, Grant, Refusal, Refuse, WakeAt
from taskrouter.residency.events import Acquire, Event, GiveUp, Release, Tick
from taskrouter.types import ModelKey, ModelRequest, TicketId

logger = logging.getLogger("taskrouter")

SLICE = 256
"""Callers woken in one turn of the event loop."""
STOP_BOUND_S = 30.0
"""How long work that was told to stop may take; a load then counts as stuck."""
OPERATION = "operation"
"""What the names of tasks that serve a caller begin with."""


@dataclass(slots=True)
class Waiter:
    """A caller that waits for its ticket, and what it wants to ask the model (``None``: not known yet)."""

    future: asyncio.Future[Resident]
    key: ModelKey
    verb: str | None
    request: Any = None


class Posting:
    """What every action and every caller needs of the manager's acting half."""

    def __init__(self, core: Residency, spans: Spans, requests: Mapping[ModelKey, ModelRequest]) -> None:
        self.core = core
        self.spans = spans
        self.requests = requests
        self.residents: dict[ModelKey, Resident] = {}
        self.known: dict[ModelKey, Preflight] = {}
        """What is known of models before they are loaded."""
        self.verbs: dict[ModelKey, frozenset[str]] = {}
        self.loop = asyncio.get_running_loop()
        self.time = self.loop.time
        self.ids: Iterator[TicketId] = cast(Iterator[TicketId], itertools.count(1))
        self.closed = False
        self.pipelines: Pipelines | None = None
        """What comes after what, where anybody said so."""
        self.recorder: Recorder | None = None
        """Where requests and decisions are recorded, where the file says so."""
        self.watchers: Watchers | None = None
        """Who listens to what happens."""
        self._waiters: dict[TicketId, Waiter] = {}
        self._wake: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._perform: dict[type, Callable[[Any], None]] = {
            Grant: self._grant,
            Refuse: self._refuse,
            WakeAt: self._wake_at,
        }

    # --- tasks -----

    async def stop(self) -> None:
        """Cancel what still runs and wait, within a bound; a load stuck in a thread is left to the process's end."""
        if self._wake is not None:
            self._wake.cancel()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_BOUND_S)

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str | None = None) -> asyncio.Task[Any]:
        """Run work as the manager's own, so that it outlives whoever asked for it and sees nobody's context."""
        task = self.loop.create_task(work, name=name, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def spawn_operation(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run work that serves a caller, who gets its error."""
        return self.spawn(work, name=OPERATION)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # An operation hands its error to its caller; anything else has turned its own into an event by now.
        if not task.cancelled() and task.exception() is not None and not task.get_name().startswith(OPERATION):
            logger.error("%s ended in an error nobody expected", task.get_name(), exc_info=task.exception())

    # --- events and actions -------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Tell the core; start what it answers. Never awaits."""
        actions = self.core.handle(event, now=self.time())
        if self.watchers is not None and self.watchers.on:
            self.watchers.took(event)
        if actions:
            self.perform(actions)

    def perform(self, actions: list[Action]) -> None:
        """Start what the core answered. Never awaits."""
        self.spans.deciding(actions)
        if self.watchers is not None and self.watchers.on:
            self.watchers.deciding(actions)
        for action in actions:
            self._perform[type(action)](action)
        if self.recorder is not None:
            self.recorder.watch()

    async def acquire(
        self, event: Acquire, *, task: str, option: str, verb: str | None = None, request: Any = None
    ) -> Resident:
        """Wait until the ticket is granted; raises what it was refused with. Cancelled: the ticket is given up."""
        now = self.time()
        actions = self.core.handle(event, now=now)
        if len(actions) == 1 and type(actions[0]) is Grant:
            try:
                if self.recorder is not None:
                    self.recorder.began(event, now if event.arrival is None else event.arrival, now, task, option)
                if self.pipelines is not None and not event.background:
                    self.pipelines.asked(task)
                return self.residents[event.key]
            except BaseException:
                self.release(event.ticket)  # nobody else knows of it yet
                raise
        return await self.wait(event, actions, task=task, option=option, verb=verb, request=request)

    async def wait(
        self, event: Acquire, actions: list[Action], *, task: str, option: str, verb: str | None = None,
        request: Any = None,
    ) -> Resident:  # fmt: skip
        """Perform what an ``Acquire`` led to, and wait for its ticket as ``acquire`` does."""
        future: asyncio.Future[Resident] = self.loop.create_future()
        ticket = event.ticket
        self._waiters[ticket] = Waiter(future, event.key, verb, request)
        traced = self.spans.on and self.spans.waiting(ticket, event.key, task=task, option=option)
        recorder = self.recorder
        since = self.time() if traced or recorder is not None else 0.0
        waits = False
        try:
            if actions:
                self.perform(actions)
            if self.pipelines is not None and not event.background:
                self.pipelines.asked(task)
            waits = True
            resident = await future
        except BaseException as error:
            if self._waiters.pop(ticket, None) or not waits or not isinstance(error, errors.TaskRouterError):
                self.post(GiveUp(ticket))
            if traced:
                self.spans.waited(ticket, error, waited_s=self.time() - since)
            # A try of a request that other options may answer is no end of it.
            if recorder is not None and event.arrival is None and not event.background:
                recorder.unanswered(since, task, option, event.priority, error)
            raise
        if traced:
            self.spans.waited(ticket, None, waited_s=self.time() - since)
        if recorder is not None:
            recorder.began(event, since if event.arrival is None else event.arrival, self.time(), task, option)
        return resident

    def release(self, ticket: TicketId) -> None:
        if self.recorder is not None:
            self.recorder.ended(ticket, self.time())
        self.post(Release(ticket))

    def waiting_for(self, key: ModelKey) -> list[TicketId]:
        """The tickets that wait for this model; looks at everybody who waits."""
        return [ticket for ticket, waiter in self._waiters.items() if waiter.key == key]

    def unable(self, key: ModelKey, verb: str | None, request: Any = None) -> errors.TaskRouterError | None:
        """The error where a model is known not to do what is asked of it."""
        verbs = self.verbs.get(key)
        if verb is not None and verbs and verb not in verbs:
            can = ", ".join(sorted(verbs))
            return errors.UnsupportedVerb(f"{self.requests[key].label} can't {verb}; it can be asked to {can}")
        known = self.known.get(key)
        if request is None or known is None:
            return None
        if known.lacks and (lacking := demands_of(request) & known.lacks.keys()):
            # Tools and the like are asked for by ``extra`` too, which would say less.
            first = min(lacking, key=lambda each: (each == "extra", each))
            fields = fields_of(request) if first == "extra" else ()
            takes_no = ", ".join(fields)[:200] or first
            return errors.UnsupportedInput(
                f"{self.requests[key].label} takes no {takes_no}: {known.lacks[first]}",
                param=fields[0] if len(fields) == 1 else None,
            )
        if known.context is not None and (least := surely_longer(request, known.context)) is not None:
            return errors.ContextTooLong(
                f"the request has at least {least} tokens, and the context of {self.requests[key].label} is "
                f"{known.context}. Send less."
            )
        return None

    # --- telling callers ----------------------------------------------------------------------------------------------

    def _grant(self, action: Grant) -> None:
        self._in_slices(action.tickets, self.residents[action.key], None)

    def _refuse(self, action: Refuse) -> None:
        self._in_slices(action.tickets, None, action.refusal)

    def _in_slices(self, tickets: tuple[TicketId, ...], resident: Resident | None, refusal: Refusal | None) -> None:
        waiters = self._waiters
        for ticket in tickets[:SLICE]:
            waiter = waiters.pop(ticket, None)
            if waiter is None or waiter.future.done():
                continue
            if resident is not None:
                waiter.future.set_result(resident)
            elif refusal is not None:
                waiter.future.set_exception(error_of(refusal))
        if len(tickets) > SLICE:
            self.loop.call_soon(self._in_slices, tickets[SLICE:], resident, refusal)

    def _wake_at(self, action: WakeAt) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = None if action.when is None else self.loop.call_at(action.when, self.post, Tick())
