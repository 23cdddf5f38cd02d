"""What all requests share: the manager, the keys, the limits, and what is counted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute

from taskrouter.errors import BadInput, ManagerClosed
from taskrouter.http import leases, pipelines
from taskrouter.http.asked import Asked, asked
from taskrouter.http.events import Events
from taskrouter.http.exchange import Exchange
from taskrouter.http.failing import Refused
from taskrouter.http.keys import Caller, Keys
from taskrouter.http.limits import Limits
from taskrouter.http.metrics import Metrics
from taskrouter.http.operations import Operations
from taskrouter.http.room import Room
from taskrouter.http.tracing import Tracing
from taskrouter.http.watching import Watching
from taskrouter.manager import Happened, ModelManager

_BASE64 = 4 / 3
_BESIDE = 1 << 20
RETRY_S = 10.0
"""When to ask again a server that is being drained: another one answers then, or this one does."""
LEAST_PRIORITY = -1000
"""What a caller may ask with at least: one that is there already goes no further back."""
REFUSES = frozenset({409, 429, 500, 501, 502, 503, 504, 507})
"""What a request is answered where it wasn't the request's fault."""


class State:
    """One server's. ``most_bytes``: of a JSON body, in which a medium of ``media.max_bytes`` fits as base64."""

    def __init__(self, manager: ModelManager, keys: Keys, traced_per_second: int | None = None) -> None:
        self.manager = manager
        self.keys = keys
        self.limits = Limits()
        self.watching = Watching()
        self.room = Room()
        self.begun = int(time.time())
        self.since = time.monotonic()
        self.metrics = Metrics()
        self.events = Events()
        self.operations = Operations()
        self.leases = leases.Leases()
        self.pipelines = pipelines.Comings()
        self.draining = False
        """New work is refused, while what is under way ends."""
        self.tracing = Tracing(manager, traced_per_second)
        self.ending = False
        """The server shuts down."""
        self._unwatch = [manager.watch(each.happened) for each in (self.metrics, self.events, self)]
        self.routes: Sequence[BaseRoute] = ()
        self.document: bytes | None = None
        """What ``GET /openapi.json`` answers, once it was asked for."""

    def end(self) -> None:
        """The server begins to end: take nothing new, and end what has no end of its own. Idempotent."""
        if not self.ending:
            self.draining = self.ending = True
            self.events.tell("shutting_down", at=time.time())
            self.events.end()
            self._end_what_lasts()

    def happened(self, happened: Happened) -> None:
        """The manager may end before the server, where it is somebody else's."""
        if happened.what == "shutting_down":
            self._end_what_lasts()

    def _end_what_lasts(self) -> None:
        error = ManagerClosed("the server is shutting down: leases and pipelines end")
        self.leases.end(error)
        self.pipelines.end(error)

    def forget(self) -> None:
        """The server has ended."""
        for unwatch in self._unwatch:
            unwatch()

    def enter(self, exchange: Exchange, caller: Caller, now: float) -> None:
        """Let a caller's request in, inside of what its headers name. Raises ``Refused`` for one that isn't let in."""
        headers = exchange.headers
        if leases.HEADER in headers and exchange.scope["method"] == "POST":
            exchange.lease = self.leases.of(headers, caller)
        if pipelines.HEADER in headers:
            exchange.pipeline = self.pipelines.of(headers, caller)
        held = exchange.lease
        if held is None or self.ending:
            self.check_open(exchange)
        # The first call inside a lease has the lease's own place.
        self.limits.enter(caller, now, counts=held is None or held.calls > 0)
        if held is not None:
            held.calls += 1

    def leave(self, exchange: Exchange, caller: Caller) -> None:
        """A request that was let in has ended."""
        held, holds = exchange.lease, exchange.holds
        if held is not None:
            held.call_ended()
            # Whichever of the calls it was that began first: one of those that are left has the lease's own place.
            if held.left or held.calls:
                self.limits.leave(caller)
            return
        if holds is not None:
            holds.left = True
            if holds.calls:
                return  # a call inside has its place
        self.limits.leave(caller)

    def check_open(self, exchange: Exchange) -> None:
        """Raises ``Refused`` (503) for new work while none is taken. To read what is there is no work."""
        if self.draining and exchange.scope["method"] == "POST":
            text = "the server takes no new work: it is being drained"
            raise Refused(503, text, code="draining", retry_after_s=RETRY_S)

    def check_outside(self, exchange: Exchange) -> None:
        """Raises ``BadInput`` for a request that says it is inside a lease, where that can't be."""
        if exchange.lease is not None:
            raise BadInput("x-taskrouter-lease goes with POST /v1/tasks/{task} and nothing else")

    def ended(self, exchange: Exchange, seconds: float) -> None:
        """A request has ended, however it did."""
        if exchange.queued and exchange.caller is not None and exchange.asked is not None:
            self.limits.unqueue(exchange.caller, exchange.asked.named.task)
        self.metrics.count(exchange, seconds)
        if exchange.status in REFUSES and len(self.events) and exchange.caller is not None:
            task = exchange.asked.named.task if exchange.asked is not None else None
            option = exchange.asked.option if exchange.asked is not None else None
            self.events.tell("request_refused", at=time.time(), status=exchange.status, task=task, option=option,
                             caller=exchange.caller.name, request=exchange.id)  # fmt: skip

    @property
    def most_bytes(self) -> int:
        return int(self.manager.media_limits.max_bytes * _BASE64) + _BESIDE

    def asked(self, exchange: Exchange, model: Any) -> Asked:
        """Who is to answer a request that names this model; where there are several keys, each in its turn."""
        self.check_outside(exchange)
        found = asked(self.manager, exchange, model)
        caller, task = exchange.caller, found.named.task
        if caller is not None and len(self.keys.callers) > 1 and not exchange.queued:
            exchange.queued = True
            own = self.manager.tasks[task].priority if found.priority is None else found.priority
            found.priority = max(own - self.limits.queue(caller, task), LEAST_PRIORITY)
        return found
