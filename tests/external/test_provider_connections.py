"""Connections to providers: lost, refused, silent, left and closed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import warnings
from dataclasses import replace
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.backends.external.base import Endpoint
from taskrouter.verbs import ChatRequest

from .failing import ask, failure
from .subjects import HELLO, SUBJECTS, Subject, connected
from .wire import Reply, answer, serving

pytestmark = pytest.mark.anyio
each = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
ways = pytest.mark.parametrize("way", ["call", "stream"])


@each
@ways
async def test_a_server_that_hangs_up_before_it_answers_is_unreachable(subject: Subject, way: str) -> None:
    assert isinstance(await failure(subject, Reply(drop=True), way), errors.ProviderUnreachable)


@each
@ways
async def test_a_pool_that_is_full_is_our_own_and_no_timeout_of_the_provider(subject: Subject, way: str) -> None:
    async with serving() as wire:
        wire.script(Reply(wait=asyncio.Event()))
        async with connected(subject, replace(subject.endpoint(wire.url), max_connections=1)) as connection:
            busy = asyncio.create_task(subject.ask(connection))
            await wire.asked()
            with pytest.raises(errors.Overloaded, match=r"all of providers\.\*\.max_connections were in use"):
                await ask(subject, connection, way, timeout_s=0.3)
            assert (len(wire.requests), wire.connections) == (1, 1)
            busy.cancel()
            await asyncio.gather(busy, return_exceptions=True)


@each
@ways
async def test_connecting_has_a_bound_of_its_own(subject: Subject, way: str) -> None:
    with contextlib.ExitStack() as sockets:
        server = sockets.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):  # its queue is full: nobody else gets an answer
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        async with connected(subject, replace(subject.endpoint(url), connect_timeout_s=0.1)) as connection:
            with pytest.raises(errors.ProviderUnreachable, match=r"within providers\.\*\.connect_timeout_s"):
                await ask(subject, connection, way)


@each
@ways
async def test_a_slow_first_byte_is_a_timeout(subject: Subject, way: str) -> None:
    # Long enough for a busy machine to send the request, which an SDK's first call takes its time for.
    found = await failure(subject, Reply(wait=asyncio.Event()), way, timeout_s=0.5)
    assert isinstance(found, errors.ProviderTimeout)
    assert "within 0.5 s" in str(found)


@each
async def test_a_stream_that_falls_silent_is_a_timeout(subject: Subject) -> None:
    reply = subject.cut(subject.streamed_text(["one", "two"])[:1], pause=asyncio.Event())
    assert isinstance(await failure(subject, reply, "stream", timeout_s=0.5), errors.ProviderTimeout)


@each
async def test_a_call_is_bounded_as_a_whole(subject: Subject) -> None:
    """A body that never ends keeps the SDKs' own bounds, which are on each step, from being reached."""
    reply = Reply(pieces=[b" "] * 3, pause=asyncio.Event())
    assert isinstance(await failure(subject, reply, timeout_s=0.5), errors.ProviderTimeout)


@each
@ways
async def test_nobody_listening_is_unreachable(subject: Subject, way: str) -> None:
    with socket.socket() as held:  # bound and not listening: nobody else gets the port meanwhile
        held.bind(("127.0.0.1", 0))
        endpoint = subject.endpoint(f"http://127.0.0.1:{held.getsockname()[1]}")
        async with connected(subject, endpoint) as connection:
            with pytest.raises(errors.ProviderUnreachable, match="the option 'far' can't be reached"):
                await ask(subject, connection, way)


@each
async def test_a_host_that_has_no_address_is_unreachable(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_args: Any, **_how: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with connected(subject, subject.endpoint("http://nowhere.invalid")) as connection:
        with pytest.raises(errors.ProviderUnreachable, match="Name or service not known"):
            await subject.ask(connection)


@each
@ways
async def test_cancelling_closes_the_connection(subject: Subject, way: str) -> None:
    async with serving() as wire, subject.connected(wire) as connection:
        wire.script(Reply(wait=asyncio.Event()))
        task = asyncio.create_task(ask(subject, connection, way))
        await wire.asked()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wire.left()
        wire.script(answer(subject.text("x")))
        assert (await subject.ask(connection)).text == "x"


@each
async def test_leaving_a_stream_early_closes_its_connection(subject: Subject) -> None:
    async with serving() as wire, subject.connected(wire) as connection:
        wire.script(subject.cut(subject.streamed_text(["one", "two", "three"])[:3], pause=asyncio.Event()))
        pieces: Any = connection.stream("stream_chat", ChatRequest(HELLO), subject.call())
        assert (await anext(pieces)).text == "one"
        await pieces.aclose()
        await wire.left()


@each
async def test_cancelling_a_stream_under_way_closes_its_connection(subject: Subject) -> None:
    async with serving() as wire, subject.connected(wire) as connection:
        wire.script(subject.cut(subject.streamed_text(["one", "two", "three"])[:3], pause=asyncio.Event()))
        begun = asyncio.Event()

        async def read() -> None:
            pieces: Any = connection.stream("stream_chat", ChatRequest(HELLO), subject.call())
            async for _ in pieces:
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wire.left()


@each
async def test_closing_twice_is_closing(subject: Subject) -> None:
    async with serving() as wire:
        connection = subject.provider().connect(subject.endpoint(wire.url))
        wire.script(answer(subject.text("x")))
        await subject.ask(connection)
        await connection.close()
        await connection.close()
        with pytest.raises(errors.ProviderFailed):
            await subject.ask(connection)


@each
async def test_a_connection_nobody_used_is_closed_too(subject: Subject) -> None:
    await subject.provider().connect(Endpoint(None, None)).close()


@each
async def test_nothing_is_left_open_once_it_is_closed(subject: Subject) -> None:
    async with serving() as wire:
        async with subject.connected(wire) as connection:
            wire.script(answer(subject.text("x")), subject.stream(subject.streamed_text(["x"])))
            await subject.ask(connection)
            await subject.pieces(connection)
        del connection
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            await asyncio.sleep(0)
            gc.collect()
        assert [str(each.message) for each in warned if issubclass(each.category, ResourceWarning)] == []
