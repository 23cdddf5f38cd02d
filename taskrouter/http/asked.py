"""A request to a task, on its way: who is to answer, by when, and what is said about it in the answer's headers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from taskrouter.backends.base import Backend, Call
from taskrouter.http.exchange import Exchange, timeout_of
from taskrouter.http.naming import Named, named
from taskrouter.manager import Lease, Model, ModelManager, Stream
from taskrouter.manager.targets import Target
from taskrouter.types import ModelRequest
from taskrouter.verbs import Routed, Usage

_LONGEST = 500


@dataclass(slots=True)
class Asked:
    """``begun``: when the request came, by the loop's clock; ``ready``: when its model was there."""

    manager: ModelManager
    named: Named
    target: Target
    """What the name means: when the request came, and again when it is asked, for a body may take its time."""
    timeout_s: float | None
    priority: int | None
    begun: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    ready: float | None = None
    _handle: Model | None = None
    routed: Routed | None = None
    usage: Usage | None = None
    first_at: float | None = None
    """When the first piece of a stream was sent."""
    lease: Lease | None = None
    """The lease that it is asked inside of, or that it takes."""

    def inside(self, lease: Lease, routed: Routed | None) -> None:
        """From now on this lease answers, which is of an option that was ``routed`` to."""
        self.lease, self.routed, self.target = lease, routed, lease.target
        self.ready = asyncio.get_running_loop().time()

    def answered(self, answer: Any) -> None:
        """Note what a whole answer says of itself."""
        if self.lease is None:
            self.routed = self._model.routed
            self.ready = self._model.ready_at
        self.usage = getattr(answer, "usage", None)

    def began(self, stream: Stream) -> None:
        """Note that an answer in pieces has begun."""
        if self.lease is None:
            self.routed = stream.routed
            self.ready = self._model.ready_at

    def sent(self) -> None:
        """Note that a piece of the answer was sent."""
        if self.first_at is None:
            self.first_at = asyncio.get_running_loop().time()

    @property
    def handle(self) -> Model | Lease:
        """The task's model, on this request's terms; or the lease that it is asked inside of."""
        return self._model if self.lease is None else self.lease

    def backends(self) -> list[tuple[ModelRequest, Backend]]:
        """What may answer on this machine: models and their backends. Raises ``UnknownTask``."""
        if self.lease is None:
            return self.manager.backends(*self.named)
        # What is held, whatever the file says of it now.
        resident = self.lease.resident
        return [] if resident is None else [(resident.request, resident.backend)]

    def own_verbs(self) -> dict[str, Call]:
        """The verbs of plug-ins' own that may be asked. Raises ``UnknownTask``."""
        if self.lease is None:
            return self.manager.own_verbs(*self.named)
        return {name: call for _, backend in self.backends() for name, call in getattr(backend, "calls", {}).items()}

    @property
    def _model(self) -> Model:
        if self._handle is None:
            task, option = self.named
            self.target = self.manager.target(task, option)
            self._handle = self.manager.handle(task, option=option, timeout=self.timeout_s, priority=self.priority)
        return self._handle

    @property
    def option(self) -> str:
        """Who answered, or who was to."""
        return self.routed.option if self.routed is not None else self.target.option

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Which option answers, why that one, and how many seconds the request waited for it."""
        passed = self.routed.passed if self.routed is not None else ()
        if passed:
            reason = "; ".join(f"{each.option}: {each.why.value}" for each in passed)
        else:
            reason = "named" if self.named.option else "selected"
        waited = (self.ready if self.ready is not None else asyncio.get_running_loop().time()) - self.begun
        return (
            (b"x-taskrouter-option", _word(self.option)),
            (b"x-taskrouter-reason", _word(reason)),
            (b"x-taskrouter-waited", b"%.3f" % max(waited, 0.0)),
        )


def asked(manager: ModelManager, exchange: Exchange, model: Any) -> Asked:
    """Who is to answer a request. Raises what naming them raises, and ``BadInput`` for a timeout that is none."""
    assert exchange.caller is not None
    name, target = named(manager, exchange.caller, model)
    found = exchange.asked = Asked(manager, name, target, timeout_of(exchange), exchange.caller.priority)
    return found


@lru_cache(256)
def _word(text: str) -> bytes:
    """A text as a header's value: no line ends, no other controls, nothing but ASCII."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text[:_LONGEST]).encode()
