"""Pipelines, in virtual time: what comes next is loaded ahead, kept, and delays nobody."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.manager.handles import Model
from taskrouter.manager.pipelines import Pipeline, Pipelines
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


def test_any_number_inside_each_other_costs_no_stack(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.pipeline(["hear"]) as outermost, AsyncExitStack() as entered:
            for _ in range(1500):
                innermost = await entered.enter_async_context(stage.manager.pipeline([]))
            assert innermost.depth == 1501
            await Model(stage.manager, "hear").chat("hi")
            assert repr(outermost) == "<Pipeline at its end>"
            await entered.aclose()
            assert (outermost.depth, innermost.depth) == (1, 2), "those between have ended"

    play(staged(tmp_path), main)


def test_one_that_has_ended_is_kept_by_none_inside_of_it(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async def inside(outer: Pipeline, over: asyncio.Event, begun: asyncio.Future[Pipeline]) -> None:
            with outer.inside():
                async with stage.manager.pipeline(["hear"]) as inner:
                    begun.set_result(inner)
                    del outer, inner, begun
                    await over.wait()

        async with stage.manager.pipeline(["hear", "see"]) as first:
            kept: list[weakref.ref[Pipeline]] = []
            latest, earlier = first, None
            for _ in range(5):
                over, begun = asyncio.Event(), asyncio.get_running_loop().create_future()
                task = asyncio.ensure_future(inside(latest, over, begun))
                latest = await begun
                kept.append(weakref.ref(latest))
                if earlier is not None:
                    earlier[1].set()
                    await earlier[0]
                earlier = task, over
            del begun, task
            assert latest.depth == 2
            gc.collect()
            assert [each() for each in kept[:3]] == [None] * 3  # who is inside of the next keeps that themselves
            with latest.inside():
                await Model(stage.manager, "hear").chat("hi")
            assert repr(first) == "<Pipeline see>"
            assert earlier is not None
            earlier[1].set()
            await earlier[0]

    play(staged(tmp_path), main)


@pytest.mark.parametrize("error", [RecursionError, errors.BadInput])
def test_who_can_not_say_what_comes_keeps_no_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fails(self: Pipelines, task: str) -> None:
        raise error("on purpose")

    async def main(stage: Stage) -> None:
        manager = stage.manager
        handle, lease = Model(manager, "one", timeout=0), manager.lease("one", timeout=0)
        async with manager.pipeline([]):
            with monkeypatch.context() as broken:
                broken.setattr(Pipelines, "asked", fails)
                with pytest.raises(error):
                    await Model(manager, "one").chat("hi")  # it would wait for the load
            await Model(manager, "one").chat("hi")
            with monkeypatch.context() as broken:
                broken.setattr(Pipelines, "asked", fails)
                for asked in (handle.chat("hi"), lease.__aenter__(), manager.lease("one").__aenter__()):
                    with pytest.raises(error):
                        await asked
            assert stage.leases() == 0
            with pytest.raises(RuntimeError, match="inside"):
                await lease.chat("hi")
            assert (await handle.chat("hi")).text == "one: hi"

    play(Stage(tmp_path, {"one": {"kind": "chat", "vram_gb": 4, "load_s": 10, "slots": 1}}), main)


def test_who_can_not_say_what_comes_keeps_no_turn_of_a_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Pipelines, task: str) -> None:
        raise RecursionError("on purpose")

    far = {"kind": "chat", "selected": "far", "options": {"far": {**OPTION, "max_concurrency": 1}}}

    async def main(stage: Stage) -> None:
        handle = Model(stage.manager, "far", timeout=1)
        async with stage.manager.pipeline([]):
            with monkeypatch.context() as broken:
                broken.setattr(Pipelines, "asked", fails)
                with pytest.raises(RecursionError):
                    await handle.chat("hi")
            await handle.chat("hi")

    stage = Stage(tmp_path, {"far": far})
    stage.registry.register_provider("acme", Acme())
    stage.manager = ModelManager(
        stage.file, registry=stage.registry, machine=stage.machine, spend=Purse(), tracer_provider=None
    )
    play(stage, main)
