"""The admin API over a real socket: who may, what is told, what is refused."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.http.status import plain
from taskrouter.spend import SpendLedger

from .administering import GIB, ask, call, ok
from .serving import ADMIN_KEY, API_KEY, ENVIRON, Served, keys, serving, written

# --- who may ----------------------------------------------------------------------------------------------------------

PATHS = [
    ("GET", "/admin/status"), ("GET", "/admin/models"), ("GET", "/admin/spend"), ("GET", "/admin/events"),
    ("GET", "/admin/operations/x"), ("GET", "/admin/tasks/say/explain"), ("POST", "/admin/tasks/say/load"),
    ("POST", "/admin/tasks/say/unload"), ("POST", "/admin/tasks/say/select"), ("POST", "/admin/tasks/say/pin"),
    ("POST", "/admin/tasks/say/cooldown/clear"), ("POST", "/admin/evict"), ("POST", "/admin/reload"),
    ("POST", "/admin/drain"), ("POST", "/admin/tasks/say/remove"),
]  # fmt: skip


def test_a_callers_key_opens_no_admin_path_and_the_admins_no_callers(served: Served) -> None:
    for method, path in PATHS:
        for key in (None, API_KEY, "some-other-key-of-nobody"):
            status, found, _ = call(served, path, key=key, post=method == "POST")
            code = "no_admin_key" if key is None else "invalid_admin_key"
            assert (status, found["error"]["code"]) == (401, code), (path, key)
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
        status, wrong, _ = call(served, f"/admin/spend?{urllib.parse.quote(query, safe='=')}")
        assert (status, wrong["error"]["code"]) == (400, "bad_input"), query
    (tmp_path / "spend.sqlite").write_bytes(b"no database" * 1000)
    assert call(served, "/admin/spend")[0] == 503


# --- what makes no sense ----------------------------------------------------------------------------------------------


def test_what_is_unknown_is_404(served: Served) -> None:
    for path, body in (
        ("load", {}), ("unload", {}), ("select", {"option": "x"}), ("pin", {"pinned": True}), ("cooldown/clear", {}),
        ("remove", {}),
    ):  # fmt: skip
        status, found, _ = call(served, f"/admin/tasks/nobody/{path}", body)
        assert (status, found["error"]["code"]) == (404, "unknown_task"), path
    for path, body in (("load", {}), ("unload", {}), ("remove", {}), ("select", {}), ("pin", {"pinned": True})):
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
        ("tasks/say/remove", {"force": "yes"}),
        ("tasks/say/remove", {"dry_run": None}),
        ("tasks/say/remove", {"dryrun": True}),
        ("tasks/say/remove", {"option": "out"}),
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
