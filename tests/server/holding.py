"""Who holds a lease or a pipeline of a server by hand, and how calls are made inside."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from .serving import API_KEY, Served

LEASE, PIPELINE = "x-taskrouter-lease", "x-taskrouter-pipeline"
CHAT = {"messages": "hello"}


def option(name: str = "m", vram_gb: float = 1, /, **script: Any) -> dict[str, Any]:
    args = {"bytes": f"{vram_gb}GiB", **script}
    return {"framework": "fake", "model_id": name, "vram_gb": vram_gb, "engine_args": args}


def task(name: str, vram_gb: float = 1, /, **script: Any) -> dict[str, Any]:
    """A task that chats, of one option."""
    return {"kind": "chat", "selected": name, "options": {name: option(name, vram_gb, **script)}}


class Address(Protocol):
    """Somewhere a server listens."""

    url: str


class Holder:
    """A connection that holds: its head has been read, the rest comes line by line."""

    def __init__(self, served: Address, path: str, body: Any, key: str, headers: Mapping[str, str]) -> None:
        request = urllib.request.Request(served.url + path, json.dumps(body).encode(), dict(headers))
        request.add_header("authorization", f"Bearer {key}")
        self.answer = urllib.request.urlopen(request, timeout=20)
        self.headers: Mapping[str, str] = self.answer.headers
        self.comments: list[str] = []

    def lines(self) -> list[str]:
        """What is sent next: the lines up to an empty one; none at the end."""
        found: list[str] = []
        while line := self.answer.readline():
            if line == b"\n":
                break
            found.append(line.decode().rstrip("\n"))
        return found

    def event(self) -> dict[str, Any]:
        """The next event; comments before it are kept."""
        while (lines := self.lines()) and lines[0].startswith(":"):
            self.comments += lines
        assert lines, "it ended"
        found: dict[str, Any] = json.loads(lines[0].removeprefix("data: "))
        return found

    def error(self) -> Any:
        """The code of the last event, behind which nothing comes."""
        found = self.event()["error"]
        assert self.lines() == []
        return found["code"]

    def close(self) -> None:
        self.answer.close()


@contextmanager
def opened(
    served: Address, path: str, body: Any, *, key: str = API_KEY, headers: Mapping[str, str] | None = None
) -> Iterator[Holder]:
    """Ask for something that lasts; when the block is left, the connection is closed."""
    holder = Holder(served, path, body, key, headers or {})
    try:
        yield holder
    finally:
        holder.close()


@contextmanager
def leased(served: Served, task: str = "say", *, key: str = API_KEY, **body: Any) -> Iterator[tuple[Holder, str]]:
    """A lease that is held, and its id."""
    with opened(served, "/v1/leases", {"task": task, **body}, key=key) as holder:
        yield holder, holder.event()["lease"]


def post(
    served: Served, path: str, body: Any = CHAT, *, key: str | None = API_KEY, **headers: str
) -> tuple[int, Any, Mapping[str, str]]:
    """Ask; the status, the JSON, the headers. ``lease`` and ``pipeline`` say what the request is inside of."""
    request = urllib.request.Request(served.url + path, json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    if key is not None:
        request.add_header("authorization", f"Bearer {key}")
    for name, value in headers.items():
        request.add_header(f"x-taskrouter-{name}", value)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer), dict(answer.headers.items())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers.items())


def refused(answer: tuple[int, Any, Mapping[str, str]]) -> tuple[int, str]:
    """The status and the code of a refusal."""
    return answer[0], answer[1]["error"]["code"]


def leases(served: Served) -> int:
    """The leases of the manager that are held."""

    async def look() -> int:
        return sum(model.leases for model in served.manager.statistics().models.values())

    found: int = served.run(look())
    return found


def state_of(served: Served, label: str) -> str:
    """The state of the model of this label."""

    async def look() -> str:
        models = served.manager.statistics().models.values()
        return next((each.state.value for each in models if each.label == label), "disk")

    found: str = served.run(look())
    return found


def resume(served: Served, label: str) -> None:
    """Let go on what hangs on this model."""
    assert served.backend is not None
    served.loop.call_soon_threadsafe(served.backend.resume, label)
