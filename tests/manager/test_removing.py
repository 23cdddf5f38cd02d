"""A model's files deleted by the manager: what is refused and why, and what is unloaded for it."""

from __future__ import annotations

import asyncio
import errno
import logging
from pathlib import Path
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.manager import Happened
from taskrouter.manager.removing import Removed
from taskrouter.memory import removing
from tests.hub_cache import HubCache, commit, disk_fails, use

from .stage import CLAUDE, Stage, option, play, settle, spawn, until
from .test_reload import edit

TINY = "org/tiny"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    found = HubCache(tmp_path / "hub")
    use(found, monkeypatch)
    found.model(TINY, "a", "main")
    return found


def hub(name: str, model_id: str = TINY, **keys: Any) -> dict[str, Any]:
    """An option of the hub; the scripted backend stands for what would load it."""
    return option(name, **{"framework": "transformers", "model_id": model_id, **keys})


def one(name: str, **keys: Any) -> dict[str, Any]:
    return {"selected": name, "options": {name: hub(name, **keys)}}


def staged(folder: Path, tasks: dict[str, Any], **sections: Any) -> Stage:
    stage = Stage(folder, tasks, **sections)
    for framework in ("transformers", "vllm"):
        stage.registry.register(framework, stage.backend)
    return stage


def test_the_files_of_a_cold_model_are_deleted_and_that_is_told(
    tmp_path: Path, cache: HubCache, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Happened] = []
    caplog.set_level(logging.INFO)

    async def main(stage: Stage) -> Removed:
        stage.manager.watch(heard.append)
        would = await stage.manager.remove_files("a", dry_run=True)
        assert (cache.files() != set(), heard) == (True, [])
        done = await stage.manager.remove_files("a")
        assert would.data() == {**done.data(), "dry_run": True}
        again = await stage.manager.remove_files("a", "a")
        assert (again.revisions, again.bytes) == ((), 0)
        return done

    done = play(staged(tmp_path, {"a": one("a")}), main)
    assert done == Removed("a", "a", TINY, (commit("a"),), (), done.bytes, (), dry_run=False)
    assert done.bytes > 4000
    assert cache.files() == set()
    told = [each.facts for each in heard if each.what == "files_removed"]
    assert told[0] == {
        "model": "a", "tasks": ["a"], "repo": TINY, "revisions": [commit("a")], "bytes": done.bytes
    }  # fmt: skip
    assert f"a/a: deleted 1 revisions of org/tiny from the Hugging Face cache, {done.bytes} bytes" in caplog.text


def test_a_loaded_model_is_refused_and_with_force_it_is_unloaded_first(tmp_path: Path, cache: HubCache) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        call = spawn(model.chat("hello"))
        await settle()
        for dry in (False, True):
            with pytest.raises(errors.ModelLoaded, match=r"a is loaded, or waited for.*say force"):
                await stage.manager.remove_files("a", dry_run=dry)
        would = await stage.manager.remove_files("a", force=True, dry_run=True)
        assert (would.unloaded, stage.state("a"), call.done()) == (("a",), "ready", False)
        done = await stage.manager.remove_files("a", force=True)
        assert (done.unloaded, done.revisions) == (("a",), (commit("a"),))
        assert stage.state("a") == "disk"
        with pytest.raises(errors.Unloaded, match="by force"):
            await call

    play(staged(tmp_path, {"a": one("a", call_s=1000)}), main)
    assert cache.files() == set()


@pytest.mark.parametrize("force", [False, True])
def test_a_load_under_way_is_refused_or_ended(tmp_path: Path, cache: HubCache, force: bool) -> None:
    async def main(stage: Stage) -> None:
        waits = spawn(stage.manager.get_model("a"))
        await settle()
        assert stage.state("a") == "loading"
        if not force:
            with pytest.raises(errors.ModelLoaded):
                await stage.manager.remove_files("a")
            await waits
            assert cache.files()
            return
        await stage.manager.remove_files("a", force=True)
        assert not cache.files()
        with pytest.raises(errors.Unloaded):
            await waits

    play(staged(tmp_path, {"a": one("a", load_s=30)}), main)


def test_who_waits_for_room_is_refused_or_keeps_the_files(tmp_path: Path, cache: HubCache) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("big"):
            waits = spawn(stage.manager.get_model("a"))
            await settle()
            assert (stage.state("a"), stage.manager.statistics().waiting) == ("disk", 1)
            with pytest.raises(errors.ModelLoaded):
                await stage.manager.remove_files("a")
            assert cache.files()
            await stage.manager.remove_files("a", force=True)
            with pytest.raises(errors.Unloaded):
                await waits
            assert not cache.files()

    play(staged(tmp_path, {"a": one("a"), "big": {"vram_gb": 9}}), main)


