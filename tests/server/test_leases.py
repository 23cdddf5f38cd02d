"""``POST /v1/leases`` over real sockets: a model is held while the connection is, and by whom it was taken."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.fake import FakeBackend
from taskrouter.errors import Unloaded
from taskrouter.http import streaming

from .administering import beside, ok, shared
from .clients import CHAT as CHAT_PATH
from .clients import Raw, chat, status_of
from .holding import CHAT, LEASE, leased, leases, opened, post, refused, resume, state_of, task
from .serving import ADMIN_KEY, API_KEY, Served, keys, serving, written
from .test_streams import seen

OTHER, ONE_ONLY = "another-long-enough-key", "a-key-for-one-at-a-time"
TASKS: dict[str, Any] = {
    "say": task("parrot", slots=1),
    "two": {
        "kind": "chat", "selected": "bad", "fallback": ["good"],
        "options": {**task("bad", fail="error")["options"], **task("good")["options"]},
    },
    "cold": {**task("ice", hang="load"), "max_wait_s": 30},
    "slow": task("slug", hang="call"),
    "broken": task("shard", fail="error"),
    "huge": task("giant", 100),
}  # fmt: skip


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.05)
    file = tmp_path / "keys.yaml"
    rows = [
        {"name": "other", "key": OTHER, "tasks": ["say"]},
        {"name": "single", "key": ONE_ONLY, "max_concurrency": 1},
    ]
    file.write_text(json.dumps(rows))
    sections = {"memory": {"devices": {"cpu": {"budget": "8GiB"}}, "min_residency_s": 0}, "default_task": "say"}
    with serving(written(tmp_path, TASKS, **sections), keys(file=file), fake=FakeBackend()) as server:
        yield server
        if not server.server.should_exit:
            seen(lambda: leases(server) == 0)
    assert list(shared(server).leases) == []
    assert server.manager.leases == {}
    assert not shared(server).limits._at_work


# --- held -------------------------------------------------------------------------------------------------------------


def test_a_lease_is_granted_used_and_let_go(served: Served) -> None:
    with opened(served, "/v1/leases", {"task": "say"}) as holder:
        told = holder.event()
        assert (holder.headers["x-taskrouter-option"], holder.headers["x-taskrouter-reason"]) == ("parrot", "selected")
        assert holder.headers["content-type"].startswith("text/event-stream")
        assert told.keys() == {"lease", "task", "option", "info"}
        assert (told["task"], told["option"], told["info"]["label"]) == ("say", "parrot", "parrot")
        for path in ("/v1/tasks/say", "/v1/tasks/say/parrot"):
            status, answer, headers = post(served, path, lease=told["lease"])
            assert (status, answer["result"]["text"], answer["option"]) == (200, "parrot: hello", "parrot")
            assert headers["x-taskrouter-waited"] == "0.000"
        # Its only slot is held: who isn't inside waits.
        assert refused(post(served, "/v1/tasks/say", timeout="0")) == (503, "overloaded")
        assert leases(served) == 1
        assert holder.lines() == [": still held"]
    seen(lambda: leases(served) == 0)
    assert post(served, "/v1/tasks/say")[0] == 200


def test_streams_inside_a_lease_take_its_turns(served: Served) -> None:
    with leased(served) as (_, name), Raw(served.url) as client:
        headers = {"authorization": f"Bearer {API_KEY}", LEASE: name}
        client.ask("/v1/tasks/say", {**CHAT, "stream": True}, headers)
        answer = client.until(b"[DONE]")
        assert b'"text":"hello"' in answer
        assert post(served, "/v1/tasks/say", lease=name)[0] == 200


def test_a_lease_is_of_the_option_it_was_granted(served: Served) -> None:
    with leased(served, "two") as (holder, name):
        # The selected one can't be loaded: that it was passed over is said of the lease and of its calls.
        _, answer, headers = post(served, "/v1/tasks/two", lease=name)
        assert answer["option"] == headers["x-taskrouter-option"] == "good"
        assert headers["x-taskrouter-reason"] == holder.headers["x-taskrouter-reason"] == "bad: not_ready"
        assert holder.headers["x-taskrouter-option"] == "good"
    with leased(served, "default") as (_, name):
        assert post(served, "/v1/tasks/say", lease=name)[0] == 200
    with leased(served, "two", option="good") as (holder, name):
        assert holder.headers["x-taskrouter-reason"] == "named"
        assert post(served, "/v1/tasks/two", lease=name)[1]["option"] == "good"


def test_who_waits_hears_something_and_then_has_it(served: Served) -> None:
    with opened(served, "/v1/leases", {"task": "cold"}) as holder:
        assert holder.lines() == [": waiting for the model"]
        resume(served, "ice")
        assert holder.event()["option"] == "ice"


@pytest.mark.parametrize(
    ("body", "headers", "wanted"),
    [
        ({"task": "nobody"}, {}, (404, "unknown_task")),
        ({"task": "say", "option": "none"}, {}, (404, "unknown_option")),
        ({"task": ""}, {}, (400, "bad_input")),
        ({"task": "say", "priority": 9}, {}, (400, "bad_input")),
        ({}, {}, (400, "bad_input")),
        ({"task": "say"}, {"timeout": "soon"}, (400, "bad_input")),
        ({"task": "huge"}, {}, (507, "insufficient_memory")),
        ({"task": "broken"}, {}, (502, "load_failed")),
    ],
)
def test_what_can_not_be_held_is_refused(served: Served, body: Any, headers: dict[str, str], wanted: Any) -> None:
    assert refused(post(served, "/v1/leases", body, **headers)) == wanted


def test_who_would_wait_too_long_is_told_when_to_ask_again(served: Served) -> None:
    with leased(served):
        answer = post(served, "/v1/leases", {"task": "say"}, timeout="0.01")
        assert refused(answer) == (503, "overloaded")
        assert int(answer[2]["retry-after"]) >= 1


# --- whose it is ------------------------------------------------------------------------------------------------------


def test_an_id_is_for_the_key_that_took_the_lease_and_for_its_task(served: Served) -> None:
    with leased(served) as (_, name):
        assert refused(post(served, "/v1/tasks/say", lease=name, key=OTHER)) == (404, "unknown_lease")
        status, said, _ = post(served, "/v1/tasks/slow", lease=name)
        assert (status, said["error"]["code"]) == (400, "bad_input")
        assert "say/parrot" in said["error"]["message"]
        assert name not in json.dumps(said)
        assert refused(post(served, CHAT_PATH, chat(), lease=name)) == (400, "bad_input")
        assert refused(post(served, "/v1/leases", {"task": "slow"}, lease=name)) == (400, "bad_input")
    seen(lambda: leases(served) == 0)
    for gone in (name, "", "made-up", "ü"):
        assert refused(post(served, "/v1/tasks/say", lease=gone)) == (404, "unknown_lease")
    assert refused(post(served, "/v1/leases", {"task": "slow"}, key=OTHER)) == (403, "task_not_allowed")
    with leased(served, key=OTHER) as (_, name):
        assert post(served, "/v1/tasks/say", lease=name, key=OTHER)[0] == 200


def test_a_lease_and_a_call_inside_are_one_of_what_a_key_may_have_under_way(served: Served) -> None:
    asking = {"authorization": f"Bearer {ONE_ONLY}"}
    with leased(served, "slow", key=ONE_ONLY) as (_, name):
        assert refused(post(served, "/v1/tasks/say", key=ONE_ONLY)) == (429, "concurrency")
        with Raw(served.url) as first:
            first.ask("/v1/tasks/slow", CHAT, {**asking, LEASE: name})
            assert served.backend is not None
            seen(lambda: served.backend is not None and served.backend.labels("call-start") == ["slug"])
            assert refused(post(served, "/v1/tasks/slow", lease=name, key=ONE_ONLY)) == (429, "concurrency")
            resume(served, "slug")
            assert status_of(first.until(b"}}")) == 200
        with Raw(served.url) as second:
            second.ask("/v1/tasks/slow", CHAT, {**asking, LEASE: name})
            seen(lambda: served.backend is not None and len(served.backend.labels("call-start")) == 2)
            _forget(served, name)
            # The call has the lease's place now.
            assert refused(post(served, "/v1/tasks/say", key=ONE_ONLY)) == (429, "concurrency")
            resume(served, "slug")
            assert status_of(second.until(b"}}")) == 200
    seen(lambda: not shared(served).limits._at_work)
    assert post(served, "/v1/tasks/say", key=ONE_ONLY)[0] == 200


def _forget(served: Served, name: str) -> None:
    """End a lease from the server's side, and wait until its own request has ended."""
    (held,) = list(shared(served).leases)
    assert held.id == name
    served.loop.call_soon_threadsafe(held.end, Unloaded("the test ends it"))
    seen(lambda: held.left)


