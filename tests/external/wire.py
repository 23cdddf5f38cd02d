"""A server on a loopback port that says what its script says, and writes down what it was asked.

HTTP/1.1 by hand, on purpose: it must be able to do what no server should (cut a stream, say nothing, hang up).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WITHIN_S = 10.0
"""How long a test waits for what must come at once; only a failing test ever waits that long."""


@dataclass(frozen=True)
class Reply:
    """What is answered to one request.

    ``pieces``, where given, are sent one by one in chunked encoding in place of ``body``. ``wait`` is waited for before
    the first byte, ``pause`` after the last piece (and the stream stays open meanwhile). ``drop``: hang up instead of
    answering; ``cut``: hang up after the last piece, without ending the stream.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    pieces: Sequence[bytes] | None = None
    wait: asyncio.Event | None = None
    pause: asyncio.Event | None = None
    drop: bool = False
    cut: bool = False


def answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """JSON."""
    return Reply(json.dumps(data).encode(), status, headers or {})


def stream(pieces: Sequence[bytes], **how: Any) -> Reply:
    """Server-sent events, each a piece as it goes over the wire."""
    return Reply(content_type="text/event-stream", pieces=pieces, **how)


@dataclass(frozen=True)
class Seen:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Wire:
    """The server. ``requests`` are all it got, ``connections`` how many sockets they came over."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.connections = 0
        self._script: deque[Reply] = deque()
        self._left = asyncio.Event()
        self._asked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    def script(self, *replies: Reply) -> None:
        """Replies to the next requests, in order; a request too many is answered 599."""
        self._script.extend(replies)

    @property
    def body(self) -> Any:
        """The JSON body of the only request."""
        (only,) = self.requests
        return only.json

    async def left(self) -> None:
        """Wait until a caller hung up before its answer was whole."""
        await asyncio.wait_for(self._left.wait(), WITHIN_S)

    async def asked(self) -> None:
        """Wait until a request has come."""
        await asyncio.wait_for(self._asked.wait(), WITHIN_S)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while (seen := await _request(reader)) is not None:
                self.requests.append(seen)
                self._asked.set()
                reply = self._script.popleft() if self._script else Reply(b'{"error": "not in the script"}', 599)
                if not await self._say(reply, reader, writer):
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass  # the caller went away, or the test is over
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _say(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        if reply.wait is not None and not await self._until(reply.wait, reader):
            return False
        if reply.drop:
            return False
        head = {"content-type": reply.content_type, **reply.headers}
        how = {"transfer-encoding": "chunked"} if reply.pieces is not None else {"content-length": str(len(reply.body))}
        lines = [f"HTTP/1.1 {reply.status} Said", *(f"{name}: {value}" for name, value in (head | how).items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + reply.body)
        for piece in reply.pieces or ():
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
        await writer.drain()
        if reply.pause is not None and not await self._until(reply.pause, reader):
            return False
        if reply.cut:
            return False
        if reply.pieces is not None:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _until(self, event: asyncio.Event, reader: asyncio.StreamReader) -> bool:
        """Wait for the event, or for the caller to hang up: then ``False``."""
        waits = asyncio.create_task(event.wait())
        hangs_up = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({waits, hangs_up}, return_when=asyncio.FIRST_COMPLETED)
            if event.is_set():
                return True
            self._left.set()
            return False
        finally:
            for task in (waits, hangs_up):
                task.cancel()
            await asyncio.gather(waits, hangs_up, return_exceptions=True)


async def _request(reader: asyncio.StreamReader) -> Seen | None:
    """The next request, or ``None`` at the end of the connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    raw = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(method, path, headers, raw)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Wire]:
    wire = Wire()
    await wire.start()
    try:
        yield wire
    finally:
        await wire.stop()