def test_a_sleeping_model_counts_as_loaded(tmp_path: Path, cache: HubCache) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.load_option("a")
        await stage.manager.load_option("big")
        await settle()
        assert stage.state("a") == "host"
        with pytest.raises(errors.ModelLoaded):
            await stage.manager.remove_files("a")
        assert (await stage.manager.remove_files("a", force=True)).unloaded == ("a",)
        assert stage.state("a") == "disk"

    sizes = {"cuda:0": 10 << 30, "cpu": 64 << 30}
    tasks = {"a": one("a", can_sleep=True, load_s=30), "big": {"vram_gb": 9}}
    memory = {"host_budget": "32GiB", "claim_s": 0, "min_residency_s": 0}
    play(staged(tmp_path, tasks, machine=sizes, memory=memory), main)


def test_who_holds_a_lease_on_it_can_not_have_it_deleted(tmp_path: Path, cache: HubCache) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a"):
            with pytest.raises(errors.WouldDeadlock):
                await stage.manager.remove_files("a", force=True)

    play(staged(tmp_path, {"a": one("a")}), main)
    assert cache.files()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "other",
    [
        hub("other", vram_gb=5),
        hub("other", revision="main"),
        hub("other", revision="a" * 40),
        hub("other", framework="vllm"),
        hub("other", "org/large", engine_args={"speculative_config": {"model": TINY}}),
        hub("other", "org/large", engine_args={"speculative_config": '{"model":"org/tiny","k":3}'}),
        hub("other", "org/large", engine_args={"lora-modules": ["x=org/tiny"]}),
        hub("other", "org/large", env={"DRAFT": TINY}),
        {
            "framework": "command",
            "model_id": "x",
            "command": ["llama-server", "-hf", "org/tiny:Q4", "{port}"],
        },
        {"framework": "command", "model_id": TINY, "command": ["llama-server", "-hf", "{model_id}", "{port}"]},
        {"framework": "command", "model_id": "x", "command": ["x", "/hub/models--org--tiny/snapshots/a/x.gguf"]},
    ],
)
def test_what_another_option_needs_is_refused_naming_it_also_with_force(
    tmp_path: Path, cache: HubCache, other: dict[str, Any], force: bool
) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.load_option("a")
        with pytest.raises(errors.FilesShared, match="needed by b/other, too"):
            await stage.manager.remove_files("a", force=True)
        assert stage.state("a") == "ready", "nothing was unloaded for nothing"
        await stage.manager.unload_model("a")
        with pytest.raises(errors.FilesShared, match="needed by b/other, too"):
            await stage.manager.remove_files("a", force=force, dry_run=True)

    play(staged(tmp_path, {"a": one("a"), "b": {"selected": "other", "options": {"other": other}}}), main)
    assert cache.files()


@pytest.mark.parametrize(
    "other",
    [
        hub("other", "org/tiny-large"),
        hub("other", "my/org"),
        hub("other", revision="v1"),
        hub("other", "org/large", engine_args={"model": "my-org/tiny", "path": "/x/org/tiny", "b": "org/tiny.v2"}),
        {"framework": "command", "model_id": "x", "command": ["x", "models--org--tiny-2/x.gguf", "org/tiny/x"]},
    ],
)
def test_what_only_sounds_alike_is_in_nobodys_way(tmp_path: Path, cache: HubCache, other: dict[str, Any]) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.remove_files("a")

    play(staged(tmp_path, {"a": one("a"), "b": {"selected": "other", "options": {"other": other}}}), main)
    assert not cache.files()


