"""Pipelines, in virtual time: what comes next is loaded ahead, kept, and delays nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.manager.handles import Model
from taskrouter.manager.pipelines import Pipeline
from tests.manager.acme import OPTION, Acme, Purse
from tests.manager.stage import Stage, now, option, play, until

STEPS = {name: {"kind": "chat", "vram_gb": 4, "load_s": 10} for name in ("hear", "see", "tell")}


def staged(folder: Path, **more: Any) -> Stage:
    return Stage(folder, {**STEPS, "big": {"kind": "chat", "vram_gb": 9, "load_s": 10}}, **more)


def loaded(stage: Stage) -> list[str]:
    return stage.backend.labels("load-start")


def test_a_pipeline_of_the_file_loads_what_comes_next(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await Model(stage.manager, "hear").chat("hi")
        assert now() == 10
        await until(25)
        assert loaded(stage) == ["hear", "see"]
        await until(30)
        assert loaded(stage) == ["hear", "see", "tell"]  # in place of hear, which had its time and is not needed
        await Model(stage.manager, "see").chat("hi")
        assert now() == 30  # it was there
        await until(60)
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


def test_who_is_let_in_from_another_context_moves_it_and_so_does_what_is_around_it(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        begun, over = asyncio.Event(), asyncio.Event()
        pipelines: list[Pipeline] = []

        async def owner() -> None:
            around = stage.manager.pipeline(["hear", "see", "tell"])
            async with around as outer, stage.manager.pipeline(["hear", "tell"]) as inner:
                pipelines.extend((outer, inner))
                begun.set()
                await over.wait()

        async def other(name: str) -> None:
            with pipelines[1].inside():
                await Model(stage.manager, name).chat("hi")
            await Model(stage.manager, "tell").chat("hi")  # outside again

        owning = asyncio.ensure_future(owner())
        await begun.wait()
        await asyncio.gather(*(asyncio.create_task(other("hear")) for _ in range(2)))
        assert [repr(each) for each in pipelines] == ["<Pipeline see → tell>", "<Pipeline tell>"]
        over.set()
        await owning
        await other("see")  # what has ended says nothing
        assert stage.manager._core._hints.ranks == {}

    play(staged(tmp_path), main)


def test_a_request_takes_the_room_of_what_would_be_loaded_ahead(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.pipeline(["hear", "see"]):
            await until(5)
            await Model(stage.manager, "big").chat("hi")
            assert now() == 15, "the loads ahead are cancelled for it"

    play(staged(tmp_path), main)


def test_who_is_unloaded_by_hand_stays_away_until_named_anew(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.pipeline(["hear", "see"]):
            await until(30)
            await stage.manager.unload_model("see")
            await until(60)
            assert stage.state("see") == "disk"
        async with stage.manager.pipeline(["see"]):
            await until(90)
            assert stage.state("see") == "ready"

    play(staged(tmp_path), main)


def test_a_keep_alive_does_not_unload_what_is_needed_soon(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await Model(stage.manager, "hear").chat("hi")
        await until(200)
        assert loaded(stage) == ["hear", "brief"]
        await until(400)  # the pipeline's patience is over
        assert stage.state("brief") == "disk"
        assert loaded(stage) == ["hear", "brief"]

    brief = {"kind": "chat", "vram_gb": 4, "load_s": 10, "keep_alive_s": 5}
    play(Stage(tmp_path, {**STEPS, "brief": brief}, pipelines={"p": ["hear", "brief"]}), main)


def test_a_step_may_take_several_tickets(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.pipeline(["hear", "see", "hear", "tell"]) as pipeline:
            model = await stage.manager.get_model("hear")
            await model.chat("hi")
            await model.chat("hi")
            assert repr(pipeline) == "<Pipeline see → hear → tell>"
            await Model(stage.manager, "see").chat("hi")
            await model.chat("hi")
            assert repr(pipeline) == "<Pipeline tell>"

    play(staged(tmp_path), main)


def test_pipelines_inside_pipelines_both_go_on(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.pipeline(["hear", "see"]) as outer:
            async with stage.manager.pipeline(["hear", "tell"]) as inner:
                await Model(stage.manager, "hear").chat("hi")
                assert (repr(outer), repr(inner)) == ("<Pipeline see>", "<Pipeline tell>")
            await Model(stage.manager, "see").chat("hi")
            assert (repr(outer), repr(inner)) == ("<Pipeline at its end>", "<Pipeline at its end>")

    play(staged(tmp_path), main)


def test_who_leaves_in_another_context_leaves_no_hint(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async def steps() -> AsyncGenerator[int]:
            async with stage.manager.pipeline(["hear", "see"]):
                yield 1

        generator = steps()
        await asyncio.create_task(anext(generator))
        await generator.aclose()  # here, not where it began
        assert stage.manager._core._hints.ranks == {}

    play(staged(tmp_path), main)


def test_a_selection_that_changes_takes_what_was_said_along(tmp_path: Path) -> None:
    options = {name: option(name, 4, load_s=10) for name in ("old", "new")}
    told = {"kind": "chat", "selected": "old", "options": options}

    async def main(stage: Stage) -> None:
        async with stage.manager.pipeline(["told"]):
            await until(15)
            assert loaded(stage) == ["old"]
            await stage.manager.set_selected_model("told", "new")
            await until(30)
            assert (stage.state("old"), stage.state("new")) == ("disk", "ready")
            assert loaded(stage) == ["old", "new"], "the old one is not loaded ahead again"

    play(Stage(tmp_path, {"told": told}), main)


def test_external_steps_are_passed_by(tmp_path: Path) -> None:
    far = {"kind": "chat", "selected": "far", "options": {"far": OPTION}}

    async def main(stage: Stage) -> None:
        await (await stage.manager.get_model("far")).chat("hi")
        await until(30)
        assert loaded(stage) == ["see"]

    stage = Stage(tmp_path, {**STEPS, "far": far}, pipelines={"p": ["far", "see"]})
    stage.registry.register_provider("acme", Acme())
    stage.manager = ModelManager(
        stage.file, registry=stage.registry, machine=stage.machine, spend=Purse(), tracer_provider=None
    )
    play(stage, main)
