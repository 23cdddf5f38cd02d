"""Pipelines, in virtual time: what comes next is loaded ahead, kept, and delays nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.manager.handles import Model
from tests.manager.acme import OPTION, Acme, Purse
from tests.manager.stage import Stage, now, play, until

STEPS = {name: {"kind": "chat", "vram_gb": 4, "load_s": 10} for name in ("hear", "see", "tell")}


def staged(folder: Path, **more: Any) -> Stage:
    return Stage(folder, {**STEPS, "big": {"kind": "chat", "vram_gb": 9, "load_s": 10}}, **more)


def loaded(stage: Stage) -> list[str]:
    return stage.backend.labels("load-start")


def test_a_pipeline_of_the_file_loads_what_comes_next(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await Model(stage.manager, "hear").chat("hi")
        assert now() == 10
        await until(30)
        assert loaded(stage) == ["hear", "see"]
        await Model(stage.manager, "see").chat("hi")
        assert now() == 30  # it was there
        await until(60)
        assert loaded(stage) == ["hear", "see", "tell"]  # in place of hear, which is not needed any more
        assert set(stage.manager.loaded_models) == {"see", "tell"}

    play(staged(tmp_path, pipelines={"report": ["hear", "see", "tell"]}), main)


def test_without_a_pipeline_nothing_is_loaded_ahead(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await Model(stage.manager, "hear").chat("hi")
        await until(100)
        assert loaded(stage) == ["hear"]

    play(staged(tmp_path), main)


def test_a_pipeline_of_a_caller_counts_for_what_is_asked_inside(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.pipeline(["hear", "see", "tell"]) as pipeline:
            await until(25)
            assert loaded(stage) == ["hear", "see"]  # there is room for two
            for name in ("hear", "see", "tell"):
                async with stage.manager.lease(name) as model:
                    await model.chat("hi")
                await until(now() + 12)
            assert loaded(stage) == ["hear", "see", "tell"]
            assert repr(pipeline) == "<Pipeline at its end>"
        with pytest.raises(errors.UnknownTask):
            stage.manager.pipeline(["hear", "sea"])

    play(staged(tmp_path), main)


def test_what_is_asked_outside_does_not_move_it(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        ready = asyncio.Event()

        async def other() -> None:
            await ready.wait()
            await Model(stage.manager, "see").chat("hi")

        outside = asyncio.ensure_future(other())
        async with stage.manager.pipeline(["hear", "see", "tell"]) as pipeline:
            ready.set()
            await outside
            assert repr(pipeline) == "<Pipeline hear → see → tell>"

    play(staged(tmp_path), main)


def test_a_request_takes_the_room_of_what_would_be_loaded_ahead(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.pipeline(["hear", "see"]):
            await until(5)
            await Model(stage.manager, "big").chat("hi")
            assert now() == 15, "the loads ahead are cancelled for it"

    play(staged(tmp_path), main)


def test_external_steps_are_passed_by(tmp_path: Path) -> None:
    far = {"kind": "chat", "selected": "far", "options": {"far": OPTION}}

    async def main(stage: Stage) -> None:
        await (await stage.manager.get_model("far")).chat("hi")
        await until(30)
        assert loaded(stage) == ["see"]
        await stage.manager.unload_model("see")
        async with stage.manager.pipeline(["far", "see"]):
            await until(60)
            assert loaded(stage) == ["see", "see"]

    stage = Stage(tmp_path, {**STEPS, "far": far}, pipelines={"p": ["far", "see"]})
    stage.registry.register_provider("acme", Acme())
    stage.manager = ModelManager(
        stage.file, registry=stage.registry, machine=stage.machine, spend=Purse(), tracer_provider=None
    )
    play(stage, main)
