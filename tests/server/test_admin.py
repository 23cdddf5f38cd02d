"""The admin API over a real socket."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.backends.fake import FakeBackend, FakeScript
from taskrouter.http.operations import KEPT, Operations
from taskrouter.http.status import plain
from taskrouter.residency.actions import WakeAt
from taskrouter.residency.events import Tick
from taskrouter.spend import SpendLedger

from .serving import ADMIN_KEY, API_KEY, ENVIRON, Served, keys, serving, written

GIB = 1 << 30
CLAUDE = {"model_id": "claude-sonnet-4-5", "framework": "external_api", "provider": "anthropic"}


def fake(name: str, vram_gb: float = 1, **more: Any) -> dict[str, Any]:
    return {"framework": "fake", "model_id": name, "vram_gb": vram_gb, **more}


TASKS: dict[str, Any] = {
    "say": {"kind": "chat", "selected": "one", "options": {"one": fake("o"), "two": fake("t", 6), "out": dict(CLAUDE)}},
    "write": {"selected": "it", "options": {"it": fake("w", 3)}},
    "huge": {"selected": "giant", "options": {"giant": fake("g", 100)}},
    "bad": {"selected": "broken", "options": {"broken": fake("b", engine_args={"fail": "error"})}},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, TASKS, memory={"devices": {"cpu": {"budget": "8GiB"}}, "min_residency_s": 0})


@pytest.fixture
def served(file: Path) -> Iterator[Served]:
    with serving(file, keys()) as server:
        yield server


def call(
    served: Served, path: str, body: Any = None, *, key: str | None = ADMIN_KEY, post: bool | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Ask; the status, the JSON, the headers."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    method = "POST" if (body is not None if post is None else post) else "GET"
    request = urllib.request.Request(served.url + path, data, method=method)
    if key is not None:
        request.add_header("authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer), dict(answer.headers.items())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers.items())


def ok(served: Served, path: str, body: Any = None) -> Any:
    status, found, _ = call(served, path, body)
    assert status == 200, found
    return found


def ask(served: Served, model: str = "say") -> tuple[int, Any, dict[str, str]]:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    return call(served, "/v1/chat/completions", body, key=API_KEY)


def ended(served: Served, name: str) -> dict[str, Any]:
    """A load's operation, once it has ended."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found: dict[str, Any] = ok(served, f"/admin/operations/{name}")
        if found["state"] != "loading":
            return found
    raise AssertionError("it did not end")


def state(served: Served, option: str) -> str:
    return next(each["state"] for each in ok(served, "/admin/models")["models"] if each["option"] == option)


# --- who may ----------------------------------------------------------------------------------------------------------

PATHS = [
    ("GET", "/admin/status"), ("GET", "/admin/models"), ("GET", "/admin/spend"), ("GET", "/admin/events"),
    ("GET", "/admin/operations/x"), ("GET", "/admin/tasks/say/explain"), ("POST", "/admin/tasks/say/load"),
    ("POST", "/admin/tasks/say/unload"), ("POST", "/admin/tasks/say/select"), ("POST", "/admin/tasks/say/pin"),
    ("POST", "/admin/tasks/say/cooldown/clear"), ("POST", "/admin/evict"), ("POST", "/admin/reload"),
    ("POST", "/admin/drain"),
]  # fmt: skip


def test_a_callers_key_opens_no_admin_path_and_the_admins_no_callers(served: Served) -> None:
    for method, path in PATHS:
        for key in (None, API_KEY, "some-other-key-of-nobody"):
            status, found, _ = call(served, path, key=key, post=method == "POST")
            assert (status, found["error"]["code"]) == (401, "invalid_admin_key"), (path, key)
    for path, body in (("/v1/models", None), ("/v1/chat/completions", {"model": "say"})):
        status, found, _ = call(served, path, body, key=ADMIN_KEY)
        assert (status, found["error"]["code"]) == (401, "invalid_api_key")


def test_without_an_admin_key_the_admin_api_is_off(file: Path) -> None:
    with serving(file) as served:
        for method, path in PATHS:
            status, found, _ = call(served, path, key=ADMIN_KEY, post=method == "POST")
            assert (status, found["error"]["code"]) == (403, "admin_api_off"), path


def test_the_admins_key_can_not_be_a_callers_too() -> None:
    with pytest.raises(errors.ConfigError, match="admin key is a caller's key, too") as caught:
        keys({**ENVIRON, "TASKROUTER_ADMIN_KEY": API_KEY})
    assert API_KEY not in str(caught.value)


# --- what is there ----------------------------------------------------------------------------------------------------


