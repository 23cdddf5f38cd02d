"""The end: drained, cancelled, killed; nothing is left, whatever was going on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from taskrouter import errors

from .stage import Stage, now, play, settle, spawn


def test_operations_at_work_may_finish(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        call = spawn(model.chat("hello"))
        await settle()
        await stage.manager.shutdown()
        assert (await call).text
        assert now() == 7

    play(Stage(tmp_path, {"a": {"call_s": 7}}), main)


def test_calls_inside_a_held_lease_go_on_while_it_drains(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        handle = await stage.manager.get_model("a")
        async with stage.manager.lease("a") as model:
            ending = spawn(stage.manager.shutdown())
            await settle()
            await model.chat("hello")
            await handle.chat("hello")
            async with stage.manager.lease("a") as inner:
                await inner.chat("hello")
            with pytest.raises(errors.ManagerClosed):
                await spawn(handle.chat("hello"))
        await ending
        assert now() == 3

    play(Stage(tmp_path, {"a": {"call_s": 1}}), main)


def test_callers_that_wait_are_refused_at_once_and_loads_are_cancelled(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        waiting = [spawn(stage.manager.get_model("a")) for _ in range(3)]
        waiting.append(spawn(stage.manager.get_model("b")))
        await asyncio.sleep(1)
        await stage.manager.shutdown()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(answer) for answer in answers} == {errors.ManagerClosed}
        assert now() == 1
        assert stage.backend.labels("load-cancelled") == ["a"]

    play(Stage(tmp_path, {"a": {"vram_gb": 8, "load_s": 60}, "b": {"vram_gb": 8}}), main)


def test_operations_that_do_not_end_are_stopped_after_the_drain(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        call = spawn(model.chat("hello"))
        stream = model.stream_chat("hello")
        await anext(stream)
        await stage.manager.shutdown(drain_s=5)
        with pytest.raises(errors.ManagerClosed, match="still in use"):
            await call
        with pytest.raises(errors.ManagerClosed):
            await anext(stream)
        assert 5 <= now() < 6
        assert stage.backend.labels("call-cancelled") == ["a", "a"]

    play(Stage(tmp_path, {"a": {"hang": "call"}}), main)


def test_a_lease_that_is_never_left_does_not_keep_its_model(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a") as model:
            await spawn(stage.manager.shutdown(drain_s=5))
            assert 5 <= now() < 6
            assert stage.backend.in_use == {}
            with pytest.raises(errors.ManagerClosed):
                await model.chat("hello")
            with pytest.raises(errors.ManagerClosed):
                _ = model.raw

    play(Stage(tmp_path, {"a": {}}), main)


def test_a_caller_may_shut_down_inside_its_own_lease(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a"):
            await stage.manager.shutdown(drain_s=2)
        assert now() == 2

    play(Stage(tmp_path, {"a": {}}), main)


def test_a_load_that_can_not_be_cancelled_is_waited_for_and_then_unloaded(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        waiting = spawn(stage.manager.get_model("a"))
        await asyncio.sleep(1)
        await stage.manager.shutdown()
        assert now() == 9
        assert stage.backend.labels("load-cancelled") == []
        with pytest.raises(errors.ManagerClosed):
            await waiting

    play(Stage(tmp_path, {"a": {"load_s": 9, "cancellable": False}}), main)


def test_an_unload_that_hangs_is_bounded(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        await stage.manager.shutdown()
        assert now() <= 60
        stage.backend.resume("a")

    play(Stage(tmp_path, {"a": {"hang": "unload"}}), main)


def test_a_load_that_hangs_and_can_not_be_cancelled_is_bounded(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        waiting = spawn(stage.manager.get_model("a"))
        await asyncio.sleep(1)
        await stage.manager.shutdown(drain_s=5)
        assert now() <= 120
        with pytest.raises(errors.ManagerClosed):
            await waiting

    play(Stage(tmp_path, {"a": {"hang": "load", "cancellable": False}}), main)


def test_a_caller_that_gives_up_shutting_down_does_not_stop_it(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        ending = spawn(stage.manager.shutdown())
        await asyncio.sleep(1)
        ending.cancel()
        await asyncio.wait([ending])
        await stage.manager.shutdown()
        assert now() == 5
        assert stage.backend.in_use == {}

    play(Stage(tmp_path, {"a": {"unload_s": 5}}), main)


def test_an_unload_that_waits_ends_with_the_manager(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a"):
            unloading = spawn(stage.manager.unload_model("a"))
            await settle()
            await spawn(stage.manager.shutdown(drain_s=1))
            await unloading

    play(Stage(tmp_path, {"a": {}}), main)


def test_an_exception_in_the_block_leaves_nothing_and_comes_out(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(ZeroDivisionError):
            async with stage.manager as manager, manager.lease("a") as model:
                await model.chat("hello")
                raise ZeroDivisionError
        assert stage.backend.in_use == {}

    play(Stage(tmp_path, {"a": {}}), main)
