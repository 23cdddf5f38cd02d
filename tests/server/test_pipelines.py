"""Pipelines over HTTP, by hand and by the client: what comes is loaded ahead, for as long as a connection lasts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from taskrouter import connect, errors
from taskrouter.backends.fake import FakeBackend
from taskrouter.client import Client
from taskrouter.http import streaming
from taskrouter.http.pipelines import MOST_DEEP

from .administering import ok, shared
from .client_holding import run, until
from .clients import CHAT as CHAT_PATH
from .clients import Raw, chat
from .holding import CHAT, PIPELINE, leased, leases, opened, post, refused, task
from .serving import API_KEY, Served, keys, serving, written
from .test_streams import seen
from .wire_stub import HEADERS, RESULTS, Stub

pytestmark = pytest.mark.usefixtures("no_keys")
OTHER = "another-long-enough-key"
STEPS = ["hear", "see", "tell"]
TASKS = {name: task(name, 0.03) for name in STEPS}
"""Small, as they stay for as long as loading the next is believed to take."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """There is room for two of the three."""
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.05)
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps([{"name": "other", "key": OTHER, "tasks": ["hear"]}]))
    memory = {"devices": {"cpu": {"budget": "80MiB"}}, "min_residency_s": 0}
    sections = {"memory": memory, "default_task": "hear"}
    with serving(written(tmp_path, TASKS, **sections), keys(file=file), fake=FakeBackend()) as server:
        yield server
        if not server.server.should_exit:
            seen(lambda: ranks(server) == {})
    assert list(shared(server).pipelines) == []


def ranks(served: Served) -> Any:
    """What the core was told of what comes."""
    return served.manager._core._hints.ranks


def loads(served: Served) -> list[str]:
    assert served.backend is not None
    return served.backend.labels("load-start")


def left(served: Served) -> list[str]:
    """What is left of each pipeline."""
    return [repr(each.pipeline) for each in shared(served).pipelines]


def test_what_is_asked_inside_moves_it_and_what_comes_is_loaded_ahead(served: Served) -> None:
    with opened(served, "/v1/pipelines", {"tasks": STEPS}) as holder:
        told = holder.event()
        assert told == {"pipeline": told["pipeline"], "tasks": STEPS}
        seen(lambda: loads(served) == ["hear", "see"])
        assert post(served, "/v1/tasks/hear")[0] == 200  # outside: it says nothing
        assert left(served) == ["<Pipeline hear → see → tell>"]
        assert post(served, "/v1/tasks/hear", pipeline=told["pipeline"])[0] == 200
        seen(lambda: loads(served) == ["hear", "see", "tell"])
        assert left(served) == ["<Pipeline see → tell>"]
        assert post(served, CHAT_PATH, chat("see"), pipeline=told["pipeline"])[0] == 200
        assert left(served) == ["<Pipeline tell>"]
        assert holder.lines() == [": still held"]
    seen(lambda: ranks(served) == {})
    # What has ended says nothing, and is in nobody's way.
    assert post(served, "/v1/tasks/tell", pipeline=told["pipeline"])[0] == 200


def test_a_lease_taken_inside_moves_it(served: Served) -> None:
    with opened(served, "/v1/pipelines", {"tasks": ["default", "see"]}) as holder:
        told = holder.event()
        assert told["tasks"] == ["hear", "see"]
        said = {PIPELINE: told["pipeline"]}
        with opened(served, "/v1/leases", {"task": "hear"}, headers=said) as lease:
            lease.event()
            assert left(served) == ["<Pipeline see>"]


@pytest.mark.parametrize(
    ("key", "body", "wanted"),
    [
        (API_KEY, {"tasks": ["hear", "sea"]}, (404, "unknown_task")),
        (API_KEY, {"tasks": ["hear/hear"]}, (400, "bad_input")),
        (API_KEY, {"tasks": "hear"}, (400, "bad_input")),
        (API_KEY, {"tasks": [""]}, (400, "bad_input")),
        (API_KEY, {}, (400, "bad_input")),
        (OTHER, {"tasks": ["hear", "see"]}, (403, "task_not_allowed")),
        ("a-key-of-nobody's", {"tasks": ["hear"]}, (401, "invalid_api_key")),
    ],
)
def test_every_task_must_be_there_and_the_keys_own(served: Served, key: str, body: Any, wanted: Any) -> None:
    assert refused(post(served, "/v1/pipelines", body, key=key)) == wanted


def test_an_id_is_for_the_key_that_began_it_and_in_no_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with opened(served, "/v1/pipelines", {"tasks": ["hear", "see"]}) as holder:
        name = holder.event()["pipeline"]
        assert post(served, "/v1/tasks/hear", pipeline=name, key=OTHER)[0] == 200
        assert left(served) == ["<Pipeline hear → see>"]
        assert post(served, "/v1/tasks/hear", {"messages": 7}, pipeline=name)[0] == 400
    assert name not in caplog.text


def test_it_ends_with_the_server_and_none_begins_while_that_is_drained(served: Served) -> None:
    with opened(served, "/v1/pipelines", {"tasks": STEPS}) as holder:
        holder.event()
        ok(served, "/admin/drain", {"draining": True})
        assert refused(post(served, "/v1/pipelines", {"tasks": STEPS})) == (503, "draining")
        served.server.should_exit = True
        assert holder.error() == "manager_closed"


def test_how_long_it_lasted_is_no_answers_time(served: Served) -> None:
    with opened(served, "/v1/pipelines", {"tasks": STEPS}) as holder:
        holder.event()
    counts = shared(served).metrics
    seen(lambda: list(counts.requests()) == [("", "", "2xx", 1)])
    assert not counts.answers


def test_none_is_inside_a_lease(served: Served) -> None:
    """It would have the lease's place, and begin while the server is drained."""
    with leased(served, "hear") as (_, name):
        for _ in range(2):
            assert refused(post(served, "/v1/pipelines", {"tasks": STEPS}, lease=name)) == (400, "bad_input")
            ok(served, "/admin/drain", {"draining": True})
    seen(lambda: leases(served) == 0)


