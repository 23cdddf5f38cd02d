"""Clients written by hand on bare sockets, for what no SDK would do."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


class Raw:
    """One connection; bytes in and out."""

    def __init__(self, url: str, timeout_s: float = 20, room: int = 0) -> None:
        parts = urlsplit(url)
        self.socket = socket.socket()
        self.socket.settimeout(timeout_s)
        if room:  # bytes that may wait for a slow reader on its side
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        self.socket.connect((parts.hostname or "", parts.port or 0))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, path: str, body: Any, headers: Mapping[str, str] | None = None, method: str = "POST") -> None:
        """Send a request; ``body``: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: x", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if not any(name.lower() == "content-length" for name in headers or {}):
            lines.append(f"content-length: {len(data)}")
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    def until(self, mark: bytes) -> bytes:
        """Read until these bytes have come, or the end."""
        found, searched = bytearray(), 0
        while found.find(mark, searched) < 0:
            searched = max(0, len(found) - len(mark))
            data = self.socket.recv(65536)
            if not data:
                break
            found += data
        return bytes(found)

    def rest(self) -> bytes:
        return self.until(b"\0never\0")


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def json_of(answer: bytes) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        whole, rest = b"", body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            whole, rest = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        body = whole
    return json.loads(body)


CHAT = "/v1/chat/completions"


def chat(model: str = "say", text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}
