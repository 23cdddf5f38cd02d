"""A server of ours on loopback, as clients meet it: real sockets, a thread and a loop of its own."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from taskrouter.backends.base import Backend
from taskrouter.backends.fake import FakeBackend
from taskrouter.backends.registry import Registry
from taskrouter.http.app import create_app
from taskrouter.http.ending import Server
from taskrouter.http.keys import Keys, read_keys
from taskrouter.http.serving import listen
from taskrouter.manager import ModelManager, StillMachine
from taskrouter.types import GIB

API_KEY, ADMIN_KEY = "a-key-that-is-long-enough", "the-admin's-own-long-key"
ENVIRON = {"TASKROUTER_API_KEYS": f"tests={API_KEY}", "TASKROUTER_ADMIN_KEY": ADMIN_KEY}


@dataclass
class Served:
    """A server that runs: its address, and its manager (to be used on its own loop, by ``run``)."""

    url: str
    manager: ModelManager
    loop: asyncio.AbstractEventLoop
    server: uvicorn.Server
    backend: FakeBackend | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def run(self, work: Any) -> Any:
        """Run a coroutine on the server's loop, and wait for it."""
        return self.start(work).result(60)

    def start(self, work: Any) -> Future[Any]:
        """The same, not waited for."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)


def keys(environ: Mapping[str, str] = ENVIRON, file: Path | None = None) -> Keys:
    return read_keys(environ, api_keys_env="TASKROUTER_API_KEYS", admin_key_env="TASKROUTER_ADMIN_KEY", file=file)


def written(folder: Path, tasks: Mapping[str, Any], **sections: Any) -> Path:
    """A models.yaml of these tasks, warm-up off where nothing else is said."""
    file = folder / "models.yaml"
    whole = {"inference": {"warmup_on_startup": False}, "memory": {"devices": {"cpu": {"budget": "8GiB"}}}, **sections}
    file.write_text(json.dumps({"tasks": tasks, **whole}), encoding="utf-8")
    return file


@contextmanager
def serving(
    file: Path,
    known: Keys | None = None,
    *,
    fake: FakeBackend | None = None,
    backends: Mapping[str, Backend] | None = None,
    drain_s: int = 5,
) -> Iterator[Served]:
    """Serve a file; ended, and all its models unloaded, on the way out.

    ``fake`` stands for ``framework: fake``, ``backends`` for other frameworks. ``drain_s``: what is under way at
    the end is given so many seconds.
    """
    registry = Registry()
    for name, backend in {**(backends or {}), **({} if fake is None else {"fake": fake})}.items():
        registry.register(name, backend)
    manager = ModelManager(file, machine=StillMachine({"cpu": 16 * GIB}), registry=registry)
    listening = listen("127.0.0.1", 0)
    app = create_app(manager, known if known is not None else Keys())
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=drain_s)
    begun = threading.Event()

    class Told(Server):
        """Says when it has started."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            begun.set()

    server = Told(config)
    loops: list[asyncio.AbstractEventLoop] = []
    failed: list[BaseException] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listening])

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
        finally:
            begun.set()

    thread = threading.Thread(target=work, name="server", daemon=True)
    thread.start()
    assert begun.wait(30)
    assert not failed, failed
    try:
        host, port = listening.getsockname()[:2]
        yield Served(f"http://{host}:{port}", manager, loops[0], server, fake)
        if manager.performer is not None and not server.should_exit:
            assert loops[0].is_running()
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
    assert not thread.is_alive()
    assert not failed, failed
