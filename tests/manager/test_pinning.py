"""Pins and loads by people: what they keep, and for how long."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskrouter import errors
from taskrouter.types import ModelKey

from .stage import CLAUDE, THREE, Stage, option, play
from .test_reload import edit

TWO = {"say": {"selected": "one", "options": {"one": option("one"), "two": option("two")}}, "b": {}, "c": {}}


def pinned(stage: Stage, name: str) -> bool:
    return next(each.pinned for each in stage.manager.statistics().models.values() if each.label == name)


def test_a_pinned_model_is_no_victim_until_it_is_unpinned(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        await manager.load_option("a")
        await manager.pin_model("a")
        await manager.load_option("b")
        await manager.load_option("c")
        assert stage.backend.labels("unload-start") == ["b"]  # though a was used longer ago
        await manager.pin_model("a", pinned=False)
        await manager.load_option("b")
        assert stage.backend.labels("unload-start") == ["b", "a"]

    play(Stage(tmp_path, THREE), main)


def test_a_pin_outlives_selections_and_reloads_until_the_file_says_otherwise(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        await manager.pin_model("say", option="two")
        assert (pinned(stage, "one"), pinned(stage, "two")) == (False, True)
        await manager.set_selected_model("say", "two")
        await manager.reload()
        assert pinned(stage, "two")
        assert {fit.option: fit.fit.name for fit in manager.budget().options}["two"] == "TOGETHER"
        edit(
            stage,
            {**TWO, "say": {"selected": "one", "options": {"one": option("one"), "two": option("two", pinned=True)}}},
        )
        await manager.reload()
        assert pinned(stage, "two")
        await manager.pin_model("say", pinned=False, option="two")
        assert not pinned(stage, "two")
        edit(stage, TWO)
        await manager.reload()
        assert not pinned(stage, "two")

    play(Stage(tmp_path, TWO), main)


def test_a_pin_that_the_file_overrules_does_not_come_back(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        def written(**keys: object) -> None:
            edit(stage, {**TWO, "b": {**keys}})

        await stage.manager.pin_model("b")
        written(pinned=True)
        await stage.manager.reload()
        written()
        await stage.manager.reload()
        assert not pinned(stage, "b")

    play(Stage(tmp_path, TWO), main)


def test_what_is_no_model_of_this_machine_can_be_neither_pinned_nor_loaded(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        for change in (manager.pin_model, manager.load_option):
            with pytest.raises(errors.UnknownTask):
                await change("nothing")
            with pytest.raises(errors.UnknownOption):
                await change("say", option="nothing")
            with pytest.raises(errors.BadInput, match="external"):
                await change("say")
        await manager.load_option("say", "local")
        assert stage.state("local") == "ready"
        await manager.unload_model("say", option="local")
        assert stage.state("local") == "disk"
        with pytest.raises(errors.UnknownOption):
            await manager.unload_model("say", option="nothing")

    play(Stage(tmp_path, {"say": CLAUDE}), main)


def test_a_load_by_hand_keeps_no_claim_and_is_bounded(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        manager = stage.manager
        await manager.load_option("a")
        assert all(not each.claims and not each.leases for each in manager.statistics().models.values())
        with pytest.raises(errors.BadInput):
            await manager.load_option("a", timeout=-1)
        with pytest.raises(errors.Overloaded):
            await manager.load_option("b", timeout=1)
        assert manager.statistics().waiting == 0

    play(Stage(tmp_path, {"a": {}, "b": {"load_s": 5}}), main)


def test_a_pin_of_an_option_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.pin_model("b")
        edit(stage, {"say": TWO["say"]})
        await stage.manager.reload()
        assert ModelKey("b") not in stage.manager.statistics().models
        edit(stage, TWO)
        await stage.manager.reload()
        assert not pinned(stage, "b")

    play(Stage(tmp_path, TWO), main)
