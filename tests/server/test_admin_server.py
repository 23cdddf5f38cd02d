"""The admin API: the server is reloaded and drained; readiness."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taskrouter import errors
from taskrouter.backends.fake import FakeBackend, FakeScript

from .administering import GIB, TASKS, ask, beside, call, fake, ok, wait_for
from .serving import API_KEY, Served, keys, serving, written
from .stalling import not_ready, nothing_moves


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
    assert wrong["error"]["message"].endswith("as it was: models.yaml: there is no such file")
    assert "more" in ok(served, "/admin/status")["tasks"]


def test_while_it_drains_new_work_is_refused_and_what_is_under_way_ends(file: Path) -> None:
    backend = FakeBackend({"one": FakeScript(hang="call")})
    with serving(file, keys(), fake=backend) as served:
        with beside(ask, served) as under_way:
            wait_for(lambda: "call-start" in {what for what, _ in backend.events})
            assert ok(served, "/admin/drain", {"draining": True}) == {"draining": True}
            status, found, headers = ask(served)
            assert (status, found["error"]["code"]) == (503, "draining")
            assert int(headers["retry-after"]) >= 1
            status, found, _ = call(served, "/ready")
            assert (status, found["ready"]) == (503, False)
            assert call(served, "/v1/models", key=API_KEY)[0] == 200
            assert ok(served, "/admin/status")["draining"] is True
            assert not under_way.done()
            served.loop.call_soon_threadsafe(backend.resume, "one")
            assert under_way.result(20)[0] == 200
        ok(served, "/admin/drain", {"draining": False})
        assert call(served, "/ready")[0] == 200


@pytest.mark.slow
def test_readiness_turns_false_when_the_oldest_waiter_is_past_its_bound(tmp_path: Path) -> None:
    """Case 28: the process answers all the while, and that is not enough."""
    tasks = {"say": {**TASKS["write"], "max_wait_s": 0.2}}
    backend = FakeBackend({"it": FakeScript(hang="load", bytes=GIB)})
    with serving(written(tmp_path, tasks), keys(), fake=backend) as served:
        assert call(served, "/ready", key=None)[0] == 200
        with nothing_moves(served):
            waiter = served.start(served.manager.load_option("say"))
            found = not_ready(served, key=None)
            assert found["oldest_wait_s"] > 0.2
            assert call(served, "/health", key=None)[0] == 200
            assert ok(served, "/admin/status")["healthy"] is False
        with pytest.raises(errors.Overloaded):
            waiter.result(20)
        assert call(served, "/ready", key=None)[0] == 200