def test_a_revision_that_another_option_names_stays_and_may_be_loaded(tmp_path: Path, cache: HubCache) -> None:
    cache.model(TINY, "b", "v1", values=2000)

    async def main(stage: Stage) -> None:
        await stage.manager.load_option("b")
        done = await stage.manager.remove_files("a")
        assert (done.revisions, done.kept) == ((commit("a"),), (commit("b"),))
        assert stage.state("b") == "ready"

    play(staged(tmp_path, {"a": one("a"), "b": one("b", revision="v1")}), main)
    assert cache.snapshot(TINY, "b").joinpath("model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("option", "why"),
    [
        (hub("it", "mine"), "loaded from mine, which is your own"),
        (hub("it", "mine/x.gguf", quantization="gguf"), "loaded from mine/x.gguf, which is your own"),
        (hub("it", "./nowhere"), "loaded from ./nowhere, which is your own"),
        (hub("it", str(Path(removing.__file__).parents[1] / "samples" / "shapes")), "a sample that ships"),
        (option("it", model_id=TINY), "framework fake"),
        ({"framework": "command", "model_id": TINY, "command": ["x", "{port}"]}, "framework command"),
        ({"framework": "acme", "model_id": TINY}, "framework acme"),
        (hub("it", env={"HF_HOME": "/elsewhere"}), "env of t/it sets HF_HOME"),
    ],
)
def test_what_could_not_be_downloaded_again_is_refused(
    tmp_path: Path, cache: HubCache, option: dict[str, Any], why: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.gguf").write_bytes(b"GGUF")
    before = cache.files()

    async def main(stage: Stage) -> None:
        with pytest.raises(errors.FilesNotDownloaded, match=f"{why}.*only what can be downloaded again") as caught:
            await stage.manager.remove_files("t", force=True)
        assert str(tmp_path) not in str(caught.value)

    play(staged(tmp_path, {"t": {"selected": "it", "options": {"it": option}}}), main)
    assert (tmp_path / "mine" / "x.gguf").exists()
    assert cache.files() == before


def test_what_there_is_no_such_thing_of_is_said(tmp_path: Path, cache: HubCache) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(errors.UnknownTask):
            await stage.manager.remove_files("nobody")
        with pytest.raises(errors.UnknownOption):
            await stage.manager.remove_files("a", "nobody")
        with pytest.raises(errors.BadInput, match="out/claude is an external API"):
            await stage.manager.remove_files("out", force=True)

    play(staged(tmp_path, {"a": one("a"), "out": CLAUDE}), main)


def test_a_model_of_an_earlier_file_that_still_answers_counts_as_loaded(tmp_path: Path, cache: HubCache) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        call = spawn(model.chat("hello"))
        await settle()
        edit(stage, {"a": one("a", dtype="float32", call_s=1000)})
        await stage.manager.reload()
        with pytest.raises(errors.ModelLoaded):
            await stage.manager.remove_files("a")
        done = await stage.manager.remove_files("a", force=True)
        assert done.unloaded == ("a",)
        with pytest.raises(errors.Unloaded):
            await call

    play(staged(tmp_path, {"a": one("a", call_s=1000)}), main)
    assert not cache.files()


def test_a_check_that_is_under_way_is_waited_for_and_finds_nothing(
    tmp_path: Path, cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download can't be stopped: who gave up has left it behind."""

    async def main(stage: Stage) -> None:
        checked = asyncio.Event()
        real = stage.backend.preflight

        async def preflight(request: Any) -> Any:
            await checked.wait()
            return await real(request)

        monkeypatch.setattr(stage.backend, "preflight", preflight)
        left = spawn(stage.manager.get_model("a"))
        await settle()
        left.cancel()
        await settle()
        assert stage.manager.statistics().waiting == 0
        with pytest.raises(errors.ModelLoaded, match="being checked or downloaded") as caught:
            await stage.manager.remove_files("a")
        assert caught.value.retry_after_s
        assert cache.files()
        removes = spawn(stage.manager.remove_files("a"))
        await settle()
        with pytest.raises(errors.FilesKept, match="being deleted already"):
            await stage.manager.remove_files("a")
        late = spawn(stage.manager.get_model("a"))
        await settle()
        assert cache.files()
        checked.set()
        assert (await removes).revisions == (commit("a"),)
        with pytest.raises(errors.FilesBeingRemoved):
            await late
        assert stage.backend.labels("load-start") == []
        await stage.manager.get_model("a")  # fetched anew, if it weren't a fake

    play(staged(tmp_path, {"a": one("a")}), main)


def test_once_begun_it_is_done_though_the_caller_leaves(
    tmp_path: Path, cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        call = spawn(model.chat("hello"))
        await settle()
        removes = spawn(stage.manager.remove_files("a", force=True))
        await settle()
        removes.cancel()
        with pytest.raises(asyncio.CancelledError):
            await removes
        assert cache.files()
        with pytest.raises(errors.Unloaded):
            await call
        await until(60)
        assert not cache.files()

    play(staged(tmp_path, {"a": one("a", call_s=1000, stop_s=5)}), main)


def test_a_load_ahead_is_forgotten(tmp_path: Path, cache: HubCache) -> None:
    """It was checked, and waits for room: once that was made it would begin, and be checked no more."""

    async def main(stage: Stage) -> None:
        await stage.manager.load_option("old")
        await until(100)
        async with stage.manager.pipeline(["a"]):
            await until(101)
            assert stage.backend.labels("preflight") == ["old", "a"]
            assert (stage.state("old"), stage.state("a")) == ("unloading", "disk")
            await stage.manager.remove_files("a")
            assert not cache.files()
            await until(200)
        assert "a" not in stage.backend.labels("load-start")

    play(staged(tmp_path, {"a": one("a"), "old": {"vram_gb": 9, "unload_s": 5}}), main)


def test_a_file_that_can_not_be_deleted_is_named_and_the_model_may_be_asked_for_again(
    tmp_path: Path, cache: HubCache, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(stage: Stage) -> None:
        told = r"models--org--tiny/\S+ .*Input/output error"
        with disk_fails(2, OSError(errno.EIO, "Input/output error")), pytest.raises(errors.RemovalFailed, match=told):
            await stage.manager.remove_files("a")
        await stage.manager.load_option("a")
        await stage.manager.remove_files("a", force=True)

    play(staged(tmp_path, {"a": one("a")}), main)
    assert "a/a: its files could not all be deleted: org/tiny: models--org--tiny/" in caplog.text
    assert not cache.files()


def test_blocking_callers_delete_too(tmp_path: Path, cache: HubCache) -> None:
    with staged(tmp_path, {"a": one("a")}).manager.blocking() as manager:
        assert manager.remove_files("a").revisions == (commit("a"),)
    assert not cache.files()
