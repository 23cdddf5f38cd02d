"""The same promises with real Transformers models: tiny, on the CPU, in real time."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.manager import StillMachine
from taskrouter.types import GIB
from tests.hub_cache import HubCache, use

pytestmark = pytest.mark.slow
SAMPLES = Path(__file__).parents[2] / "taskrouter" / "samples"


@pytest.fixture
def manager(tmp_path: Path) -> ModelManager:
    pytest.importorskip("torch").set_num_threads(1)
    pytest.importorskip("transformers")
    tasks = {
        "claims": {"kind": "chat", "folder": "claims"},
        "shapes": {"kind": "image_classification", "folder": "shapes"},
        "broken": {"kind": "chat", "folder": "media"},
    }
    whole = {
        name: {
            "kind": task["kind"],
            "selected": name,
            "options": {name: {"model_id": str(SAMPLES / task["folder"]), "framework": "transformers"}},
        }
        for name, task in tasks.items()
    }
    file = tmp_path / "models.yaml"
    sections = {"memory": {"max_models": 1}, "media": {"roots": [str(SAMPLES)]}}
    file.write_text(json.dumps({"tasks": whole, **sections}), encoding="utf-8")
    return ModelManager(file, machine=StillMachine({"cpu": 4 * GIB}))


def test_real_models_take_turns_and_leave_nothing(manager: ModelManager) -> None:
    async def main() -> None:
        async with manager:
            shapes = await manager.get_model("shapes")
            image = SAMPLES / "media" / "red-circle.png"
            assert (await shapes.classify(image, top_k=1))[0].label == "red circle"
            async with manager.lease("claims") as model:
                seen = weakref.ref(model.raw)
                assert (await model.chat("hello", max_tokens=5)).usage
            assert list(manager.loaded_models) == ["claims"]
            with pytest.raises(errors.PreflightFailed):
                await manager.get_model("broken")
            assert list(manager.loaded_models) == ["claims"]
            labels = await asyncio.gather(*[shapes.classify(image) for _ in range(5)])
            assert {found[0].label for found in labels} == {"red circle"}
            gc.collect()
            assert seen() is None
            assert all(not status.residue for status in manager.statistics().models.values())

    asyncio.run(main())


def test_a_real_stream_that_is_left_early_stops_and_ends_its_lease(manager: ModelManager) -> None:
    async def main() -> None:
        async with manager:
            claims = await manager.get_model("claims")
            async with claims.stream_chat("hello") as chunks:
                await anext(chunks)
            await chunks.aclose()
            assert all(not status.leases for status in manager.statistics().models.values())
            assert not manager.leases

    asyncio.run(main())


def test_a_full_disk_while_one_model_loads_costs_nothing_that_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a load writes is the checkpoint's own code, copied into a cache before it runs."""
    pytest.importorskip("torch").set_num_threads(1)
    own = tmp_path / "own"
    shutil.copytree(SAMPLES / "claims", own)
    config = json.loads((own / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": ["Own"], "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (own / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (own / "modeling_own.py").write_text("from transformers import LlamaForCausalLM as Own\n", encoding="utf-8")
    tasks = {
        "shapes": {"model_id": str(SAMPLES / "shapes"), "framework": "transformers"},
        "own": {"model_id": str(own), "framework": "transformers", "trust_remote_code": True},
    }
    whole = {name: {"selected": name, "options": {name: option}} for name, option in tasks.items()}
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"tasks": whole, "media": {"roots": [str(SAMPLES)]}}), encoding="utf-8")

    def full(source: Any, target: Any, **_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    async def main() -> None:
        async with ModelManager(file, machine=StillMachine({"cpu": 4 * GIB})) as manager:
            async with manager.lease("shapes") as shapes:
                with monkeypatch.context() as patch:
                    patch.setattr(shutil, "copy", full)
                    patch.setattr(shutil, "copyfile", full)
                    with pytest.raises(errors.TaskRouterError, match="the disk is full"):
                        await manager.get_model("own")
                labels = await shapes.classify(SAMPLES / "media" / "red-circle.png", top_k=1)
                assert labels[0].label == "red circle"
            assert list(manager.loaded_models) == ["shapes"]
            manager._core.check()

    asyncio.run(main())


def test_a_real_model_answers_until_its_files_are_deleted_and_is_missing_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch").set_num_threads(1)
    pytest.importorskip("transformers")
    cache = HubCache(tmp_path / "hub")
    use(cache, monkeypatch)
    cache.add("org/shapes", "a", {file.name: file.read_bytes() for file in (SAMPLES / "shapes").iterdir()}, "main")
    option = {"model_id": "org/shapes", "framework": "transformers"}
    task = {"kind": "image_classification", "selected": "it", "options": {"it": option}}
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"tasks": {"shapes": task}, "media": {"roots": [str(SAMPLES)]}}), encoding="utf-8")

    async def main() -> None:
        async with ModelManager(file, machine=StillMachine({"cpu": 4 * GIB})) as manager:
            shapes = await manager.get_model("shapes")
            image = SAMPLES / "media" / "red-circle.png"
            assert (await shapes.classify(image))[0].label == "red circle"
            with pytest.raises(errors.ModelLoaded):
                await manager.remove_files("shapes")
            assert (await shapes.classify(image))[0].label == "red circle"
            done = await manager.remove_files("shapes", force=True)
            assert done.bytes >= (SAMPLES / "shapes" / "model.safetensors").stat().st_size
            assert cache.files() == set()
            with pytest.raises(errors.CheckpointMissing, match="hf download org/shapes"):
                await shapes.classify(image)

    asyncio.run(main())