def test_the_next_request_on_the_connection_is_not_inside(served: Served) -> None:
    """It is sent at once, and the server begins it from within the end of the one before it."""
    asking = {"authorization": f"Bearer {API_KEY}"}
    with opened(served, "/v1/pipelines", {"tasks": STEPS}) as holder, Raw(served.url) as client:
        said = {PIPELINE: holder.event()["pipeline"]}
        client.ask("/v1/tasks/hear", CHAT, {**asking, **said})
        client.ask("/v1/tasks/see", CHAT, asking)
        client.ask("/v1/tasks/see/see", CHAT, asking)
        assert b" 200 " in client.until(b'"verb":"chat","result":{"text":"see: hello"')
        assert left(served) == ["<Pipeline see → tell>"]
        client.ask("/v1/tasks/see", CHAT, {**asking, **said})
        seen(lambda: left(served) == ["<Pipeline tell>"])


def test_only_so_many_are_inside_each_other(served: Served) -> None:
    with ExitStack() as entered:
        said: dict[str, str] = {}
        for _ in range(MOST_DEEP):
            holder = entered.enter_context(opened(served, "/v1/pipelines", {"tasks": STEPS}, headers=said))
            said = {PIPELINE: holder.event()["pipeline"]}
        assert refused(post(served, "/v1/pipelines", {"tasks": STEPS}, pipeline=said[PIPELINE])) == (400, "bad_input")
        assert post(served, "/v1/tasks/hear", pipeline=said[PIPELINE])[0] == 200
        assert left(served) == ["<Pipeline see → tell>"] * MOST_DEEP


def test_those_that_have_ended_do_not_count(served: Served) -> None:
    holder, said = None, dict[str, str]()
    for _ in range(MOST_DEEP + 2):
        with ExitStack() as entered:
            inner = entered.enter_context(opened(served, "/v1/pipelines", {"tasks": STEPS}, headers=said))
            said = {PIPELINE: inner.event()["pipeline"]}
            if holder is not None:
                holder.close()
                seen(lambda: len(left(served)) == 1)
            holder = entered.pop_all()
    assert holder is not None
    holder.close()


# --- by the client ----------------------------------------------------------------------------------------------------


def test_what_a_client_asks_inside_moves_it(served: Served) -> None:
    async def work(client: Client) -> None:
        async with client.pipeline(STEPS) as pipeline:
            assert repr(pipeline) == f"<RemotePipeline hear → see → tell at {served.url}>"
            await until(lambda: loads(served) == ["hear", "see"])
            assert (await client.handle("hear").chat("x")).text == "hear: x"
            assert left(served) == ["<Pipeline see → tell>"]
            await until(lambda: loads(served) == ["hear", "see", "tell"])
            async with client.lease("see") as model:
                assert left(served) == ["<Pipeline tell>"]
                assert (await model.chat("x")).text == "see: x"
            async with client.handle("tell").stream_chat("x") as chunks:
                assert [chunk.text async for chunk in chunks][0] == "tell: "  # noqa: RUF015 - read to its end
            assert left(served) == ["<Pipeline at its end>"]
        await until(lambda: left(served) == [])
        assert (await client.handle("hear").chat("x")).text == "hear: x"

    run(served, work)


def test_what_is_asked_outside_does_not_move_it(served: Served) -> None:
    async def work(client: Client) -> None:
        ready = asyncio.Event()

        async def outside() -> None:
            await ready.wait()
            await client.handle("see").chat("x")

        other = asyncio.create_task(outside())
        async with client.pipeline(STEPS):
            async with connect(served.url, api_key=API_KEY) as another:
                await another.handle("see").chat("x")
            ready.set()
            await other
            assert left(served) == ["<Pipeline hear → see → tell>"]

    run(served, work)