def test_status_says_everything_as_json(served: Served) -> None:
    assert ask(served)[0] == 200
    found = ok(served, "/admin/status")
    assert found["devices"]["cpu"]["capacity"] == 8 * GIB
    assert found["devices"]["cpu"]["charged"] == GIB
    say = found["tasks"]["say"]
    assert (say["selected"], say["kind"], say["options"]) == ("one", "chat", ["one", "two", "out"])
    model = found["models"][say["option_model"]]
    assert (model["label"], model["state"], model["devices"], model["charges"]) == (
        "one",
        "ready",
        ["cpu"],
        {"cpu": GIB},
    )
    assert (model["leases"], model["pinned"], model["cooldown_until"]) == (0, False, None)
    assert abs(model["loaded_at"] - time.time()) < 60
    assert model["loaded_at"] <= model["last_used"]
    assert isinstance(model["info"], dict)
    assert (found["waiting"], found["oldest_wait_s"], found["healthy"], found["draining"]) == (0, 0, True, False)
    assert found["uptime_s"] > 0
    assert found["version"]
    seen = served.manager.statistics()
    assert set(found["models"]) == set(seen.models)
    assert set(model) == {*type(next(iter(seen.models.values()))).__dataclass_fields__, "info"}


def test_what_a_backend_says_of_its_models_is_told_whatever_it_is() -> None:
    deep: dict[str, Any] = {}
    deep["itself"] = deep
    found = plain({"a": float("nan"), 1: {2, 3}, "big": 1 << 80, "path": Path("x"), "deep": deep})
    assert json.loads(json.dumps(found))["a"] is None
    assert (found["1"], found["path"], found["big"]) == ([2, 3], "x", float(1 << 80))


def test_every_option_is_listed_with_its_state_its_need_and_its_fit(served: Served) -> None:
    assert ask(served)[0] == 200
    found = ok(served, "/admin/models")
    rows = {f"{each['task']}/{each['option']}": each for each in found["models"]}
    assert list(rows) == ["say/one", "say/two", "say/out", "write/it", "huge/giant", "bad/broken"]
    assert (rows["say/one"]["state"], rows["say/one"]["charged_bytes"], rows["say/one"]["selected"]) == (
        "ready",
        GIB,
        True,
    )
    assert (rows["say/two"]["state"], rows["say/two"]["need_bytes"], rows["say/two"]["need_source"]) == (
        "disk", 6 * GIB, "declared",
    )  # fmt: skip
    assert {name: row["fit"] for name, row in rows.items() if name != "say/out"} == {
        "say/one": "together", "say/two": "swapping", "write/it": "together", "huge/giant": "never",
        "bad/broken": "together",
    }  # fmt: skip
    assert "at most" in rows["huge/giant"]["why"]
    assert (rows["say/out"]["state"], rows["say/out"]["need_source"]) == ("external", "external")
    assert found["budget"]["servable"] is False
    assert [each["device"] for each in found["budget"]["devices"]] == ["cpu"]


def test_a_need_that_was_only_estimated_says_so(tmp_path: Path) -> None:
    task = {
        "selected": "it",
        "options": {"it": {"framework": "fake", "model_id": "m", "engine_args": {"bytes": "2GiB"}}},
    }
    with serving(written(tmp_path, {"t": task}), keys()) as served:
        (before,) = ok(served, "/admin/models")["models"]
        assert (before["need_source"], before["fit"]) == ("unknown", "unknown")
        ok(served, "/admin/tasks/t/load", {"wait": True})
        (after,) = ok(served, "/admin/models")["models"]
        assert after["need_source"] in ("measured", "estimated")
        assert (after["need_bytes"], after["fit"]) == (2 * GIB, "together")


def test_explain_tells_why(served: Served) -> None:
    assert ask(served)[0] == 200
    assert "one got 1.0 GiB on cpu" in ok(served, "/admin/tasks/say/explain")["text"]


def test_spend_is_what_the_ledger_says(served: Served, tmp_path: Path) -> None:
    async def record() -> None:
        ledger = SpendLedger(tmp_path / "spend.sqlite")
        await ledger.record(provider="anthropic", task="say", option="out", model_id="c", input_tokens=10,
                            output_tokens=5, usd=0.25)  # fmt: skip
        await ledger.close()
        served.manager._spend = ledger

    assert ok(served, "/admin/spend?days=1")["total"]["requests"] == 0
    served.run(record())
    found = ok(served, "/admin/spend?days=2&by=task")
    assert found["spend"] == [{"task": "say", "requests": 1, "input_tokens": 10, "output_tokens": 5, "usd": 0.25}]
    assert (found["by"], found["total"]["usd"]) == ("task", 0.25)
    for query in ("days=0", "days=x", "days=99999999", "days=-1", "by=secret", "more=1", "days=²"):
        status, wrong, _ = call(served, f"/admin/spend?{urllib.request.quote(query, safe='=')}")
        assert (status, wrong["error"]["code"]) == (400, "bad_input"), query
    (tmp_path / "spend.sqlite").write_bytes(b"no database" * 1000)
    assert call(served, "/admin/spend")[0] == 503


