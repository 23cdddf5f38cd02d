"""The admin API: a model's files are deleted, and nothing is loaded from them meanwhile."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from jsonschema import Draft202012Validator

from taskrouter import connect, errors
from taskrouter.backends.fake import FakeBackend
from taskrouter.cli import main
from tests.hub_cache import HubCache, commit, disk_fails, disk_waits, use

from .administering import ask, beside, call, hang_up, ok, state, wait_for
from .serving import ADMIN_KEY, API_KEY, Served, keys, serving, written
from .test_events import listening

REMOVE = "/admin/tasks/say/remove"
TINY, SHARED = "org/tiny", "org/shared"


def hub(model_id: str, **more: Any) -> dict[str, Any]:
    return {"framework": "transformers", "model_id": model_id, "vram_gb": 1, **more}


TASKS: dict[str, Any] = {
    "say": {
        "kind": "chat", "selected": "tiny",
        "options": {"tiny": hub(TINY), "shared": hub(SHARED), "mine": hub("mine"), "old": hub(TINY, revision="v1")},
    },
    "write": {"selected": "it", "options": {"it": hub(SHARED)}},
}  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    found = HubCache(tmp_path / "hub")
    use(found, monkeypatch)
    found.model(TINY, "a", "v1")
    found.model(TINY, "b", "main", values=2000)
    found.model(SHARED, "c", "main")
    return found


@pytest.fixture
def served(tmp_path: Path, cache: HubCache) -> Iterator[Served]:
    (tmp_path / "mine").mkdir()
    backend = FakeBackend()
    with serving(written(tmp_path, TASKS), keys(), fake=backend, backends={"transformers": backend}) as server:
        yield server


def refused(served: Served, body: Any) -> tuple[int, str, str]:
    status, found, _ = call(served, REMOVE, body)
    return status, found["error"]["code"], found["error"]["message"]


def test_files_are_deleted_and_the_answer_is_as_the_document_says(served: Served, cache: HubCache) -> None:
    before = cache.files()
    would = ok(served, REMOVE, {"dry_run": True})
    assert cache.files() == before
    with listening(served) as reader:
        done = ok(served, REMOVE, {"option": "tiny"})
        told = reader.until("files_removed")[-1]
    assert (told["repo"], told["revisions"], told["bytes"]) == (TINY, done["revisions"], done["bytes"])
    assert done == {**would, "dry_run": False}
    assert done == {
        "task": "say", "option": "tiny", "repo": TINY, "revisions": [commit("b")], "kept": [commit("a")],
        "bytes": done["bytes"], "unloaded": [], "dry_run": False,
    }  # fmt: skip
    assert done["bytes"] > 8000
    assert before - cache.files() == {each for each in before if commit("b") in each} | {
        "models--org--tiny/refs/main", next(iter(each for each in before - cache.files() if "blobs" in each))
    }  # fmt: skip
    with urlopen(f"{served.url}/openapi.json", timeout=30) as answer:
        document = json.load(answer)
    schema = document["paths"]["/admin/tasks/{task}/remove"]["post"]["responses"]["200"]["content"]
    Draft202012Validator(schema["application/json"]["schema"]).validate(done)
    assert ok(served, REMOVE, {})["bytes"] == 0


def test_only_the_admins_key_deletes(served: Served, cache: HubCache) -> None:
    before = cache.files()
    for key in (None, API_KEY):
        assert call(served, REMOVE, {"force": True}, key=key)[0] == 401
    assert call(served, REMOVE)[0] == 405
    assert cache.files() == before


def test_a_loaded_model_is_deleted_with_force_only(served: Served, cache: HubCache) -> None:
    assert ask(served)[0] == 200
    assert refused(served, {})[:2] == (409, "model_loaded")
    assert state(served, "tiny") == "ready"
    assert ok(served, REMOVE, {"force": True})["unloaded"] == ["tiny"]
    assert state(served, "tiny") == "disk"
    assert not cache.snapshot(TINY, "b").exists()


def test_what_others_need_and_what_is_nobodys_download_is_refused(served: Served, cache: HubCache) -> None:
    before = cache.files()
    status, code, message = refused(served, {"option": "shared", "force": True})
    assert (status, code) == (409, "files_shared")
    assert "needed by write/it, too" in message
    status, code, message = refused(served, {"option": "mine", "force": True})
    assert (status, code) == (409, "files_not_downloaded")
    assert str(cache.folder.parent) not in message
    assert cache.files() == before


def test_a_disk_that_fails_is_told_without_saying_where_the_cache_is(served: Served, cache: HubCache) -> None:
    with disk_fails(1, OSError(errno.EROFS, "Read-only file system")):
        status, code, message = refused(served, {})
    assert (status, code) == (500, "removal_failed")
    assert "models--org--tiny/" in message
    assert "Read-only file system" in message
    assert str(cache.folder) not in message


def test_nothing_is_loaded_while_files_are_deleted(served: Served, cache: HubCache) -> None:
    with disk_waits() as (begun, goes_on), beside(ok, served, REMOVE, {}) as removed:
        assert begun.wait(30)
        for model in ("say", "say/old"):
            status, found, headers = ask(served, model)
            assert (status, found["error"]["code"]) == (503, "files_being_removed")
            assert headers["retry-after"] == "1"
        assert ask(served, "write")[0] == 200, "of another repository"
        assert refused(served, {})[:2] == (409, "files_kept")
        goes_on.set()
        assert removed.result(30)["revisions"] == [commit("b")]
    assert served.backend is not None
    assert served.backend.labels("preflight") == served.backend.labels("load-start") == ["shared"], (
        "nor is it looked at"
    )
    assert ask(served, "say/old")[0] == 200


def test_it_is_done_whole_though_whoever_asked_goes_away(served: Served, cache: HubCache) -> None:
    with disk_waits() as (begun, goes_on):
        leaves = hang_up(served, REMOVE, {})
        assert begun.wait(30)
        leaves.close()
        goes_on.set()
        wait_for(lambda: not cache.snapshot(TINY, "b").exists())
    wait_for(lambda: ask(served)[0] == 200)


def test_a_client_and_the_command_line_do_the_same(
    served: Served, cache: HubCache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(served.url, admin_key=ADMIN_KEY).blocking() as client:
        with pytest.raises(errors.FilesShared, match="say/shared"):
            client.remove_files("write")
        assert client.remove_files("say", dry_run=True)["revisions"] == [commit("b")]
    monkeypatch.setenv("TASKROUTER_URL", served.url)
    monkeypatch.setenv("TASKROUTER_ADMIN_KEY", ADMIN_KEY)
    capsys.readouterr()
    assert main(("remove", "say", "--dry-run")) == 0
    assert capsys.readouterr().out.startswith("say/tiny: would delete 1 revision of org/tiny, ")
    assert cache.snapshot(TINY, "b").exists()
    assert main(("remove", "say")) == 0
    assert capsys.readouterr().out.startswith("say/tiny: deleted 1 revision of org/tiny, ")
    assert not cache.snapshot(TINY, "b").exists()
    for code, arguments in ((1, ("write",)), (1, ("say", "--option", "mine")), (2, ("nobody",))):
        assert main(("remove", *arguments)) == code
        assert len(capsys.readouterr().err.splitlines()) == 1
