"""``POST /v1/leases``: a model held for a client, for as long as its connection stays open.

1. The request waits its turn as any other does, with signs of life. Once the lease is granted, one event has its id;
   after that there are signs of life only.
2. The lease is the connection. When that closes, whoever closes it, in whatever phase, the lease is left: once.
3. Calls inside are requests of their own, to ``/v1/tasks/{task}`` with the id in ``x-taskrouter-lease``. They are asked
   of the lease itself, so they need no place in any queue, and never wait for the drain of a model that they hold.
4. What ends from this side (the model died, was unloaded by force, or the server ends) is told as the last event.
5. A server that ends waits for calls, not for leases: one in which no call is under way ends at once, another with the
   last of its calls. Drained by its admin it takes no new lease, and the calls inside those that are held.
6. A lease and a call inside it are one of what its key may have under way (``max_concurrency``), else a key that may
   have one could never use it. Further calls at the same time count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from taskrouter.errors import BadInput, TaskRouterError
from taskrouter.http import bodies
from taskrouter.http.asked import Asked
from taskrouter.http.bodies import body_of
from taskrouter.http.exchange import EVENTS, Exchange
from taskrouter.http.failing import Refused
from taskrouter.http.keys import Caller
from taskrouter.http.lasting import Lasting, Lastings
from taskrouter.http.naming import Named
from taskrouter.http.status import plain
from taskrouter.http.streaming import NO_CACHE, awaited
from taskrouter.manager import Lease
from taskrouter.manager.refusals import fresh
from taskrouter.verbs import Routed

if TYPE_CHECKING:
    from taskrouter.http.state import State

HEADER = b"x-taskrouter-lease"
OPERATORS = frozenset({"pid", "log", "endpoint"})
"""What backends say of a model that is for who runs the server, and not for who asks it."""


class Held(Lasting):
    """One lease. ``calls``: requests inside that are under way; ``since``: when it was granted, a Unix time."""

    def __init__(self, caller: Caller, named: Named, lease: Lease) -> None:
        super().__init__(caller)
        self.lease = lease
        self.named = named
        self.calls = 0
        self.since: float | None = None
        self.routed: Routed | None = None
        self.left = False
        """Its own request has ended."""
        self.bound: asyncio.Timeout | None = None
        """Of the wait for it, while it waits."""
        self._retired: TaskRouterError | None = None

    def __repr__(self) -> str:
        return f"<Held {self.lease!r} by {self.caller.name}, {self.calls} calls>"

    def end(self, error: TaskRouterError) -> None:
        """End it now, also where it still waits."""
        if self.error is None and self.bound is not None:
            self.bound.reschedule(asyncio.get_running_loop().time())
        super().end(error)

    def retire(self, error: TaskRouterError) -> None:
        """End it once no call inside is under way."""
        self._retired = error
        if not self.calls:
            self.end(error)

    def call_ended(self) -> None:
        """A request inside has ended."""
        self.calls -= 1
        if not self.calls and self._retired is not None:
            self.end(self._retired)

    def granted(self) -> None:
        """It is held from now on."""
        self.since = time.time()
        self.routed = self.lease.routed

    def check(self, task: str) -> None:
        """Whether a path names what is held. Raises ``BadInput``."""
        mine = self.lease.target
        whole = f"{mine.task}/{mine.option}"
        if task not in (mine.task, whole):
            raise BadInput(f"this lease is on {whole}, and what was asked is {task[:256]!r}")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """For a call inside: that the lease was left while the call came, or waited its turn, is said as an error of
        ours. Raises what the lease ended in, or ``Refused`` (404).
        """
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, TaskRouterError) or not self.lease.left:
                raise
            raise (_unknown() if self.error is None else fresh(self.error)) from error

    def told(self) -> dict[str, Any]:
        """What its client is told. Raises what ``lease.info`` raises."""
        facts = plain({name: value for name, value in self.lease.info.items() if name not in OPERATORS})
        return {"lease": self.id, "task": self.lease.target.task, "option": self.lease.option, "info": facts}

    def row(self) -> dict[str, Any]:
        """What the admin is told."""
        since = None if self.since is None else round(self.since, 3)
        mine = self.lease.target
        return {"task": mine.task, "option": mine.option, "caller": self.caller.name, "since": since,
                "calls": self.calls}  # fmt: skip


class Leases(Lastings[Held]):
    """Those of one server."""

    def of(self, headers: Mapping[bytes, bytes], caller: Caller) -> Held:
        """The lease that a request says it belongs to. Raises ``Refused`` (404)."""
        found = self.find(headers[HEADER].decode("latin-1"), caller)
        if found is None or found.since is None:
            raise _unknown()
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Those that are held now."""
        return [held.row() for held in self if held.since is not None]


def _unknown() -> Refused:
    text = "this key holds no such lease: it has ended, as its connection has; take another one"
    return Refused(404, text, code="unknown_lease")


async def leases(state: State, exchange: Exchange) -> None:
    """``POST /v1/leases``."""
    body = await body_of(exchange, bodies.Lease)
    it = state.asked(exchange, body.task if body.option is None else f"{body.task}/{body.option}")
    exchange.lasts = True
    caller, (task, option) = exchange.caller, it.named
    assert caller is not None
    lease = state.manager.lease(task, option=option, timeout=it.timeout_s, priority=it.priority)
    lease.where = f"over HTTP by {caller.name}"
    held = exchange.holds = Held(caller, it.named, lease)
    # Whatever was entered is left again, also by who went away just then.
    async with AsyncExitStack() as entered:
        entered.enter_context(state.leases.kept(held))
        await awaited(exchange, it, lambda: _enter(held, entered))
        held.granted()
        it.inside(held.lease, held.routed)
        told = held.told()
        if not exchange.started:
            await exchange.start(200, EVENTS, (*it.headers(), *NO_CACHE))
        await held.last(exchange, told)


async def _enter(held: Held, entered: AsyncExitStack) -> None:
    """Wait for the lease. Raises what it is refused with, or what it ended in while it waited."""
    try:
        async with asyncio.timeout(None) as held.bound:
            if held.error is not None:
                raise held.error
            await entered.enter_async_context(held.lease)
    except TimeoutError:
        # Some of our own errors are a TimeoutError, too.
        if held.error is None:
            raise
        raise held.error from None
    finally:
        held.bound = None
    entered.callback(held.lease.on_lost(held.end))


def asked_inside(exchange: Exchange, held: Held, task: str) -> Asked:
    """The same as ``state.asked``, of a request inside a lease: who is to answer is settled, and it waits for nobody.

    Raises ``BadInput`` for another task than the lease is on.
    """
    held.check(task)
    found = exchange.asked = Asked(held.lease.manager, held.named, held.lease.target, None, None)
    found.inside(held.lease, held.routed)
    return found
