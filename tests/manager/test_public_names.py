"""The names, shapes and errors that code written against the older task-keyed managers relies on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.manager import Model
from taskrouter.types import GIB

from .stage import CLAUDE, THREE, Stage, option, play, settle


def test_making_a_manager_touches_nothing_but_the_file(tmp_path: Path) -> None:
    class Untouched:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the machine was asked for {name}")

    stage = Stage(tmp_path, THREE)
    manager = ModelManager(str(stage.file), registry=stage.registry, machine=Untouched())
    assert manager.config_path == stage.file
    assert list(manager.tasks) == ["a", "b", "c"]
    assert manager.inference_config.offload_threshold == 1.0
    assert manager.get_model_config("a") is not None
    assert stage.backend.events == []


def test_a_missing_file_is_a_file_not_found_error_and_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ModelManager(tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match="nowhere"):
        ModelManager(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("call", ["get_model", "load_model", "unload_model"])
def test_an_unknown_task_is_a_value_error_that_names_the_nearest(tmp_path: Path, call: str) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(ValueError, match="did you mean 'detect'"):
            await getattr(stage.manager, call)("detectt")

    play(Stage(tmp_path, {"detect": {}}), main)


def test_questions_about_an_unknown_task_are_answered_as_before(tmp_path: Path) -> None:
    manager = Stage(tmp_path, THREE).manager
    assert manager.get_model_config("nothing") is None
    for ask in (manager.is_external_api, manager.get_external_api_config, manager.lease):
        with pytest.raises(ValueError, match="nothing"):
            ask("nothing")


def test_selecting_what_is_not_there_is_a_value_error_and_changes_nothing(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(ValueError, match="nothing"):
            await stage.manager.set_selected_model("nothing", "a")
        with pytest.raises(errors.UnknownOption):
            await stage.manager.set_selected_model("a", "nothing")
        assert stage.manager.tasks["a"].selected == "a"

    play(Stage(tmp_path, THREE), main)


def test_a_model_larger_than_the_device_is_a_runtime_error_at_once_and_evicts_nothing(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        with pytest.raises(RuntimeError, match="11"):
            await stage.manager.get_model("huge")
        assert list(stage.manager.loaded_models) == ["a"]
        assert stage.backend.labels("unload-start") == []

    play(Stage(tmp_path, {"a": {}, "huge": {"vram_gb": 11}}), main)


def test_the_deadline_is_a_timeout_error_that_says_when_to_come_back(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(TimeoutError) as caught:
            await stage.manager.get_model("a", timeout=2)
        assert isinstance(caught.value, errors.Overloaded)
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s >= 28
        assert stage.manager.performer is not None
        assert stage.manager.performer.loop.time() == pytest.approx(2)

    play(Stage(tmp_path, {"a": {"load_s": 30}}), main)


def test_loaded_models_are_in_the_order_of_their_last_use(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        first = await manager.get_model("a")
        await manager.load_model("b")
        assert list(manager.loaded_models) == ["a", "b"]
        assert manager.get_lru_model() == "a"
        await first.chat("hello")
        assert list(manager.loaded_models) == ["b", "a"]
        assert manager.get_lru_model() == "b"
        await manager.get_model("c")
        assert list(manager.loaded_models) == ["a", "c"]

    play(Stage(tmp_path, THREE, memory={"claim_s": 0}), main)


def test_what_is_loaded_is_told_with_its_size_and_its_time(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        assert stage.manager.get_loaded_models() == {}
        await stage.manager.get_model("a")
        info = stage.manager.get_loaded_models()["a"]
        assert info["model_id"] == "a"
        assert info["framework"] == "fake"
        assert info["memory_bytes"] == stage.manager.model_memory_usage["a"] == 4 * GIB
        assert info["load_time"] == pytest.approx(stage.manager.model_load_times["a"])
        assert json.dumps(info)

    play(Stage(tmp_path, THREE), main)


def test_the_views_are_live(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        loaded, times, sizes, tasks = (
            manager.loaded_models,
            manager.model_load_times,
            manager.model_memory_usage,
            manager.tasks,
        )
        assert len(loaded) == len(times) == len(sizes) == 0
        await manager.get_model("a")
        assert list(loaded) == list(times) == list(sizes) == ["a"]
        assert isinstance(loaded["a"], Model)
        await manager.set_selected_model("a", "other")
        assert tasks["a"].selected == "other"
        await manager.unload_model("a")
        assert "a" not in loaded

    whole = {"selected": "a", "options": {"a": option("a"), "other": option("other")}}
    play(Stage(tmp_path, {"a": whole}), main)


def test_the_views_can_only_be_read(tmp_path: Path) -> None:
    manager = Stage(tmp_path, THREE).manager
    views: list[Any] = [
        manager.tasks,
        manager.loaded_models,
        manager.model_load_times,
        manager.model_memory_usage,
        manager.config,
        manager.config["tasks"]["a"],
        manager.tasks["a"].options,
    ]
    for view in views:
        assert isinstance(view, Mapping)
        with pytest.raises(TypeError):
            view["a"] = None  # type: ignore[index]
    assert json.loads(json.dumps(manager.config))["tasks"]["a"]["selected"] == "a"


def test_evicting_takes_the_idle_model_used_longest_ago(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        assert manager.get_lru_model() is None
        assert await manager.evict_lru_model() is None
        await manager.get_model("a")
        await manager.get_model("b")
        async with manager.lease("a"):
            assert manager.get_lru_model() == "b"
            assert await manager.evict_lru_model() == "b"
            assert manager.get_lru_model() is None
            assert await manager.evict_lru_model() is None
        assert await manager.evict_lru_model() == "a"
        assert list(manager.loaded_models) == []

    play(Stage(tmp_path, THREE), main)


def test_unloading_what_is_not_loaded_does_nothing(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.unload_model("a")
        await stage.manager.unload_model("outside")
        assert stage.backend.events == []

    play(Stage(tmp_path, {"a": {}, "outside": CLAUDE}), main)


def test_unloading_a_busy_model_waits_for_its_work(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        call = asyncio.ensure_future(model.chat("hello"))
        await settle()
        await stage.manager.unload_model("a")
        assert call.done()
        assert (await call).text
        assert stage.manager.performer is not None
        assert stage.manager.performer.loop.time() == pytest.approx(7)

    play(Stage(tmp_path, {"a": {"call_s": 7}}), main)


def test_selecting_another_option_of_a_resident_task_swaps_the_models(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        model = await manager.get_model("t")
        await manager.set_selected_model("t", "large")
        assert stage.backend.labels("load-end") == ["small", "large"]
        assert stage.backend.labels("unload-end") == ["small"]
        assert manager.tasks["t"].selected == model.option == "large"
        assert list(manager.get_loaded_models()) == ["t"]
        await model.chat("hello")
        assert stage.backend.labels("call-end") == ["large"]

    whole = {"selected": "small", "options": {"small": option("small"), "large": option("large", vram_gb=8)}}
    play(Stage(tmp_path, {"t": whole}), main)


def test_both_models_are_there_for_a_moment_when_both_fit(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("t")
        await stage.manager.set_selected_model("t", "other")
        order = [
            (what, key.split("#")[0]) for what, key in stage.backend.events if what in ("load-end", "unload-start")
        ]
        assert order == [("load-end", "one"), ("load-end", "other"), ("unload-start", "one")]

    whole = {"selected": "one", "options": {"one": option("one"), "other": option("other")}}
    play(Stage(tmp_path, {"t": whole}), main)


def test_a_selection_that_can_not_be_loaded_leaves_everything_as_it_was(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("t")
        for bad, error in (
            ("broken", errors.LoadFailed),
            ("huge", errors.InsufficientMemory),
            ("unchecked", errors.PreflightFailed),
            ("unknown", errors.MissingDependency),
        ):
            with pytest.raises(error):
                await stage.manager.set_selected_model("t", bad)
            assert stage.manager.tasks["t"].selected == "good"
            assert (await model.chat("hello")).text
        assert stage.backend.labels("call-end") == ["good"] * 4

    options = {
        "good": option("good"),
        "broken": option("broken", fail="error"),
        "huge": option("huge", vram_gb=99),
        "unchecked": option("unchecked", fail="preflight"),
        "unknown": {"model_id": "x", "framework": "whisper"},
    }
    play(Stage(tmp_path, {"t": {"selected": "good", "options": options}}), main)


def test_selecting_for_a_cold_task_loads_nothing(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.set_selected_model("t", "other")
        assert stage.manager.tasks["t"].selected == "other"
        assert stage.backend.events == []

    whole = {"selected": "one", "options": {"one": option("one"), "other": option("other")}}
    play(Stage(tmp_path, {"t": whole}), main)


def test_selecting_never_drops_a_copy_that_another_task_selects(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("t")
        await stage.manager.set_selected_model("t", "other")
        assert stage.backend.labels("unload-start") == []
        assert sorted(stage.manager.loaded_models) == ["t", "u"]

    shared = option("shared")
    tasks = {
        "t": {"selected": "one", "options": {"one": shared, "other": option("other")}},
        "u": {"selected": "one", "options": {"one": shared}},
    }
    play(Stage(tmp_path, tasks), main)


def test_two_tasks_with_the_same_model_share_one_copy(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("t")
        await stage.manager.get_model("u")
        assert stage.backend.labels("load-end") == ["one"]
        assert sorted(stage.manager.get_loaded_models()) == ["t", "u"]
        assert stage.backend.in_use == {"cuda:0": 4 * GIB}

    whole = {"selected": "one", "options": {"one": option("shared")}}
    play(Stage(tmp_path, {"t": whole, "u": whole}), main)
