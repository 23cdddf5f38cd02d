"""``client.lease(…)`` against a real server: held as the library holds, and let go however its caller goes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrouter import connect, errors
from taskrouter.client import BlockingClient, Client, RemoteLease, inside
from taskrouter.http import streaming
from taskrouter.manager import Stream

from .administering import shared
from .client_holding import calls, client_server, run, until
from .holding import leases, resume
from .serving import API_KEY, Served
from .test_streams import seen

pytestmark = pytest.mark.usefixtures("no_keys")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.05)
    with client_server(tmp_path) as server:
        yield server


# --- inside -----------------------------------------------------------------------------------------------------------


def test_inside_the_block_the_model_is_held_and_answers(served: Served) -> None:
    async def work(client: Client) -> None:
        lease = client.lease("say", timeout=20)
        assert lease.option is None
        async with lease as model:
            assert isinstance(model, RemoteLease)
            assert repr(model) == f"<RemoteLease say/parrot at {served.url} held>"
            assert (model.option, model.info["label"]) == ("parrot", "parrot")
            assert (await model.chat("hello")).text == "parrot: hello"
            async with model.stream_chat("hello you") as chunks:
                assert "".join([chunk.text async for chunk in chunks]) == "parrot: hello you"
            assert leases(served) == 1
            with pytest.raises(errors.UnsupportedVerb, match="server"):
                _ = model.raw
            with pytest.raises(errors.UnsupportedVerb):
                await model.embed("x")
            with pytest.raises(RuntimeError, match="once"):
                await model.take()
        await until(lambda: leases(served) == 0)
        assert repr(lease) == f"<RemoteLease say/parrot at {served.url} left>"
        async with client.lease("two", option="right") as model:
            assert (await model.chat("x")).text == "right: x"
        async with client.lease("vectors") as model:
            assert len((await model.embed(["a", "b"])).vectors) == 2

    run(served, work)


def test_outside_of_its_block_a_lease_is_no_model(served: Served) -> None:
    async def work(client: Client) -> None:
        lease = client.lease("say")
        with pytest.raises(RuntimeError, match="inside its `async with`"):
            await lease.chat("x")
        with pytest.raises(RuntimeError, match="inside"):
            _ = lease.info
        async with lease as model:
            stream = model.stream_chat("x")
        for asked in (model.chat("x"), anext(stream)):
            with pytest.raises(RuntimeError, match="inside"):
                await asked
        with pytest.raises(RuntimeError, match="once"):
            await lease.take()
        assert inside._HELD.get() == ()
        for wrong in ("", "."):
            with pytest.raises(errors.BadInput):
                client.lease(wrong)

    run(served, work)


def test_handles_and_leases_of_the_task_use_the_lease_the_caller_is_in(served: Served) -> None:
    """Else they would wait for themselves: there is one slot."""

    async def work(client: Client) -> None:
        handle = client.handle("two", timeout=0)
        async with client.lease("two"):
            assert (await handle.chat("x")).text == "left: x"
            assert await _first(handle.stream_chat("x")) == "left: "
            assert (await asyncio.create_task(handle.chat("y"))).text == "left: y"
            async with client.lease("two", timeout=0) as inner:
                assert (await inner.chat("x")).text == "left: x"
                assert await _first(inner.stream_chat("x")) == "left: "
                assert inner.info["label"] == "left"
            assert (await client.handle("two", option="right").chat("x")).text == "right: x"
            async with client.lease("two", option="right") as other:
                assert (await other.chat("x")).text == "right: x"
            async with connect(served.url, api_key=API_KEY) as another:
                with pytest.raises(errors.Overloaded):
                    await another.handle("two", timeout=0).chat("x")
        await until(lambda: leases(served) == 0)
        assert (await handle.chat("x")).text == "left: x"

    run(served, work)


async def _first(stream: Stream) -> str:
    async with stream:
        return str((await anext(stream)).text)


def test_calls_inside_run_one_at_a_time(served: Served) -> None:
    async def work(client: Client) -> None:
        async with client.lease("slow") as model:
            both = [asyncio.create_task(model.chat(f"{place}")) for place in range(2)]
            await until(lambda: [held.calls for held in shared(served).leases] == [2])
            await until(lambda: len(calls(served)) == 1)
            resume(served, "slug")
            await until(lambda: len(calls(served)) == 2)
            resume(served, "slug")
            assert {(await each).text for each in both} == {"slug: 0", "slug: 1"}

    run(served, work)


@pytest.mark.parametrize(
    ("kind", "task", "how"),
    [
        (errors.UnknownTask, "nobody", {}),
        (errors.UnknownOption, "say", {"option": "nothing"}),
        (errors.InsufficientMemory, "huge", {}),
        (errors.Overloaded, "cold", {"timeout": 0.01}),
    ],
)
def test_entering_raises_what_the_library_raises(served: Served, kind: type[Exception], task: str, how: Any) -> None:
    async def work(client: Client) -> None:
        lease = client.lease(task, **how)
        with pytest.raises(kind) as caught:
            await lease.__aenter__()
        if kind is errors.Overloaded:
            assert isinstance(caught.value, errors.Overloaded)
            assert caught.value.retry_after_s
        with pytest.raises(RuntimeError, match="inside"):
            await lease.chat("x")

    run(served, work)


# --- let go -----------------------------------------------------------------------------------------------------------


def test_a_caller_cancelled_while_it_waits_leaves_nothing(served: Served) -> None:
    async def work(client: Client) -> None:
        taking = asyncio.create_task(client.lease("cold").take())
        await until(lambda: served.backend is not None and served.backend.labels("load-start") == ["ice"])
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        await until(lambda: served.backend is not None and served.backend.labels("load-cancelled") == ["ice"])

    run(served, work)


@pytest.mark.slow
def test_a_caller_cancelled_in_the_moment_of_the_grant_leaves_nothing(served: Served) -> None:
    """More and more turns of its loop after the server has granted it, until the client has heard of it."""

    async def granted(client: Client, turns: int) -> bool:
        lease = client.lease("say")
        taking = asyncio.create_task(lease.take())
        while not served.manager.leases:  # noqa: ASYNC110 - another loop changes it, and no turn of this one may be lost
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        taking.cancel()
        (done,) = await asyncio.gather(taking, return_exceptions=True)
        if done is None:
            await lease.leave()
        else:
            assert isinstance(done, asyncio.CancelledError)
        await until(lambda: leases(served) == 0)
        return done is None

    async def work(client: Client) -> None:
        assert not await granted(client, 0)
        turns = 1
        while not await granted(client, turns):
            turns *= 2

    run(served, work)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_caller_cancelled_in_a_call_inside_lets_go(served: Served, streamed: bool) -> None:
    async def user(client: Client) -> None:
        async with client.lease("slow") as model:
            if streamed:
                async for _ in model.stream_chat("x y"):
                    pass
            else:
                await model.chat("x")

    async def work(client: Client) -> None:
        using = asyncio.create_task(user(client))
        await until(lambda: calls(served) == ["slug"])
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
        await until(lambda: leases(served) == 0)
        assert served.backend is not None
        assert served.backend.labels("call-cancelled") == ["slug"]

    run(served, work)


def test_a_lease_that_is_dropped_is_let_go_with_a_warning(served: Served) -> None:
    async def work(client: Client) -> None:
        held = [client.lease("say")]
        await held[0].take()
        with pytest.warns(ResourceWarning, match="say/parrot .* was never released"):
            held.clear()
        await until(lambda: leases(served) == 0)

    run(served, work)


def test_a_client_that_is_closed_lets_go_of_everything(served: Served) -> None:
    async def work(client: Client) -> None:
        async with client.lease("say") as model:
            await client.close()
            await until(lambda: leases(served) == 0)
            with pytest.raises((errors.ManagerClosed, errors.ServerUnreachable), match="closed"):
                await model.chat("x")

    run(served, work)


# --- for synchronous callers ------------------------------------------------------------------------------------------


@pytest.fixture
def blocking(served: Served) -> Iterator[BlockingClient]:
    with connect(served.url, api_key=API_KEY).blocking() as client:
        yield client


def test_a_blocking_lease_is_held_by_its_thread(served: Served, blocking: BlockingClient) -> None:
    with blocking.lease("two", timeout=20) as model:
        assert (model.option, model.info["label"]) == ("left", "left")
        assert model.chat("x").text == "left: x"
        assert "".join(chunk.text for chunk in model.stream_chat("x y")) == "left: x y"
        assert blocking.handle("two", timeout=0).chat("x").text == "left: x"
        with blocking.lease("two", timeout=0) as inner:
            assert inner.chat("x").text == "left: x"
        found: list[Any] = []

        def other() -> None:
            try:
                blocking.handle("two", timeout=0).chat("x")
            except errors.TaskRouterError as error:
                found.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(20)
        assert [type(each) for each in found] == [errors.Overloaded]
        assert leases(served) == 1
    seen(lambda: leases(served) == 0)
    with pytest.raises(RuntimeError, match="inside"):
        model.chat("x")
    with pytest.raises(errors.UnknownTask), blocking.lease("nobody"):
        raise AssertionError
    with pytest.raises(ZeroDivisionError), blocking.lease("say"):
        raise ZeroDivisionError
    seen(lambda: leases(served) == 0)