def test_pipelines_inside_pipelines_both_go_on(served: Served) -> None:
    async def work(client: Client) -> None:
        async with client.pipeline(["hear", "see"]):
            async with client.pipeline(["hear", "tell"]):
                await client.handle("hear").chat("x")
                assert left(served) == ["<Pipeline see>", "<Pipeline tell>"]
            await client.handle("see").chat("x")
            assert left(served)[:1] == ["<Pipeline at its end>"]

    run(served, work)


def test_what_can_not_be_a_pipeline_is_refused(served: Served) -> None:
    async def work(client: Client) -> None:
        for wrong in ("hear", 7, [""], [3]):
            with pytest.raises(errors.BadInput):
                client.pipeline(wrong)  # type: ignore[arg-type]
        pipeline = client.pipeline(["hear", "sea"])
        with pytest.raises(errors.UnknownTask):
            await pipeline.__aenter__()
        async with client.pipeline([]) as empty:
            with pytest.raises(RuntimeError, match="once"):
                await empty.begin()

    run(served, work)


def test_a_caller_that_is_cancelled_ends_it(served: Served) -> None:
    async def work(client: Client) -> None:
        async def inside() -> None:
            async with client.pipeline(STEPS):
                await asyncio.Event().wait()

        task = asyncio.create_task(inside())
        await until(lambda: left(served) != [])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: left(served) == [])

    run(served, work)


def test_one_that_is_dropped_ends(served: Served) -> None:
    async def work(client: Client) -> None:
        pipelines = [client.pipeline(STEPS)]
        await pipelines[0].begin()
        pipelines.clear()
        await until(lambda: left(served) == [])

    run(served, work)


def test_calls_inside_go_on_where_its_connection_breaks(server: Stub) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/pipelines":
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b'data: {"pipeline": "it", "tasks": []}\n\n')
            await asyncio.to_thread(server.closed.wait, 20)
            return response
        body = {"task": "t", "option": "best", "verb": "chat", "result": RESULTS["chat"]}
        return web.json_response(body, headers=HEADERS)

    server.answer = answer

    async def work(client: Client) -> None:
        async with client.pipeline(["t"]) as pipeline:
            await client.handle("t").chat("x")
            server.closed.set()
            await pipeline._opened.ended(20)
            await client.handle("t").chat("x")

    run(server, work)
    said = [each["headers"].get(PIPELINE) for each in server.seen]
    assert said == [None, "it", None]


def test_what_nobody_expected_is_raised_to_who_begins(server: Stub) -> None:
    """A name that can be no header's: nobody waits for ever for what can't be asked."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"pipeline": "a\\nb"}\n\n')
        await asyncio.to_thread(server.closed.wait, 20)
        return response

    server.answer = answer

    async def work(client: Client) -> None:
        async with client.pipeline(["t"]):
            with pytest.raises(errors.ServerUnreachable, match="the lease on"):
                async with asyncio.timeout(20):
                    await client.lease("t").__aenter__()
        server.closed.set()

    run(server, work)


def test_who_begins_is_told_that_it_was_closed_meanwhile(server: Stub) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.to_thread(server.closed.wait, 20)
        return web.StreamResponse()

    server.answer = answer

    async def work(client: Client) -> None:
        pipeline = client.pipeline(["t"])
        beginning = asyncio.create_task(pipeline.begin())
        await until(lambda: len(server.seen) == 1)
        await pipeline.end()
        with pytest.raises(errors.ServerUnreachable, match="the pipeline t"):
            async with asyncio.timeout(20):
                await beginning
        server.closed.set()

    run(server, work)


def test_a_pipeline_without_a_name_is_none(server: Stub) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        return response

    server.answer = answer

    async def work(client: Client) -> None:
        with pytest.raises(errors.ServerUnreachable, match="same version"):
            await client.pipeline(["t"]).__aenter__()

    run(server, work)


def test_a_blocking_pipeline_is_of_its_thread(served: Served) -> None:
    with connect(served.url, api_key=API_KEY).blocking() as client:
        with client.pipeline(STEPS):
            assert client.handle("hear").chat("x").text == "hear: x"
            assert left(served) == ["<Pipeline see → tell>"]
            with client.lease("see") as model:
                assert model.chat("x").text == "see: x"
            assert left(served) == ["<Pipeline tell>"]
        seen(lambda: left(served) == [])
        with pytest.raises(errors.UnknownTask), client.pipeline(["nobody"]):
            raise AssertionError


def test_a_lease_is_no_place_in_a_pipeline_of_its_own(served: Served) -> None:
    """What is held already takes no ticket, so a call inside moves nothing that the grant didn't."""
    with leased(served, "hear") as (_, name), opened(served, "/v1/pipelines", {"tasks": STEPS}) as holder:
        pipeline = holder.event()["pipeline"]
        assert post(served, "/v1/tasks/hear", lease=name, pipeline=pipeline)[0] == 200
        assert left(served) == ["<Pipeline hear → see → tell>"]
    seen(lambda: leases(served) == 0)
