"""Backends that break their contract: whatever they do, every caller gets an answer and the books stay true."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from taskrouter.backends.base import LoadedModel
from taskrouter.backends.fake import FakeModel
from taskrouter.errors import CoolingDown, LoadFailed, TaskRouterError

from .stage import Stage, play


def test_a_cooldown_can_be_cleared_by_hand(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"a": {"fail": "error", "fail_times": 2}})

    async def main(stage: Stage) -> None:
        for _ in range(2):
            with pytest.raises(LoadFailed):
                await stage.manager.get_model("a")
        with pytest.raises(CoolingDown):
            await stage.manager.get_model("a")
        await stage.manager.clear_cooldown("a")
        await stage.manager.get_model("a")

    play(stage, main)


def test_a_backend_that_gives_a_load_up_by_itself_is_a_failed_load_and_not_tried_for_ever(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"a": {}})

    async def main(stage: Stage) -> None:
        tried = 0

        async def give_up(*_: object) -> LoadedModel:
            nonlocal tried
            tried += 1
            raise asyncio.CancelledError

        stage.backend.load = give_up  # type: ignore[method-assign, assignment]
        with pytest.raises(LoadFailed, match="without being told to"):
            await stage.manager.get_model("a")
        assert tried == 1

    play(stage, main)


def test_a_backend_that_can_not_say_what_it_measured_still_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path, {"a": {}})

    async def main(stage: Stage) -> None:
        def broken(_: FakeModel) -> None:
            raise ZeroDivisionError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeModel, "measured", property(broken))
            await (await stage.manager.get_model("a")).chat("hello")

    play(stage, main)
    assert "can't say what it measured" in caplog.text


def test_an_error_of_a_plug_in_that_can_not_be_copied_still_reaches_its_callers(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"a": {}})

    class Peculiar(TaskRouterError):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    async def main(stage: Stage) -> None:
        async def fail(*_: object) -> LoadedModel:
            raise Peculiar(1, 2)

        stage.backend.load = fail  # type: ignore[method-assign, assignment]
        with pytest.raises(LoadFailed, match="1 and 2"):
            await stage.manager.get_model("a")

    play(stage, main)
