"""What all requests share: the manager, the keys, the limits, and what is counted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute

from taskrouter import telemetry
from taskrouter.http.asked import Asked, asked
from taskrouter.http.events import Events
from taskrouter.http.exchange import Exchange
from taskrouter.http.failing import Refused
from taskrouter.http.keys import Keys
from taskrouter.http.limits import Limits
from taskrouter.http.metrics import Metrics
from taskrouter.http.operations import Operations
from taskrouter.http.room import Room
from taskrouter.http.watching import Watching
from taskrouter.manager import ModelManager

_BASE64 = 4 / 3
_BESIDE = 1 << 20
RETRY_S = 10.0
"""When to ask again a server that is being drained: another one answers then, or this one does."""
LOOK_EVERY_S = 1.0
"""How often it is looked whether the application traces by now."""
REFUSES = frozenset({409, 429, 500, 501, 502, 503, 504, 507})
"""What a request is answered where it wasn't the request's fault."""


class State:
    """One server's. ``most_bytes``: of a JSON body, in which a medium of ``media.max_bytes`` fits as base64."""

    def __init__(self, manager: ModelManager, keys: Keys) -> None:
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
        self.draining = False
        """New work is refused, while what is under way ends."""
        self.tracer = manager.tracer
        self._traced = manager.traces_itself
        self._look_again = 0.0
        self.ending = False
        """The server shuts down."""
        self._unwatch = [manager.watch(each.happened) for each in (self.metrics, self.events)]
        self.routes: Sequence[BaseRoute] = ()
        self.document: bytes | None = None
        """What ``GET /openapi.json`` answers, once it was asked for."""

    def traced(self) -> bool:
        """Whether anybody looks at spans: one that records nothing costs, too. Looked for once a second."""
        if not self._traced and (now := time.monotonic()) >= self._look_again:
            self._traced = telemetry.is_set_up()
            self._look_again = now + LOOK_EVERY_S
        return self._traced

    def end(self) -> None:
        """The server begins to end: take nothing new, and end what has no end of its own. Idempotent."""
        if not self.ending:
            self.draining = self.ending = True
            self.events.tell("shutting_down", at=time.time())
            self.events.end()

    def forget(self) -> None:
        """The server has ended."""
        for unwatch in self._unwatch:
            unwatch()

    def check_open(self, exchange: Exchange) -> None:
        """Raises ``Refused`` (503) for new work while none is taken. To read what is there is no work."""
        if self.draining and exchange.scope["method"] == "POST":
            text = "the server takes no new work: it is being drained"
            raise Refused(503, text, code="draining", retry_after_s=RETRY_S)

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
        found = asked(self.manager, exchange, model)
        caller, task = exchange.caller, found.named.task
        if caller is not None and len(self.keys.callers) > 1 and not exchange.queued:
            exchange.queued = True
            own = self.manager.tasks[task].priority if found.priority is None else found.priority
            found.priority = own - self.limits.queue(caller, task)
        return found
