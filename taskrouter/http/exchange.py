"""One request and its answer over ASGI: headers looked up once, a body read within bounds, and an end that is noticed.

Written on bare ASGI: wrapping each request and each answer costs as much as all else that the gateway does.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.http.failing import Refused, failure_of
from taskrouter.http.room import LARGE, Room
from taskrouter.http.strict_json import strict_object
from taskrouter.http.watching import Watching

if TYPE_CHECKING:
    from taskrouter.http.asked import Asked
    from taskrouter.http.keys import Caller
    from taskrouter.http.leases import Held
    from taskrouter.manager.pipelines import Pipeline

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

STALLED_S = 30.0
"""An upload of which nothing comes for so long is over."""
AT_ONCE = 1 << 18
"""Bytes that are parsed at once; more are for a thread, so that other requests go on."""
LONGEST_WAIT_S = 1e9
"""Whoever would wait for longer waits for so long: some 30 years."""
JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
_START = f"{os.getpid():x}-{int.from_bytes(os.urandom(4), 'big'):08x}"
_NUMBERS = itertools.count(1)


class Gone(Exception):
    """The client has gone away: there is nobody to answer."""


class Exchange:
    """A request, and what answers it. ``started``: the status is sent, so an error can only be told in the body.

    ``asked``: the task that it is for, once that is known. ``status``: what was sent, or what it came to after that.
    """

    __slots__ = (
        "_receive", "_room", "_send", "_task", "_watcher", "_watching", "asked", "caller", "gone", "headers",
        "held", "holds", "id", "lasts", "lease", "path", "pipeline", "queued", "scope", "started", "status", "style",
    )  # fmt: skip

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, watching: Watching | None = None, room: Room | None = None
    ) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.path: str = scope["path"]
        self.scope = scope
        self._receive = receive
        self._send = send
        self.caller: Caller | None = None
        self.asked: Asked | None = None
        self.lease: Held | None = None
        """The lease that it is asked inside of."""
        self.holds: Held | None = None
        """The lease that lasts as long as this request."""
        self.lasts = False
        """Whether it is open for as long as its client likes: that it goes away then is its end, and how long it took
        says nothing."""
        self.pipeline: Pipeline | None = None
        """The pipeline that it counts for."""
        self.id = f"{_START}-{next(_NUMBERS)}"
        self.started = False
        self.status = 0
        self.gone = False
        self.queued = False
        """Whether it counts among what its key has under way for its task."""
        self._watcher: asyncio.Task[None] | None = None
        self._watching = watching if watching is not None else Watching()
        self._room = room if room is not None else Room()
        self.held = 0
        """Bytes of its body that are counted in the server's ``Room``."""
        self._task: asyncio.Task[Any] | None = None
        self.style = "openai"
        """In whose shape errors are told: ``openai`` or ``anthropic``."""

    def header(self, name: bytes) -> str | None:
        """A header's text, by its lower-case name."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    # --- reading ------------------------------------------------------------------------------------------------------

    async def body(self, most: int) -> bytes:
        """The whole body; then ``watch`` begins.

        Raises ``MediaTooLarge`` for more than ``most`` bytes, ``Refused`` where others fill the memory, and ``Gone``.
        """
        data = await self._body(most)
        self.watch()
        return data

    async def _body(self, most: int) -> bytes:
        told = self._told(most)
        if told > LARGE:
            self._room.check(told, most)  # rather than in the middle of it
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Gone
        first: bytes = message.get("body", b"")
        if not message.get("more_body"):
            if len(first) > most:
                raise MediaTooLarge(f"the request's body has more than the {most:,} bytes that are taken")
            return first
        parts, size = [first], len(first)
        while message.get("more_body"):
            message = await self._more()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise MediaTooLarge(f"the request's body has more than the {most:,} bytes that are taken")
            if size > LARGE:
                self._room.hold(size, most, held=self.held)
                self.held = size
        return b"".join(parts)

    async def _more(self) -> Mapping[str, Any]:
        """The next piece. Raises ``Gone``, and ``Refused`` (408) where none comes: what is here takes others' room."""
        try:
            async with asyncio.timeout(STALLED_S):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, f"nothing more of the body came for {STALLED_S:g} s", code="stalled") from None
        if message["type"] == "http.disconnect":
            raise Gone
        return message

    def _told(self, most: int) -> int:
        """How many bytes the body is said to have; 0 where nothing is said. Raises ``MediaTooLarge``."""
        told = self.headers.get(b"content-length")
        size = int(told) if told is not None and told.isdigit() else 0
        if size > most:
            raise MediaTooLarge(f"the request's body has {size:,} bytes; {most:,} are taken")
        return size

    async def pieces(self, most: int) -> AsyncGenerator[bytes, None]:
        """The body as it comes, for who needn't have it whole; ``watch`` is the caller's. Raises as ``body``."""
        self._told(most)
        size, more = 0, True
        while more:
            message = await self._more()
            piece, more = message.get("body", b""), bool(message.get("more_body"))
            size += len(piece)
            if size > most:
                raise MediaTooLarge(f"the request's body has more than the {most:,} bytes that are taken")
            yield piece

    async def json(self, most: int) -> dict[str, Any]:
        """The body as a JSON object. Raises ``BadInput`` for anything else."""
        data = await self._body(most)
        self.watch()
        return strict_object(data) if len(data) <= AT_ONCE else await asyncio.to_thread(strict_object, data)

    def watch(self) -> None:
        """From here on, should the client go away, this task is cancelled, and ``gone`` is true. The body is read."""
        self._task = asyncio.current_task()
        self._watching.add(self)

    def begin_to_watch(self) -> None:
        """It has taken a while: now somebody waits for the client to go away."""
        self._watcher = asyncio.ensure_future(self._disconnected())
        self._watcher.add_done_callback(self._left)

    def _left(self, watcher: asyncio.Task[None]) -> None:
        if not watcher.cancelled() and self._task is not None:
            self.gone = True
            self._task.cancel()

    def unwatch(self) -> None:
        """It is over: nobody is to be cancelled any more. Idempotent."""
        self._watching.discard(self)
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.remove_done_callback(self._left)
            watcher.cancel()

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # --- answering ----------------------------------------------------------------------------------------------------

    def start(self, status: int, kind: bytes, headers: Headers = (), length: int | None = None) -> Awaitable[None]:
        """Send the status line and the headers."""
        sent = [(b"content-type", kind), (b"x-request-id", self.id.encode()), *headers]
        if length is not None:
            sent.append((b"content-length", b"%d" % length))
        self.started = True
        self.status = status
        return self._send({"type": "http.response.start", "status": status, "headers": sent})

    def write(self, data: bytes, *, more: bool = True) -> Awaitable[None]:
        """Send a piece of the body; returns once the client has room for more."""
        if not more:
            self.unwatch()  # the end of an answer looks like a client that goes away
        return self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def answer(self, data: Any, status: int = 200, headers: Headers = ()) -> None:
        """Answer with JSON."""
        await self.answer_bytes(orjson.dumps(data, default=plain), JSON, status, headers)

    async def answer_bytes(self, data: bytes, kind: bytes, status: int = 200, headers: Headers = ()) -> None:
        """Answer with these bytes."""
        await self.start(status, kind, headers, len(data))
        await self.write(data, more=False)

    async def fail(self, error: BaseException) -> None:
        """Tell an error, as far as that can still be done."""
        asked = self.asked
        model = "" if asked is None else f"{asked.named.task}/{asked.option}"
        # Of what fails on an admin's path only its guard's refusal comes without the admin's key. Callers have theirs.
        to_admin = self.caller is None and "/admin/" in self.path
        failure = failure_of(error, self.style, self.id, model=model, to_admin=to_admin)
        if not self.started:
            data = orjson.dumps(failure.body)
            await self.answer_bytes(data, JSON, failure.status, failure.headers)
        else:
            self.status = failure.status
            event = b"event: error\n" if self.style == "anthropic" else b""
            await self.write(event + b"data: " + orjson.dumps(failure.body) + b"\n\n", more=False)


def plain(value: Any) -> Any:
    """What isn't JSON by itself: mappings that aren't dicts, tuples of our types."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(type(value).__name__)


def query_of(scope: Scope) -> dict[str, str]:
    """The query's fields; of several of one name the last. Raises ``BadInput``."""
    try:
        text = scope["query_string"].decode("ascii")
        return {name: values[-1] for name, values in parse_qs(text, keep_blank_values=True, max_num_fields=50).items()}
    except ValueError as error:
        raise BadInput(f"the query can't be read: {error}") from error


def timeout_of(exchange: Exchange) -> float | None:
    """``x-taskrouter-timeout``: how long the request may wait for its model, in seconds. Raises ``BadInput``."""
    text = exchange.header(b"x-taskrouter-timeout")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise BadInput(f"x-taskrouter-timeout is {text[:40]!r}; it must be a number of seconds, 0 or more")
    return min(seconds, LONGEST_WAIT_S)
