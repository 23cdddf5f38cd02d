"""Leases of a client that the server ends, or whose connection breaks: the next call says what happened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from taskrouter import errors
from taskrouter.client import Client
from taskrouter.client import leases as module
from taskrouter.http import streaming

from .client_holding import client_server, run, until
from .holding import LEASE, state_of
from .serving import Served
from .wire_stub import Stub

pytestmark = pytest.mark.usefixtures("no_keys")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.05)
    with client_server(tmp_path) as server:
        yield server


def test_the_next_call_raises_what_ended_the_lease(served: Served) -> None:
    async def work(client: Client) -> None:
        assert served.backend is not None
        async with client.lease("say") as model:
            served.loop.call_soon_threadsafe(served.backend.kill, "parrot")
            await until(lambda: state_of(served, "parrot") == "disk")
            for _ in range(2):
                with pytest.raises(errors.ModelDied):
                    await model.chat("x")
            # A handle gets a living one, as in the library.
            assert (await client.handle("say").chat("x")).text == "parrot: x"
        async with client.lease("say") as model:
            await client.unload_model("say", force=True)
            with pytest.raises(errors.Unloaded):
                await anext(model.stream_chat("x"))
        async with client.lease("say") as model:
            assert (await model.chat("x")).text == "parrot: x"

    run(served, work)


def test_a_call_inside_runs_while_the_model_is_drained(served: Served) -> None:
    async def work(client: Client) -> None:
        async with client.lease("say") as model:
            unloading = asyncio.create_task(client.unload_model("say"))
            await until(lambda: state_of(served, "parrot") == "draining")
            assert (await model.chat("x")).text == "parrot: x"
        assert (await unloading)["state"] == "disk"

    run(served, work)


def test_a_server_that_ends_is_told_apart_from_one_that_breaks(served: Served) -> None:
    async def work(client: Client) -> None:
        async with client.lease("say") as model:
            served.server.should_exit = True
            opened = model._opened
            assert opened is not None
            await opened.ended(20)
            with pytest.raises(errors.ManagerClosed, match="shutting down"):
                await model.chat("x")

    run(served, work)


def granting(server: Stub, *pieces: bytes, called: Callable[[], None] = lambda: None) -> None:
    """A server that grants, and says these; then it breaks off, once ``called``."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path != "/v1/leases":
            called()
            body = {"error": {"message": "no such lease", "code": "unknown_lease"}}
            return web.json_response(body, status=404)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"lease": "it", "task": "t", "option": "o"}\n\n')
        await asyncio.to_thread(going.wait, 20)
        for piece in pieces:
            await response.write(piece)
        return response

    going = server.closed
    server.answer = answer


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([b'data: {"error": {"message": "it died", "code": "model_died"}}\n\n'], errors.ModelDied),
        ([b": still held\n\n"], errors.ServerUnreachable),
        ([b"data: 7\n\n"], errors.ServerUnreachable),
    ],
)
def test_a_call_that_hears_first_that_its_lease_is_gone_says_why(
    server: Stub, pieces: list[bytes], kind: type[Exception]
) -> None:
    granting(server, *pieces, called=server.closed.set)

    async def work(client: Client) -> None:
        async with client.lease("t") as model:
            for asked in (model.chat("x"), anext(model.stream_chat("x"))):
                with pytest.raises(kind):
                    await asked

    run(server, work)
    asked = next(each for each in server.seen if each["path"] != "/v1/leases")
    assert (asked["path"], asked["headers"][LEASE]) == ("/v1/tasks/t/o", "it")


def test_a_lease_that_nobody_knows_why_it_is_gone_is_refused(server: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOLD_S", 0.01)
    granting(server)

    async def work(client: Client) -> None:
        async with client.lease("t") as model:
            with pytest.raises(errors.ServerRefused, match="no such lease"):
                await model.chat("x")
        server.closed.set()

    run(server, work)


@pytest.mark.parametrize("said", [{}, {"lease": "it"}])
def test_a_grant_that_is_none_is_told(server: Stub, said: Any) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: " + json.dumps(said).encode() + b"\n\n")
        await asyncio.Event().wait()
        return response

    server.answer = answer

    async def work(client: Client) -> None:
        with pytest.raises(errors.ServerUnreachable, match="same version"):
            await client.lease("t").__aenter__()

    run(server, work)
