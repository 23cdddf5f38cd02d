"""A server whose models are leased by a client, and what its tests ask of both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskrouter import connect
from taskrouter.backends.fake import FakeBackend
from taskrouter.client import Client

from .administering import shared
from .holding import leases, task
from .serving import ADMIN_KEY, API_KEY, Served, keys, serving, written
from .test_streams import seen
from .wire_stub import Stub

TASKS: dict[str, Any] = {
    "say": task("parrot", slots=1),
    "two": {
        "kind": "chat", "selected": "left",
        "options": {**task("left", slots=1)["options"], **task("right", slots=1)["options"]},
    },
    "cold": {**task("ice", hang="load"), "max_wait_s": 30},
    "slow": task("slug", hang="call"),
    "huge": task("giant", 100),
    "vectors": {"kind": "embedding", "selected": "it", "options": task("it")["options"]},
}  # fmt: skip


@contextmanager
def client_server(folder: Path) -> Iterator[Served]:
    """Serve them; in the end nobody may hold anything."""
    file = written(folder, TASKS, memory={"devices": {"cpu": {"budget": "8GiB"}}, "min_residency_s": 0})
    with serving(file, keys(), fake=FakeBackend()) as server:
        yield server
        if not server.server.should_exit:
            seen(lambda: leases(server) == 0)
    assert list(shared(server).leases) == []
    assert server.manager.leases == {}


def run(served: Served | Stub, work: Callable[[Client], Awaitable[Any]], **how: Any) -> Any:
    async def main() -> Any:
        async with connect(served.url, **{"api_key": API_KEY, "admin_key": ADMIN_KEY, **how}) as client:
            return await work(client)

    return asyncio.run(asyncio.wait_for(main(), 60))


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(seen, condition)


def calls(served: Served) -> list[str]:
    assert served.backend is not None
    return served.backend.labels("call-start")
