"""``POST /v1/leases`` over real sockets: a model is held while the connection is, and by whom it was taken."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrouter.errors import Unloaded
from taskrouter.http import streaming

from .administering import CLAUDE, ok, shared
from .clients import CHAT as CHAT_PATH
from .clients import Raw, chat, status_of
from .holding import CHAT, LEASE, leased, leases, opened, post, refused, resume
from .lease_server import ONE_ONLY, OTHER, lease_server
from .serving import ADMIN_KEY, API_KEY, Served
from .test_streams import seen


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.05)
    with lease_server(tmp_path) as server:
        yield server


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


def test_an_external_option_is_held_too_and_nothing_is_said_that_is_the_operators(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)  # which it requires: without one nobody is called
    with opened(served, "/v1/leases", {"task": "far"}) as holder:
        told = holder.event()
        assert told["info"] == {"provider": "anthropic", "model_id": CLAUDE["model_id"]}
        assert refused(post(served, "/v1/tasks/far", lease=told["lease"])) == (502, "key_missing")


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


def test_whichever_call_inside_ends_first_those_left_count_as_so_many(served: Served) -> None:
    def at_work() -> dict[str, int]:
        return dict(shared(served).limits._at_work)

    def started() -> int:
        assert served.backend is not None
        return len(served.backend.labels("call-start"))

    asking = {"authorization": f"Bearer {API_KEY}"}
    with Raw(served.url) as first, Raw(served.url) as second:
        with leased(served, "slow") as (_, name):
            (held,) = list(shared(served).leases)
            first.ask("/v1/tasks/slow", CHAT, {**asking, LEASE: name})
            seen(lambda: started() == 1)
            second.ask("/v1/tasks/slow", CHAT, {**asking, LEASE: name})
            seen(lambda: held.calls == 2)
            assert at_work() == {"tests": 2}
            resume(served, "slug")
            first.until(b"}}")
            seen(lambda: held.calls == 1)
            assert at_work() == {"tests": 1}
            seen(lambda: started() == 2)
            first.ask("/v1/tasks/slow", CHAT, {**asking, LEASE: name})
            seen(lambda: held.calls == 2)
        seen(lambda: held.left)
        assert at_work() == {"tests": 2}
        resume(served, "slug")
        assert status_of(second.until(b"}}")) == 200
        # The other waited for its turn in a lease that was left meanwhile.
        assert status_of(first.until(b"}}")) >= 400
    seen(lambda: at_work() == {})


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
    seen(lambda: list(counts.requests()) == [("say", "parrot", "2xx", 2)])
    assert sum(counts.answers["say", "parrot"].seconds.counts) == 1


def test_keys_of_admins_hold_nothing(served: Served) -> None:
    assert refused(post(served, "/v1/leases", {"task": "say"}, key=ADMIN_KEY)) == (401, "invalid_api_key")