def test_the_admin_sees_who_holds_what_and_no_log_has_an_id(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with leased(served) as (_, name):
        status = ok(served, "/admin/status")
        (row,) = status["leases"]
        assert (row["task"], row["option"], row["caller"], row["calls"]) == ("say", "parrot", "tests", 0)
        assert [each["leases"] for each in status["models"].values() if each["label"] == "parrot"] == [1]
        assert name not in json.dumps(status)
        (told,) = served.manager.leases.values()
        assert told[1] == "over HTTP by tests"
        served.run(_overdue(served))
        post(served, "/v1/tasks/say", lease=name, key=OTHER)
        post(served, "/v1/tasks/say", {"messages": 7}, lease=name)
    assert "it was taken over HTTP by tests" in caplog.text
    assert name not in caplog.text
    seen(lambda: leases(served) == 0)
    assert ok(served, "/admin/status")["leases"] == []


async def _overdue(served: Served) -> None:
    performer = served.manager.performer
    assert performer is not None
    for look in performer.on_observe:
        look(performer.time() + 1e6)


def test_how_long_a_lease_was_held_is_no_answers_time(served: Served) -> None:
    with leased(served) as (_, name):
        assert post(served, "/v1/tasks/say", lease=name)[0] == 200
    seen(lambda: leases(served) == 0)
    counts = shared(served).metrics
    seen(lambda: sum(counts.requests.values()) == 2)
    assert counts.requests == {("say", "parrot", "2xx"): 2}
    assert sum(counts.answers["say", "parrot"].seconds.counts) == 1


# --- how it ends ------------------------------------------------------------------------------------------------------


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


def test_a_client_that_vanishes_in_the_moment_of_the_grant_leaves_nothing(served: Served) -> None:
    """Its end is seen so many turns of the loop before or after the load ends: every order is there."""
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


def test_a_server_that_ends_waits_for_the_call_inside_a_lease(served: Served) -> None:
    headers = {"authorization": f"Bearer {API_KEY}"}
    with leased(served, "slow") as (holder, name), Raw(served.url) as client, Raw(served.url) as later:
        client.ask("/v1/tasks/slow", CHAT, {**headers, LEASE: name})
        later.ask("/health", b"", method="GET")
        later.until(b"}")
        seen(lambda: served.backend is not None and served.backend.labels("call-start") == ["slug"])
        served.server.should_exit = True
        seen(lambda: shared(served).ending)
        assert holder.lines() == [": still held"]
        resume(served, "slug")
        assert status_of(client.until(b"}}")) == 200
        assert holder.error() == "manager_closed"


def test_a_call_inside_that_does_not_end_is_cut_off_at_the_bound_and_its_lease_with_it(served: Served) -> None:
    served.server.config.timeout_graceful_shutdown = 0
    with leased(served, "slow") as (holder, name), Raw(served.url) as client:
        client.ask("/v1/tasks/slow", CHAT, {"authorization": f"Bearer {API_KEY}", LEASE: name})
        seen(lambda: served.backend is not None and served.backend.labels("call-start") == ["slug"])
        served.server.should_exit = True
        client.rest()
        with pytest.raises((AssertionError, OSError)):
            holder.event()
        seen(lambda: served.backend is not None and served.backend.labels("unload-end") == ["slug"])


def test_a_manager_that_is_shut_down_under_the_server_ends_its_leases(served: Served) -> None:
    with leased(served) as (holder, _):
        served.run(served.manager.shutdown())
        assert holder.error() == "manager_closed"


def test_keys_of_admins_hold_nothing(served: Served) -> None:
    assert refused(post(served, "/v1/leases", {"task": "say"}, key=ADMIN_KEY)) == (401, "invalid_api_key")