# --- models come and go -----------------------------------------------------------------------------------------------


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

    async def calls(many: int) -> None:
        while [what for what, _ in backend.events].count("call-start") < many:
            await asyncio.sleep(0.01)

    async def main(served: Served) -> None:
        first = asyncio.ensure_future(asyncio.to_thread(ask, served))
        await calls(1)
        gone = asyncio.ensure_future(asyncio.to_thread(ok, served, unload, {}))
        while await asyncio.to_thread(state, served, "one") != "draining":
            assert not gone.done()
        served.loop.call_soon_threadsafe(backend.resume, "one")
        assert (await first)[0] == 200
        assert await gone == {"task": "say", "option": "one", "state": "disk"}
        second = asyncio.ensure_future(asyncio.to_thread(ask, served))
        await calls(2)
        assert (await asyncio.to_thread(ok, served, unload, {"force": True}))["state"] == "disk"
        status, found, _ = await second
        assert (status, found["error"]["code"]) == (503, "unloaded")

    with serving(file, keys(), fake=backend) as served:
        assert ok(served, unload, {}) == {"task": "say", "option": "one", "state": "disk"}
        asyncio.run(main(served))


def test_another_option_than_the_selected_one_is_unloaded_where_it_is_named(served: Served) -> None:
    ok(served, "/admin/tasks/write/load", {"wait": True})
    ok(served, "/admin/tasks/say/load", {"option": "one", "wait": True})
    ok(served, "/admin/tasks/say/unload", {"option": "one"})
    assert (state(served, "it"), state(served, "one")) == ("ready", "disk")
    assert ok(served, "/admin/tasks/say/unload", {"option": "out"})["state"] == "external"


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


# --- what makes no sense ----------------------------------------------------------------------------------------------


def test_what_is_unknown_is_404(served: Served) -> None:
    for path, body in (
        ("load", {}), ("unload", {}), ("select", {"option": "x"}), ("pin", {"pinned": True}), ("cooldown/clear", {}),
    ):  # fmt: skip
        status, found, _ = call(served, f"/admin/tasks/nobody/{path}", body)
        assert (status, found["error"]["code"]) == (404, "unknown_task"), path
    for path, body in (("load", {}), ("unload", {}), ("select", {}), ("pin", {"pinned": True})):
        status, found, _ = call(served, f"/admin/tasks/say/{path}", {**body, "option": "nothing"})
        assert (status, found["error"]["code"]) == (404, "unknown_option"), path
    assert call(served, "/admin/tasks/nobody/explain")[0] == 404
    assert call(served, "/admin/operations/nothing")[0] == 404
    assert call(served, "/admin/nothing")[0] == 404
    assert call(served, "/admin/status", {})[0] == 405


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("tasks/say/load", {"optoin": "one"}),
        ("tasks/say/load", {"wait": "yes"}),
        ("tasks/say/load", {"timeout_s": -1}),
        ("tasks/say/load", {"timeout_s": True}),
        ("tasks/say/load", {"option": ""}),
        ("tasks/say/load", {"option": "x" * 100_000}),
        ("tasks/say/load", {"option": "out"}),
        ("tasks/say/load", b"[1]"),
        ("tasks/say/load", b"{"),
        ("tasks/say/load", b"\xff"),
        ("tasks/say/load", b'{"timeout_s": NaN}'),
        ("tasks/say/load", b'{"timeout_s": 1e400}'),
        ("tasks/say/load", b"[" * 20_000),
        ("tasks/say/unload", {"force": 1}),
        ("tasks/say/select", {}),
        ("tasks/say/select", {"option": ["one"]}),
        ("tasks/say/pin", {}),
        ("tasks/say/pin", {"pinned": None}),
        ("tasks/say/pin", {"pinned": True, "option": "out"}),
        ("tasks/say/cooldown/clear", {"now": True}),
        ("evict", {"all": True}),
        ("reload", {"file": "/etc/passwd"}),
        ("drain", {}),
        ("drain", {"draining": "false"}),
    ],
)
def test_a_body_that_makes_no_sense_is_refused_and_changes_nothing(served: Served, path: str, body: Any) -> None:
    status, found, _ = call(served, f"/admin/{path}", body)
    assert status in (400, 413), found
    assert found["error"]["type"] == "invalid_request_error"
    assert len(json.dumps(found)) < 2000
    after = ok(served, "/admin/status")
    assert (after["draining"], after["tasks"]["say"]["selected"]) == (False, "one")
    assert not any(model["pinned"] or model["charges"] for model in after["models"].values())


