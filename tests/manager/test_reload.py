"""A file that is edited while everything runs: what stays, what goes, and what a bad edit changes (nothing)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.manager.reloading import Reloaded
from tests.manager.stage import GPU, THREE, Stage, option, play, settle, spawn, task, until
from tests.manager.test_routed import Routes


def edit(stage: Stage, tasks: dict[str, Any], **sections: Any) -> None:
    """Write the file anew."""
    whole = {name: dict(t) if "options" in t else task(name, **t) for name, t in tasks.items()}
    sections.setdefault("inference", {}).setdefault("offload_threshold", 1.0)
    stage.file.write_text(json.dumps({"tasks": whole, **sections}), encoding="utf-8")


def test_a_file_that_says_the_same_changes_nothing(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        reloaded = await stage.manager.reload()
        assert reloaded == Reloaded(warnings=reloaded.warnings)
        assert str(reloaded) == "nothing changed"
        await (await stage.manager.get_model("a")).chat("x")
        assert stage.backend.labels("load-start") == ["a"]

    play(Stage(tmp_path, THREE), main)


def test_unaffected_models_keep_serving_and_a_removed_one_goes(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        kept, gone = await manager.get_model("a"), await manager.get_model("b")
        edit(stage, {"a": {"vram_gb": 4}, "d": {"vram_gb": 4}})
        reloaded = await manager.reload()
        assert (reloaded.added, reloaded.removed, reloaded.changed) == (("d/d",), ("b/b", "c/c"), ())
        await settle()
        assert stage.backend.labels("unload-start") == ["b"]
        assert (await kept.chat("x")).text
        with pytest.raises(errors.UnknownTask, match="'b'"):
            await gone.chat("x")
        assert (await (await manager.get_model("d")).chat("x")).text
        assert stage.backend.labels("load-start") == ["a", "b", "d"]
        assert list(manager.tasks) == ["a", "d"]
        assert {status.label for status in manager.statistics().models.values()} == {"a", "d"}

    play(Stage(tmp_path, THREE), main)


def test_a_reload_during_a_load_neither_orphans_nor_repeats_it(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        asked = spawn(stage.manager.get_model("a"))
        await until(1)
        edit(stage, {"a": {"vram_gb": 4, "load_s": 5}, "b": {"vram_gb": 2}})
        await stage.manager.reload()
        assert (await (await asked).chat("x")).text
        assert stage.backend.labels("load-start") == ["a"]

    play(Stage(tmp_path, {"a": {"vram_gb": 4, "load_s": 5}}), main)


def test_a_task_that_is_renamed_while_it_is_leased_keeps_its_model_charged_once(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        async with manager.lease("a") as model:
            edit(stage, {"z": {"selected": "a", "options": {"a": option("a")}}})
            await manager.reload()
            assert (await model.chat("x")).text
            assert manager.statistics().devices[GPU].charged == 4 << 30
        await (await manager.get_model("z")).chat("x")
        assert stage.backend.labels("load-start") == ["a"]

    play(Stage(tmp_path, THREE), main)


def test_a_removed_model_that_is_leased_finishes_first(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a") as model:
            edit(stage, {"b": {}})
            await stage.manager.reload()
            await settle()
            assert stage.backend.labels("unload-start") == []
            assert (await model.chat("x")).text
        await settle()
        assert stage.backend.labels("unload-start") == ["a"]

    play(Stage(tmp_path, THREE), main)


def test_who_waits_for_what_is_removed_is_told(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a"):
            waits = spawn(stage.manager.get_model("b"))
            await settle()
            edit(stage, {"a": {"vram_gb": 8}})
            await stage.manager.reload()
            with pytest.raises(errors.Unloaded, match="no longer configured"):
                await waits

    play(Stage(tmp_path, {"a": {"vram_gb": 8}, "b": {"vram_gb": 8}}), main)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("tasks: {a: {selected: x, options: {}}}", errors.ConfigError),
        ("tasks: [", errors.ConfigError),
        ("", errors.ConfigError),
        (None, errors.ConfigNotFound),
    ],
)
def test_a_bad_file_changes_nothing(tmp_path: Path, text: str | None, error: type[Exception]) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        before = stage.manager.catalog
        if text is None:
            stage.file.unlink()
        else:
            stage.file.write_text(text, encoding="utf-8")
        with pytest.raises(error):
            await stage.manager.reload()
        assert stage.manager.catalog is before
        assert (await model.chat("x")).text
        assert stage.backend.labels("load-start") == ["a"]

    play(Stage(tmp_path, THREE), main)


TWO = {"selected": "small", "options": {"small": option("small"), "large": option("large", vram_gb=8)}}


def test_what_was_selected_meanwhile_stays_selected(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.set_selected_model("t", "large")
        edit(stage, {"t": TWO, "more": {}})
        reloaded = await stage.manager.reload()
        assert stage.manager.tasks["t"].selected == "large"
        assert reloaded.selected == {}

    play(Stage(tmp_path, {"t": TWO}), main)


def test_a_selection_that_is_new_in_the_file_is_taken_over(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("t")
        edit(stage, {"t": {**TWO, "selected": "large"}})
        reloaded = await stage.manager.reload()
        assert reloaded.selected == {"t": ("small", "large")}
        assert str(reloaded) == "t selects large, not small any more"
        model = await stage.manager.get_model("t")
        assert model.option == "large"
        assert stage.backend.labels("load-start") == ["small", "large"]

    play(Stage(tmp_path, {"t": TWO}), main)


def test_a_selected_option_that_is_removed_gives_way_to_the_files(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.set_selected_model("t", "large")
        edit(stage, {"t": {"selected": "small", "options": {"small": option("small")}}})
        assert (await stage.manager.reload()).selected == {"t": ("large", "small")}

    play(Stage(tmp_path, {"t": TWO}), main)


def test_budgets_and_settings_act_at_once(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        await manager.get_model("a")
        await manager.get_model("b")
        budget = {"memory": {"devices": {"cuda:0": {"budget": "4GiB"}}, "stream_idle_s": 7, "claim_s": 0}}
        edit(stage, THREE, **budget, media={"max_pixels": 99})
        reloaded = await manager.reload()
        assert reloaded.changed == ("memory", "media")
        await until(10)
        assert len(stage.backend.labels("unload-start")) == 1
        assert (manager.stream_idle_s, manager.media_limits.max_pixels) == (7, 99)

    play(Stage(tmp_path, THREE), main)


def test_an_option_that_is_loaded_otherwise_now_is_another_model(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        edit(stage, {**THREE, "a": {"vram_gb": 4, "revision": "next"}})
        assert (await stage.manager.reload()).changed == ("a/a",)
        await (await stage.manager.get_model("a")).chat("x")
        assert stage.backend.labels("load-start") == ["a", "a"]
        assert stage.backend.labels("unload-start") == ["a"]

    play(Stage(tmp_path, THREE), main)


def test_a_tasks_own_settings_are_told_and_act(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        edit(stage, {**THREE, "a": {"vram_gb": 4, "max_wait_s": 3}})
        assert (await stage.manager.reload()).changed == ("a",)
        assert stage.manager.target("a").max_wait_s == 3

    play(Stage(tmp_path, THREE), main)


def test_what_only_a_restart_can_change_is_said(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        edit(stage, THREE, memory={"share": True, "devices": {"cuda:0": {"budget": "9GiB"}}})
        reloaded = await stage.manager.reload()
        assert reloaded.restart == ("memory.share",)
        assert "memory.share acts after a restart" in str(reloaded)
        edit(stage, THREE, memory={"share": True, "devices": {"cuda:0": {"budget": "9GiB"}}}, server={"port": 8701})
        assert (await stage.manager.reload()).restart == ("server.port",)
        edit(stage, THREE, memory={"share": True, "devices": {"cuda:0": {"budget": "9GiB"}}},
             server={"port": 8701, "api_keys_env": "OTHER"})  # fmt: skip
        assert (await stage.manager.reload()).restart == (), "keys are read again"

    play(Stage(tmp_path, THREE), main)


def test_pipelines_are_the_files_of_now(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        edit(stage, THREE, pipelines={"p": ["a", "b"]})
        await stage.manager.reload()
        await stage.manager.get_model("a")
        await until(1)
        assert stage.backend.labels("load-start") == ["a", "b"]
        edit(stage, THREE, pipelines={"q": ["a", "c"]})
        await stage.manager.reload()
        await until(100)
        await stage.manager.unload_model("b")
        await (await stage.manager.get_model("a")).chat("x")
        await until(101)
        assert stage.backend.labels("load-start") == ["a", "b", "c"]

    play(Stage(tmp_path, THREE), main)


def test_of_two_reloads_the_one_that_began_later_decides(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        manager._applied = 5  # as if four more had begun, and ended, while this one read its file
        edit(stage, {"a": {}})
        assert await manager.reload() == manager._last
        assert list(manager.tasks) == ["a", "b", "c"]

    play(Stage(tmp_path, THREE), main)


def test_a_reload_after_the_shutdown_is_refused(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        await stage.manager.shutdown()
        with pytest.raises(errors.ManagerClosed):
            await stage.manager.reload()

    play(Stage(tmp_path, THREE), main)


def test_what_a_backend_is_told_of_a_model_that_is_gone_is_forgotten_in_the_end(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        for number in range(20):
            edit(stage, {"a": {"vram_gb": 4, "revision": str(number)}})
            await stage.manager.reload()
            await stage.manager.get_model("a")
            await settle()
        assert len(stage.manager._requests) <= 3
        assert len(stage.manager._core._models) <= 3

    play(Stage(tmp_path, {"a": {"vram_gb": 4}}), main)


def test_external_options_are_asked_as_the_file_says_now(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        assert isinstance(stage, Routes)
        await (await stage.manager.get_model("e")).chat("x")
        first = stage.acme.only
        raw = json.loads(stage.file.read_text())
        for each in raw["tasks"].values():
            if "far" in each["options"]:
                each["options"]["far"]["model_id"] = "newer"
        raw["providers"] = {"acme": {"max_connections": 3}}
        stage.file.write_text(json.dumps(raw))
        reloaded = await stage.manager.reload()
        assert set(reloaded.changed) == {"t/far", "e/far", "f/far", "providers"}
        await settle()
        assert first.closed
        await (await stage.manager.get_model("e")).chat("x")
        assert len(stage.acme.connections) == 2
        assert stage.acme.connections[1].calls[-1].model_id == "newer"

    play(Routes(tmp_path), main)


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_signal_reloads_and_what_is_wrong_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, before: signal.Handlers
) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("tasks: {a: {selected: a, options: {a: {model_id: a, framework: fake}}}}")

    async def main() -> None:
        async with ModelManager(file) as manager:
            manager.reload_on(signal.SIGHUP)
            file.write_text("tasks: {b: {selected: a, options: {a: {model_id: a, framework: fake}}}}")
            os.kill(os.getpid(), signal.SIGHUP)
            for _ in range(500):
                await asyncio.sleep(0.01)
                if list(manager.tasks) == ["b"]:
                    break
            assert list(manager.tasks) == ["b"]
            file.write_text("tasks: nonsense")
            with caplog.at_level(logging.ERROR, "taskrouter"):
                os.kill(os.getpid(), signal.SIGHUP)
                for _ in range(500):
                    await asyncio.sleep(0.01)
                    if caplog.records:
                        break
            assert "was not reloaded, all goes on as it was" in caplog.text
            assert list(manager.tasks) == ["b"]

    was = signal.signal(signal.SIGHUP, before)
    try:
        asyncio.run(main())
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, was)


def test_the_blocking_manager_reloads(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("tasks: {a: {selected: a, options: {a: {model_id: a, framework: fake}}}}")
    with ModelManager(file).blocking() as manager:
        file.write_text("tasks: {b: {selected: a, options: {a: {model_id: a, framework: fake}}}}")
        assert manager.reload().added == ("b/a",)
        assert list(manager.tasks) == ["b"]
