"""The memory questions of the task-keyed manager: names, shapes and exceptions as they were."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import taskrouter
from taskrouter import errors
from taskrouter.manager import Fit
from taskrouter.types import GIB

from .stage import CLAUDE, ONE, THREE, Stage, play, settle

# --- memory -----------------------------------------------------------------------------------------------------------


def test_gpu_memory_is_what_the_driver_says_over_all_gpus(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        assert manager.get_total_vram() == 16 * GIB
        assert manager.get_available_vram() == 16 * GIB
        await manager.get_model("a")
        stage.others_use(1)
        assert manager.get_available_vram() == 11 * GIB
        assert manager.get_memory_usage_percentage() == pytest.approx(5 / 16)

    play(Stage(tmp_path, THREE, machine={"cuda:0": 10 * GIB, "cuda:1": 6 * GIB}), main)


def test_a_machine_without_gpus_has_no_gpu_memory(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        assert manager.get_total_vram() == manager.get_available_vram() == 0
        assert manager.get_memory_usage_percentage() == 0.0
        assert manager.check_memory_available(8 * GIB)
        assert not manager.check_memory_available(8 * GIB + 1)
        await manager.get_model("a")
        assert manager.get_loaded_models()["a"]["devices"] == ["cpu"]
        assert not manager.check_memory_available(4 * GIB + 1)

    play(Stage(tmp_path, THREE, machine={"cpu": 8 * GIB}), main)


def test_asking_whether_memory_is_available_evicts_nothing_and_asks_one_device(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        await manager.get_model("a")
        assert manager.check_memory_available(6 * GIB)
        assert not manager.check_memory_available(7 * GIB)
        stage.others_use(4)
        assert not manager.check_memory_available(3 * GIB)
        await settle()
        assert list(manager.loaded_models) == ["a"]

    play(Stage(tmp_path, THREE, machine={"cuda:0": 10 * GIB, "cuda:1": 2 * GIB}), main)


def test_the_budget_says_whether_all_selected_fit_at_once(tmp_path: Path) -> None:
    small = Stage(tmp_path, {"a": {}, "b": {}}).manager.validate_memory_budget()
    assert small["valid"] is small["servable"] is True
    assert (small["total_vram_gb"], small["total_required_gb"], small["max_allowed_gb"]) == (10, 8, 10)
    swap = Stage(tmp_path, THREE).manager.validate_memory_budget()
    assert (swap["valid"], swap["servable"]) == (False, True)
    assert {fit["fit"] for fit in swap["model_requirements"].values()} == {Fit.TOGETHER.value, Fit.SWAPPING.value}
    never = Stage(tmp_path, {"a": {"vram_gb": 11}}).manager.validate_memory_budget()
    assert (never["valid"], never["servable"]) == (False, False)
    assert "11.0 GiB" in never["problems"][0]


# --- external options -------------------------------------------------------------------------------------------------


def test_an_external_option_is_described_and_its_key_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "hush-hush")
    manager = Stage(tmp_path, {"far": CLAUDE, "near": {}}).manager
    assert manager.is_external_api("far")
    assert not manager.is_external_api("near")
    config = manager.get_external_api_config("far")
    assert (config.provider, config.model_id, config.requires_api_key) == ("anthropic", "claude-sonnet-4-5", True)
    assert config.api_key == "hush-hush"
    assert "hush" not in repr(config)
    assert "hush" not in str(config)
    with pytest.raises(ValueError, match="near"):
        manager.get_external_api_config("near")


def test_an_external_option_without_its_key_names_the_variable_when_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)

    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("far")
        with pytest.raises(errors.ProviderAuth, match="set ANTHROPIC_API_KEY in the environment"):
            await model.chat("hi")
        await stage.manager.set_selected_model("far", "local")
        model = await stage.manager.get_model("far")
        assert repr(model) == "<Model far → local>"

    play(Stage(tmp_path, {"far": CLAUDE}), main)


# --- life -------------------------------------------------------------------------------------------------------------


def test_shutting_down_may_be_repeated_and_ends_everything(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        await asyncio.gather(stage.manager.shutdown(), stage.manager.shutdown())
        await stage.manager.shutdown()
        with pytest.raises(errors.ManagerClosed):
            await stage.manager.get_model("a")
        assert stage.manager.get_loaded_models() == {}

    play(Stage(tmp_path, THREE), main)


def test_a_manager_that_was_never_used_shuts_down_without_a_loop_of_its_own(tmp_path: Path) -> None:
    manager = Stage(tmp_path, THREE).manager
    asyncio.run(manager.shutdown())
    with pytest.raises(RuntimeError, match="shut down"):
        asyncio.run(manager.get_model("a"))


def test_the_manager_is_a_context_manager(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager as manager:
            await manager.get_model("a")
        assert stage.backend.in_use == {}

    play(Stage(tmp_path, THREE), main)


def test_the_names_are_exported(tmp_path: Path) -> None:
    for name in ("ModelManager", "TaskConfig", "ModelConfig", "InferenceConfig", "UnknownTask", "InsufficientMemory"):
        assert hasattr(taskrouter, name)
    assert ONE
    assert "3 tasks" in repr(Stage(tmp_path, THREE).manager)
