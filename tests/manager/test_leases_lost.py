"""What a lease says of itself to who holds it for somebody else: which option it is of, and that its model is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from taskrouter import errors

from .stage import Stage, option, play, settle, spawn


def test_who_holds_a_model_is_told_that_it_died_or_was_unloaded_by_force_and_of_no_drain(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        told: list[errors.TaskRouterError] = []
        async with stage.manager.lease("a") as model:
            model.on_lost(told.append)
            end = model.on_lost(told.append)
            end()
            end()
            draining = spawn(stage.manager.unload_model("a"))
            await settle()
            assert told == []
            forcing = spawn(stage.manager.unload_model("a", force=True))
            await settle()
            assert [type(each) for each in told] == [errors.Unloaded]
            assert stage.leases() == 1, "it is left by whoever entered it"
        await asyncio.gather(draining, forcing)
        async with stage.manager.lease("a") as model:
            model.on_lost(told.append)
            stage.backend.kill("a")
            await settle()
            assert type(told.pop()) is errors.ModelDied
            model.on_lost(told.append)
            assert type(told.pop()) is errors.ModelDied, "who asks later is told at once"
        with pytest.raises(RuntimeError, match="inside"):
            model.on_lost(told.append)

    play(Stage(tmp_path, {"a": {}}), main)


def test_a_lease_says_which_option_it_was_routed_to(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a") as model, stage.manager.lease("a") as inner:
            for each in (model, inner):
                assert each.target.option == "two"
                assert each.routed is not None
                assert [passed.option for passed in each.routed.passed] == ["one"]
        async with stage.manager.lease("b") as model:
            assert model.routed is None

    options = {"one": option("one", fail="error"), "two": option("two")}
    whole = {"selected": "one", "fallback": ["two"], "options": options}
    play(Stage(tmp_path, {"a": whole, "b": {}}), main)
