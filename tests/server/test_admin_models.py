"""The admin API: models are loaded, unloaded, selected, pinned."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from taskrouter import errors
from taskrouter.backends.fake import FakeBackend, FakeScript
from taskrouter.http.operations import KEPT, Operations

from .administering import GIB, ask, beside, call, ended, hang_up, ok, shared, state, wait_for
from .serving import Served, keys, serving


def test_a_load_is_begun_at_once_and_its_progress_is_told(file: Path) -> None:
    backend = FakeBackend({"it": FakeScript(hang="load", bytes=3 * GIB)})
    with serving(file, keys(), fake=backend) as served:
        status, found, headers = call(served, "/admin/tasks/write/load", {})
        assert status == 202
        assert found["state"] == "loading"
        assert headers["location"] == f"/admin/operations/{found['operation']}"
        there = ok(served, f"/admin/operations/{found['operation']}")
        assert (there["state"], there["task"], there["option"], there["error"]) == ("loading", "write", "it", None)
        while "load-start" not in {what for what, _ in backend.events}:
            time.sleep(0.01)
        served.loop.call_soon_threadsafe(backend.resume, "it")
        done = ended(served, found["operation"])
        assert (done["state"], done["error"]) == ("done", None)
        assert done["seconds"] >= there["seconds"]
        assert state(served, "it") == "ready"


def test_a_load_that_is_waited_for_answers_when_it_is_ready_or_with_its_error(served: Served) -> None:
    found = ok(served, "/admin/tasks/say/load", {"option": "two", "wait": True})
    assert (found["state"], found["task"], found["option"], found["error"]) == ("done", "say", "two", None)
    assert (state(served, "two"), state(served, "one")) == ("ready", "disk")
    assert ok(served, "/admin/status")["tasks"]["say"]["selected"] == "one"
    status, wrong, _ = call(served, "/admin/tasks/huge/load", {"wait": True})
    assert (status, wrong["error"]["code"]) == (507, "insufficient_memory")
    status, wrong, _ = call(served, "/admin/tasks/bad/load", {"wait": True})
    assert (status, wrong["error"]["code"]) == (502, "load_failed")


def test_a_load_that_fails_says_so_in_its_operation(served: Served) -> None:
    _, found, _ = call(served, "/admin/tasks/huge/load", post=True)
    failed = ended(served, found["operation"])
    assert (failed["state"], failed["error"]["code"]) == ("failed", "insufficient_memory")
    assert "100" in failed["error"]["message"]
    _, found, _ = call(served, "/admin/tasks/write/load", {"timeout_s": 0})
    assert ended(served, found["operation"])["error"]["code"] == "overloaded"


def test_only_so_many_operations_are_remembered() -> None:
    known = Operations()
    for number in range(KEPT):
        known.begin(str(number), "t", "o", 0.0)
    with pytest.raises(errors.TaskRouterError, match="under way"):
        known.begin("more", "t", "o", 0.0)
    known.get("7").ended = 1.0
    known.begin("more", "t", "o", 0.0)
    with pytest.raises(errors.TaskRouterError, match="no operation '7'"):
        known.get("7")
    assert known.get("0").state == "loading"


def test_unloading_waits_for_calls_at_work_unless_it_is_forced(file: Path) -> None:
    backend = FakeBackend({"one": FakeScript(hang="call")})
    unload = "/admin/tasks/say/unload"

    def calls() -> int:
        return [what for what, _ in backend.events].count("call-start")

    with serving(file, keys(), fake=backend) as served:
        done = {"task": "say", "option": "one", "state": "disk"}
        assert ok(served, unload, {}) == {**done, "unloaded": False}
        with beside(ask, served) as first:
            wait_for(lambda: calls() == 1)
            with beside(ok, served, unload, {}) as gone:
                wait_for(lambda: state(served, "one") == "draining")
                assert not gone.done()
                served.loop.call_soon_threadsafe(backend.resume, "one")
                assert first.result(20)[0] == 200
                assert gone.result(20) == {**done, "unloaded": True}
        with beside(ask, served) as second:
            wait_for(lambda: calls() == 2)
            assert ok(served, unload, {"force": True})["state"] == "disk"
            status, found, _ = second.result(20)
            assert (status, found["error"]["code"]) == (503, "unloaded")


def test_another_option_than_the_selected_one_is_unloaded_where_it_is_named(served: Served) -> None:
    ok(served, "/admin/tasks/write/load", {"wait": True})
    ok(served, "/admin/tasks/say/load", {"option": "one", "wait": True})
    ok(served, "/admin/tasks/say/unload", {"option": "one"})
    assert (state(served, "it"), state(served, "one")) == ("ready", "disk")
    status, found, _ = call(served, "/admin/tasks/say/unload", {"option": "out"})
    assert (status, found["error"]["message"]) == (400, "say/out is an external API: it has no model here")


def test_the_least_recently_used_is_evicted(served: Served) -> None:
    assert ok(served, "/admin/evict", {}) == {"task": None}
    ok(served, "/admin/tasks/write/load", {"wait": True})
    ok(served, "/admin/tasks/say/load", {"wait": True})
    assert ok(served, "/admin/evict", {}) == {"task": "write"}
    assert (state(served, "it"), state(served, "one")) == ("disk", "ready")


def test_an_option_is_selected_and_kept_in_the_file_where_that_is_asked(served: Served, file: Path) -> None:
    found = ok(served, "/admin/tasks/say/select", {"option": "two"})
    assert found == {"task": "say", "selected": "two", "persisted": False}
    assert ask(served)[2]["x-taskrouter-option"] == "two"
    assert json.loads(file.read_text())["tasks"]["say"]["selected"] == "one"
    file.write_text("tasks:\n  say:\n    selected: one\n    options:\n      one: {framework: fake, model_id: o}\n"
                    "      two: {framework: fake, model_id: t}\n")  # fmt: skip
    ok(served, "/admin/tasks/say/select", {"option": "two", "persist": True})
    assert "selected: two" in file.read_text()


def test_a_file_that_can_not_be_written_keeps_the_selection(served: Served, file: Path) -> None:
    file.write_text("tasks: [")
    status, found, _ = call(served, "/admin/tasks/say/select", {"option": "two", "persist": True})
    assert 400 <= status < 500, found
    assert str(file.parent) not in json.dumps(found)
    assert ok(served, "/admin/status")["tasks"]["say"]["selected"] == "one"


def test_a_pinned_model_stays(served: Served) -> None:
    ok(served, "/admin/tasks/write/load", {"wait": True})
    assert ok(served, "/admin/tasks/write/pin", {"pinned": True}) == {"task": "write", "option": "it", "pinned": True}
    status, found, _ = call(served, "/admin/tasks/say/load", {"option": "two", "wait": True})
    assert (status, found["error"]["code"]) == (409, "all_pinned")
    ok(served, "/admin/tasks/write/pin", {"pinned": False, "option": "it"})
    ok(served, "/admin/tasks/say/load", {"option": "two", "wait": True})
    assert state(served, "it") == "disk"


def test_a_cooldown_is_cleared(served: Served) -> None:
    for _ in range(2):
        assert ask(served, "bad")[0] == 502
    status, found, _ = ask(served, "bad")
    assert (status, found["error"]["code"]) == (503, "cooling_down")
    assert state(served, "broken") == "cooldown"
    assert ok(served, "/admin/tasks/bad/cooldown/clear", {}) == {"task": "bad", "cleared": True}
    assert ask(served, "bad")[0] == 502


def test_who_waits_for_a_load_and_goes_away_gives_it_up(file: Path) -> None:
    backend = FakeBackend({"it": FakeScript(hang="load", bytes=3 * GIB)})
    with serving(file, keys(), fake=backend) as served:
        leaves = hang_up(served, "/admin/tasks/write/load", {"wait": True})
        wait_for(lambda: state(served, "it") == "loading")
        leaves.close()
        wait_for(lambda: state(served, "it") == "disk")
        assert served.manager.statistics().waiting == 0
        (given_up,) = shared(served).operations._known.values()
        assert (given_up.state, given_up.error) == (
            "failed", {"code": "cancelled", "message": "whoever asked for it gave it up"},
        )  # fmt: skip


def test_a_change_is_made_whole_though_whoever_asked_goes_away(file: Path) -> None:
    backend = FakeBackend({"two": FakeScript(hang="load", bytes=6 * GIB)})
    with serving(file, keys(), fake=backend) as served:
        ok(served, "/admin/tasks/say/load", {"wait": True})
        leaves = hang_up(served, "/admin/tasks/say/select", {"option": "two"})
        wait_for(lambda: state(served, "two") == "loading")
        leaves.close()
        wait_for(lambda: ("", "", "gone", 1) in shared(served).metrics.requests())
        served.loop.call_soon_threadsafe(backend.resume, "two")
        wait_for(lambda: ok(served, "/admin/status")["tasks"]["say"]["selected"] == "two")


def test_what_failed_is_told_the_admin_in_full_and_callers_in_their_own_terms(served: Served) -> None:
    status, found, _ = call(served, "/admin/tasks/bad/load", {"wait": True})
    assert (status, found["error"]["code"]) == (502, "load_failed")
    assert "scripted to fail" in found["error"]["message"]
    status, found, headers = ask(served, "bad")
    said = found["error"]["message"]
    assert (status, found["error"]["code"]) == (502, "load_failed")
    assert said.startswith("bad/broken failed to load: ask again later, ask for another option")
    assert "scripted to fail" not in said
    assert said.endswith(f"The server's log says more, under {headers['x-request-id']}.")