# --- the server -------------------------------------------------------------------------------------------------------


def test_a_reload_answers_what_changed_or_all_that_is_wrong(served: Served, file: Path) -> None:
    whole = json.loads(file.read_text())
    whole["tasks"]["more"] = {"selected": "m", "options": {"m": fake("m")}}
    del whole["tasks"]["huge"]
    file.write_text(json.dumps(whole))
    found = ok(served, "/admin/reload", {})
    assert (found["added"], found["removed"], found["selected"]) == (["more/m"], ["huge/giant"], {})
    assert "added more/m" in found["text"]
    whole["tasks"]["more"] = {"selected": "nothing", "options": {"m": {"framework": "fake", "vram_gb": "much"}}}
    file.write_text(json.dumps(whole))
    status, wrong, _ = call(served, "/admin/reload", post=True)
    assert (status, wrong["error"]["code"]) == (400, "config_error")
    assert len(wrong["error"]["problems"]) >= 2
    assert {each["file"] for each in wrong["error"]["problems"]} == {"models.yaml"}
    assert any("vram_gb" in each["path"] for each in wrong["error"]["problems"])
    file.unlink()
    status, wrong, _ = call(served, "/admin/reload", {})
    assert status == 400
    assert str(file.parent) not in json.dumps(wrong)
    assert "more" in ok(served, "/admin/status")["tasks"]


def test_while_it_drains_new_work_is_refused_and_what_is_under_way_ends(file: Path) -> None:
    backend = FakeBackend({"one": FakeScript(hang="call")})
    with serving(file, keys(), fake=backend) as served:

        async def asked() -> tuple[int, Any, dict[str, str]]:
            return await asyncio.to_thread(ask, served)

        async def main() -> None:
            under_way = asyncio.ensure_future(asked())
            while "call-start" not in {what for what, _ in backend.events}:
                await asyncio.sleep(0.01)
            assert (await asyncio.to_thread(ok, served, "/admin/drain", {"draining": True})) == {"draining": True}
            status, found, headers = await asked()
            assert (status, found["error"]["code"]) == (503, "draining")
            assert int(headers["retry-after"]) >= 1
            status, found, _ = await asyncio.to_thread(call, served, "/ready")
            assert (status, found["ready"]) == (503, False)
            assert (await asyncio.to_thread(call, served, "/v1/models", key=API_KEY))[0] == 200
            assert (await asyncio.to_thread(ok, served, "/admin/status"))["draining"] is True
            assert not under_way.done()
            served.loop.call_soon_threadsafe(backend.resume, "one")
            assert (await under_way)[0] == 200
            await asyncio.to_thread(ok, served, "/admin/drain", {"draining": False})
            assert (await asyncio.to_thread(call, served, "/ready"))[0] == 200

        asyncio.run(main())


def test_readiness_turns_false_when_the_oldest_waiter_is_past_its_bound(tmp_path: Path) -> None:
    """Case 28: the process answers all the while, and that is not enough."""
    tasks = {"say": {**TASKS["write"], "max_wait_s": 0.2}}
    backend = FakeBackend({"it": FakeScript(hang="load", bytes=GIB)})
    with serving(written(tmp_path, tasks), keys(), fake=backend) as served:
        assert call(served, "/ready", key=None)[0] == 200
        performer = served.manager.performer
        assert performer is not None
        wake = performer._perform[WakeAt]

        async def stall() -> asyncio.Task[Any]:
            async def nothing() -> None:
                """The devices aren't looked at either."""

            # What would refuse the waiter at its deadline never comes: nothing moves any more.
            performer._perform[WakeAt] = lambda action: None
            performer.observe = nothing  # type: ignore[method-assign]
            return asyncio.ensure_future(served.manager.load_option("say"))

        waiter = served.run(stall())
        status, found = 200, {}
        until = time.monotonic() + 20
        while status == 200 and time.monotonic() < until:
            status, found, _ = call(served, "/ready", key=None)
        assert (status, found["ready"], found["waiting"]) == (503, False, 1)
        assert "past its bound" in found["why"]
        assert found["oldest_wait_s"] > 0.2
        assert call(served, "/health", key=None)[0] == 200
        assert ok(served, "/admin/status")["healthy"] is False

        async def go_on() -> None:
            performer._perform[WakeAt] = wake
            performer.post(Tick())
            with pytest.raises(errors.Overloaded):
                await waiter

        served.run(go_on())
        assert call(served, "/ready", key=None)[0] == 200
