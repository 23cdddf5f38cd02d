"""An admin, as the tests of the admin API, of events and of metrics need one."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from taskrouter.http.state import State

from .serving import ADMIN_KEY, API_KEY, Served

GIB = 1 << 30
CLAUDE = {"model_id": "claude-sonnet-4-5", "framework": "external_api", "provider": "anthropic"}


def fake(name: str, vram_gb: float = 1, **more: Any) -> dict[str, Any]:
    return {"framework": "fake", "model_id": name, "vram_gb": vram_gb, **more}


TASKS: dict[str, Any] = {
    "say": {"kind": "chat", "selected": "one", "options": {"one": fake("o"), "two": fake("t", 6), "out": dict(CLAUDE)}},
    "write": {"selected": "it", "options": {"it": fake("w", 3)}},
    "huge": {"selected": "giant", "options": {"giant": fake("g", 100)}},
    "bad": {"selected": "broken", "options": {"broken": fake("b", engine_args={"fail": "error"})}},
}


def call(
    served: Served, path: str, body: Any = None, *, key: str | None = ADMIN_KEY, post: bool | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Ask; the status, the JSON, the headers."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    method = "POST" if (body is not None if post is None else post) else "GET"
    request = urllib.request.Request(served.url + path, data, method=method)
    if key is not None:
        request.add_header("authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer), dict(answer.headers.items())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers.items())


def ok(served: Served, path: str, body: Any = None) -> Any:
    status, found, _ = call(served, path, body)
    assert status == 200, found
    return found


def ask(served: Served, model: str = "say") -> tuple[int, Any, dict[str, str]]:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    return call(served, "/v1/chat/completions", body, key=API_KEY)


def ended(served: Served, name: str) -> dict[str, Any]:
    """A load's operation, once it has ended."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found: dict[str, Any] = ok(served, f"/admin/operations/{name}")
        if found["state"] != "loading":
            return found
    raise AssertionError("it did not end")


def state(served: Served, option: str) -> str:
    rows = ok(served, "/admin/models")["models"]
    return str(next(each["state"] for each in rows if each["option"] == option))


def wait_for(true: Callable[[], bool]) -> None:
    """Ask again until it is true."""
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until, "it never came"


@contextmanager
def beside(work: Callable[..., Any], *arguments: Any) -> Iterator[Future[Any]]:
    """Do this in a thread meanwhile; it has ended when the block is left."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work, *arguments)


def hang_up(served: Served, path: str, body: Any, *, key: str = ADMIN_KEY) -> socket.socket:
    """Ask, and leave the answer unread: whoever closes this has gone away."""
    host, port = served.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(data)}\r\n\r\n"
    found = socket.create_connection((host, int(port)), timeout=20)
    found.sendall(head.encode() + data)
    return found


def shared(served: Served) -> State:
    """What the server's requests share."""
    config: Any = served.server.config
    found: State = config.app.state.taskrouter
    return found
