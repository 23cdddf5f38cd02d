"""How leases over HTTP end: their client vanishes, their model goes, the server ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from taskrouter.http import streaming, watching

from .administering import beside, ok, shared
from .clients import Raw, status_of
from .holding import CHAT, LEASE, leased, leases, opened, post, refused, resume, state_of
from .lease_server import TASKS, lease_server
from .serving import API_KEY, Served, written
from .test_streams import seen


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.05)
    with lease_server(tmp_path) as server:
        yield server


@pytest.mark.parametrize("heard", [b"", b": waiting"])
def test_a_client_that_vanishes_while_it_waits_leaves_nothing(served: Served, heard: bytes) -> None:
    assert served.backend is not None
    with Raw(served.url) as client:
        client.ask("/v1/leases", {"task": "cold"}, {"authorization": f"Bearer {API_KEY}"})
        seen(lambda: served.backend is not None and served.backend.labels("load-start") == ["ice"])
        if heard:
            client.until(heard)
    seen(lambda: served.backend is not None and served.backend.labels("load-cancelled") == ["ice"])
    seen(lambda: not shared(served).limits._at_work)


def test_a_client_that_vanishes_in_the_moment_of_the_grant_leaves_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is seen so many turns of the loop before or after the load ends: every order is there."""
    monkeypatch.setattr(watching, "WATCH_AFTER_S", 0.01)
    config: Any = served.server.config
    headers = [(b"authorization", f"Bearer {API_KEY}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/leases", "query_string": b"", "headers": headers}
    granted = []

    async def one(turns: int) -> None:
        body = [{"type": "http.request", "body": b'{"task": "cold"}', "more_body": False}]
        watched, gone, sent = asyncio.Event(), asyncio.Event(), bytearray()

        async def receive() -> Any:
            if body:
                return body.pop()
            watched.set()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.extend(message.get("body", b""))

        asking = asyncio.ensure_future(config.app(scope, receive, send))
        await watched.wait()
        assert served.backend is not None
        acts: list[Callable[[], None]] = [partial(served.backend.resume, "ice"), gone.set]
        for act in acts if turns >= 0 else reversed(acts):
            act()
            for _ in range(abs(turns)):
                await asyncio.sleep(0)
        await asking
        granted.append(b'"lease"' in sent)
        assert served.manager.leases == {}
        assert list(shared(served).leases) == []
        served.manager._core.check()
        assert all(not model.leases for model in served.manager.statistics().models.values())
        await served.manager.unload_model("cold")

    async def all_of_them() -> None:
        for turns in range(-12, 30):
            await asyncio.wait_for(one(turns), 20)

    served.run(all_of_them())
    assert set(granted) == {False, True}


def test_calls_inside_go_on_when_the_lease_is_left(served: Served) -> None:
    with Raw(served.url) as client:
        with leased(served, "slow") as (_, name):
            client.ask("/v1/tasks/slow", CHAT, {"authorization": f"Bearer {API_KEY}", LEASE: name})
            seen(lambda: served.backend is not None and served.backend.labels("call-start") == ["slug"])
        seen(lambda: list(shared(served).leases) == [])
        assert leases(served) == 1
        resume(served, "slug")
        assert status_of(client.until(b"}}")) == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("died", [False, True])
def test_a_call_that_waits_its_turn_inside_is_told_that_the_lease_has_ended(
    served: Served, died: bool, stream: bool
) -> None:
    assert served.backend is not None
    with Raw(served.url) as first, Raw(served.url) as second:
        with leased(served, "slow") as (holder, name):
            headers = {"authorization": f"Bearer {API_KEY}", LEASE: name}
            first.ask("/v1/tasks/slow", CHAT, headers)
            seen(lambda: served.backend is not None and served.backend.labels("call-start") == ["slug"])
            second.ask("/v1/tasks/slow", {**CHAT, "stream": stream}, headers)
            seen(lambda: [held.calls for held in shared(served).leases] == [2])
            if died:
                served.loop.call_soon_threadsafe(served.backend.kill, "slug")
                assert holder.error() == "model_died"
        if not died:
            seen(lambda: list(shared(served).leases) == [])
            resume(served, "slug")
        assert status_of(first.until(b"}}")) == (502 if died else 200)
        answer = second.until(b"}}")
    assert (b'"code":"model_died"' if died else b'"code":"unknown_lease"') in answer
    assert answer.startswith(b"HTTP/1.1 502" if died else b"HTTP/1.1 404") or stream


def test_a_model_that_dies_ends_its_leases(served: Served) -> None:
    assert served.backend is not None
    with leased(served) as (holder, name):
        served.loop.call_soon_threadsafe(served.backend.kill, "parrot")
        assert holder.error() == "model_died"
        assert refused(post(served, "/v1/tasks/say", lease=name)) == (404, "unknown_lease")
    assert post(served, "/v1/tasks/say")[0] == 200


@pytest.mark.parametrize("busy", [False, True])
def test_a_model_unloaded_by_force_ends_its_leases(served: Served, busy: bool) -> None:
    with leased(served, "slow") as (holder, name), Raw(served.url) as client:
        if busy:
            client.ask("/v1/tasks/slow", CHAT, {"authorization": f"Bearer {API_KEY}", LEASE: name})
            seen(lambda: served.backend is not None and served.backend.labels("call-start") == ["slug"])
        assert ok(served, "/admin/tasks/slow/unload", {"force": True})["state"] == "disk"
        assert holder.error() == "unloaded"
        if busy:
            assert b'"code":"unloaded"' in client.until(b"}}")


def test_a_call_inside_never_waits_for_the_drain_of_what_it_holds(served: Served) -> None:
    with leased(served) as (holder, name), beside(ok, served, "/admin/tasks/say/unload", {}) as unloading:
        seen(lambda: state_of(served, "parrot") == "draining")
        assert post(served, "/v1/tasks/say", lease=name)[0] == 200
        with Raw(served.url) as client:
            headers = {"authorization": f"Bearer {API_KEY}", LEASE: name}
            client.ask("/v1/tasks/say", {**CHAT, "stream": True}, headers)
            assert b'"text":"hello"' in client.until(b"[DONE]")
        assert state_of(served, "parrot") == "draining"
        holder.close()
        assert unloading.result(20)["state"] == "disk"
    assert served.backend is not None
    assert served.backend.labels("load-start") == ["parrot"]


def test_a_task_that_left_the_file_is_asked_inside_until_the_lease_ends(served: Served, tmp_path: Path) -> None:
    with leased(served) as (_, name):
        fewer = {each: TASKS[each] for each in TASKS if each != "say"}
        written(tmp_path, fewer, memory={"devices": {"cpu": {"budget": "8GiB"}}, "min_residency_s": 0})
        ok(served, "/admin/reload", {})
        assert refused(post(served, "/v1/tasks/say")) == (404, "unknown_task")
        assert post(served, "/v1/tasks/say", lease=name)[1]["result"]["text"] == "parrot: hello"
    seen(lambda: state_of(served, "parrot") == "disk")


# --- the server's own end ---------------------------------------------------------------------------------------------


def test_a_drained_server_takes_no_lease_and_the_calls_of_those_that_are_held(served: Served) -> None:
    with leased(served) as (holder, name):
        ok(served, "/admin/drain", {"draining": True})
        assert refused(post(served, "/v1/leases", {"task": "slow"})) == (503, "draining")
        assert post(served, "/v1/tasks/say", lease=name)[0] == 200
        assert refused(post(served, "/v1/tasks/say")) == (503, "draining")
        assert holder.lines() == [": still held"]
        ok(served, "/admin/drain", {"draining": False})


def test_a_server_that_ends_waits_for_no_lease(served: Served) -> None:
    with leased(served) as (held, _), opened(served, "/v1/leases", {"task": "cold"}) as waiting:
        # Were they waited for, uvicorn would cut them off, and there would be no last event.
        served.server.should_exit = True
        assert held.error() == "manager_closed"
        assert waiting.error() == "manager_closed"


def test_a_server_that_ends_waits_for_the_calls_inside_a_lease(served: Served) -> None:
    with leased(served, "slow") as (holder, name), Raw(served.url) as first, Raw(served.url) as second:
        for client in (first, second):
            client.ask("/v1/tasks/slow", CHAT, {"authorization": f"Bearer {API_KEY}", LEASE: name})
        seen(lambda: [held.calls for held in shared(served).leases] == [2])
        seen(lambda: served.backend is not None and served.backend.labels("call-start") == ["slug"])
        served.server.should_exit = True
        seen(lambda: shared(served).ending)
        assert holder.lines() == [": still held"]
        resume(served, "slug")
        seen(lambda: served.backend is not None and len(served.backend.labels("call-start")) == 2)
        seen(lambda: [held.calls for held in shared(served).leases] == [1])
        resume(served, "slug")
        for client in (first, second):
            assert status_of(client.until(b"}}")) == 200
        assert holder.error() == "manager_closed"


def test_a_call_inside_that_does_not_end_is_cut_off_at_the_bound_and_its_lease_with_it(served: Served) -> None:
    served.server.config.timeout_graceful_shutdown = 0
    with leased(served, "slow") as (holder, name), Raw(served.url) as client:
        client.ask("/v1/tasks/slow", CHAT, {"authorization": f"Bearer {API_KEY}", LEASE: name})
        seen(lambda: served.backend is not None and served.backend.labels("call-start") == ["slug"])
        served.server.should_exit = True
        assert b'"manager_closed"' in client.rest()
        assert holder.error() == "manager_closed"
        seen(lambda: served.backend is not None and served.backend.labels("unload-end") == ["slug"])


def test_a_manager_that_is_shut_down_under_the_server_ends_its_leases(served: Served) -> None:
    with leased(served) as (holder, _):
        served.run(served.manager.shutdown(drain_s=1000))
        assert holder.error() == "manager_closed"
