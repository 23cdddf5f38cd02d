"""The stub's side of HTTP: no library, so that it starts at once and can break off wherever it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

HEAD = b"HTTP/1.1 %d %s\r\nServer: stub\r\nContent-Type: %s\r\n"


Handle = Callable[["Connection", str, str, str, bytes], Awaitable[None]]
"""Answers a request: the connection to answer on, the method, the path, what stands under Authorization, the body."""


class Broken(Exception):
    """The connection was broken off on purpose."""


class Connection(asyncio.Protocol):
    """One client: requests one after another; one that goes away has its call cancelled."""

    transport: asyncio.Transport

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.rest = b""
        self.query = ""
        self.task: asyncio.Task[None] | None = None
        self.room = asyncio.Event()
        self.room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    async def drained(self) -> None:
        await self.room.wait()

    def data_received(self, data: bytes) -> None:
        self.rest += data
        if self.task is None:
            self.next_request()

    def next_request(self) -> None:
        head, end, rest = self.rest.partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self.rest = rest[length:]
        method, target, _ = first.split(" ")
        path, _, self.query = target.partition("?")
        self.task = asyncio.get_running_loop().create_task(
            self.run(method, path, headers.get("authorization", ""), rest[:length])
        )

    async def run(self, method: str, path: str, key: str, raw: bytes) -> None:
        try:
            await self.handle(self, method, path, key, raw)
        except Broken:
            return
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self.refuse(400, f"{type(error).__name__}: {error}")
        self.task = None
        self.next_request()

    def answer(self, status: int, data: dict[str, Any]) -> None:
        self.send(status, json.dumps(data).encode(), b"application/json")

    def refuse(self, status: int, message: str) -> None:
        self.answer(status, {"error": {"message": message, "type": "stub", "param": None, "code": status}})

    def send(self, status: int, body: bytes, kind: bytes) -> None:
        self.transport.write(HEAD % (status, b"Stub", kind) + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    def cut(self, status: int, body: bytes) -> None:
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        self.transport.write(HEAD % (status, b"Stub", b"application/json") + length + body[: len(body) // 2])
        self.break_off()

    def begin_stream(self) -> None:
        self.transport.write(HEAD % (200, b"OK", b"text/event-stream") + b"Transfer-Encoding: chunked\r\n\r\n")

    def piece(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end_stream(self) -> None:
        self.transport.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        self.transport.close()
        raise Broken
