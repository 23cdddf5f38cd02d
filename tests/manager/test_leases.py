"""Leases: held, nested, shared by several calls, forgotten."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import weakref
from pathlib import Path
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.types import GIB

from .stage import GPU, Stage, now, option, play, settle, spawn

ONE_SLOT = {"a": {"max_concurrency": 1, "call_s": 2}}


# --- calls inside a lease ---------------------------------------------------------------------------------------------


def test_calls_inside_a_lease_use_it_also_through_a_handle_and_a_nested_lease(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        handle = await stage.manager.get_model("a")
        async with stage.manager.lease("a") as model:
            await model.chat("hello")
            await handle.chat("hello")
            async with stage.manager.lease("a") as inner:
                await inner.chat("hello")
                assert inner.raw is model.raw
                assert stage.leases() == 1
            assert stage.leases() == 1
            assert [piece.text async for piece in handle.stream_chat("hello")][-1] == ""
        assert now() == 8
        assert stage.leases() == 0

    play(Stage(tmp_path, ONE_SLOT), main)


def test_several_calls_inside_one_lease_run_one_at_a_time(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        handle = await stage.manager.get_model("a")
        async with stage.manager.lease("a") as model:
            await asyncio.gather(model.chat("1"), handle.chat("2"), model.chat("3"))
        assert now() == 6
        order = [what for what, _ in stage.backend.events if what.startswith("call-")]
        assert order == ["call-start", "call-end"] * 3

    play(Stage(tmp_path, {"a": {"call_s": 2}}), main)


def test_a_call_inside_a_lease_never_waits_for_that_models_own_drain(tmp_path: Path) -> None:
    """Case 21."""

    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a") as model:
            other = spawn(stage.manager.unload_model("a"))
            await settle()
            assert stage.state("a") == "draining"
            await model.chat("hello")
            async with stage.manager.lease("a") as inner:
                await inner.chat("hello")
        await other
        assert now() == 4
        assert stage.backend.labels("load-start") == ["a"]

    play(Stage(tmp_path, {"a": {"call_s": 2}}), main)


def test_a_lease_that_needs_the_room_of_ones_own_lease_is_refused_at_once(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a"):
            for ask in (stage.manager.get_model("b"), stage.manager.lease("b").__aenter__()):
                with pytest.raises(errors.WouldDeadlock, match="a"):
                    await ask
        assert now() == 0
        await stage.manager.get_model("b")

    play(Stage(tmp_path, {"a": {"vram_gb": 8}, "b": {"vram_gb": 8}}), main)


def test_unloading_ones_own_lease_is_refused_at_once(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a") as model:
            with pytest.raises(errors.WouldDeadlock, match="one"):
                await stage.manager.unload_model("a")
            with pytest.raises(errors.WouldDeadlock, match="one"):
                await stage.manager.set_selected_model("a", "other")
            assert stage.manager.tasks["a"].selected == "one"
            await model.chat("hello")
        assert now() == 0
        await stage.manager.set_selected_model("a", "other")

    whole = {"selected": "one", "options": {"one": option("one"), "other": option("other")}}
    play(Stage(tmp_path, {"a": whole}), main)


def test_a_handle_used_inside_a_lease_whose_model_died_gets_a_living_one(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        handle = await stage.manager.get_model("a")
        async with stage.manager.lease("a") as model:
            stage.backend.kill("a")
            await settle()
            with pytest.raises(errors.ModelDied):
                await model.chat("hello")
            assert (await handle.chat("hello")).text
        assert stage.backend.labels("load-end") == ["a", "a"]

    play(Stage(tmp_path, {"a": {}}), main)


def test_a_task_that_outlives_the_lease_it_was_started_in_takes_its_own(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        handle = await stage.manager.get_model("a")

        async def later() -> None:
            await asyncio.sleep(1)
            assert stage.leases() == 0
            await handle.chat("hello")

        async with stage.manager.lease("a"):
            task = asyncio.get_running_loop().create_task(later())
        await task

    play(Stage(tmp_path, {"a": {}}), main)


def test_a_call_that_waits_for_its_turn_when_the_lease_is_left_is_told(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a") as model:
            first = asyncio.ensure_future(model.chat("1"))
            second = asyncio.ensure_future(model.chat("2"))
            await settle()
        assert stage.leases() == 1
        assert (await first).text
        with pytest.raises(RuntimeError, match="left"):
            await second
        assert stage.leases() == 0

    play(Stage(tmp_path, ONE_SLOT), main)


def test_a_lease_is_entered_once_and_used_inside_only(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        lease = stage.manager.lease("a")
        for name in ("raw", "info"):
            with pytest.raises(RuntimeError, match="inside"):
                getattr(lease, name)
        async with lease:
            with pytest.raises(RuntimeError, match="once"):
                await lease.__aenter__()
        with pytest.raises(RuntimeError, match="inside"):
            await lease.chat("hello")
        await lease.__aexit__(None, None, None)
        assert stage.leases() == 0

    play(Stage(tmp_path, {"a": {}}), main)


# --- slots, priority --------------------------------------------------------------------------------------------------


def test_callers_over_the_slots_wait_their_turn(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        await asyncio.gather(*[model.chat(str(number)) for number in range(4)])
        assert now() == 4

    play(Stage(tmp_path, {"a": {"max_concurrency": 2, "call_s": 2}}), main)


def test_the_more_urgent_caller_is_served_first(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        order = []

        async def use(name: str, priority: int) -> None:
            async with stage.manager.lease("a", priority=priority):
                order.append(name)
                await asyncio.sleep(1)

        await asyncio.gather(spawn(use("first", 0)), spawn(use("low", 0)), spawn(use("high", 5)))
        assert order == ["first", "high", "low"] or order == ["high", "first", "low"]
        assert order.index("high") < order.index("low")

    play(Stage(tmp_path, ONE_SLOT), main)


# --- cancelled callers ------------------------------------------------------------------------------------------------


def test_the_operation_of_a_cancelled_caller_keeps_its_lease_until_it_has_stopped(tmp_path: Path) -> None:
    """Case 21."""

    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        call = spawn(model.chat("hello"))
        await asyncio.sleep(1)
        other = spawn(stage.manager.get_model("b"))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert now() == 1
        assert stage.leases() == 1
        await asyncio.sleep(3)
        assert stage.leases() == 1
        assert stage.backend.labels("unload-start") == []
        await other
        assert now() == 5
        assert stage.backend.labels("call-cancelled") == ["a"]

    play(Stage(tmp_path, {"a": {"vram_gb": 8, "call_s": 100, "stop_s": 4}, "b": {"vram_gb": 8}}), main)


def test_leaving_a_lease_while_its_call_still_stops_holds_the_model(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async def user() -> None:
            async with stage.manager.lease("a") as model:
                await model.chat("hello")

        task = spawn(user())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert now() == 1
        assert stage.leases() == 1
        await asyncio.sleep(4.5)
        assert stage.leases() == 0

    play(Stage(tmp_path, {"a": {"call_s": 100, "stop_s": 4}}), main)


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_handle_that_is_dropped_protects_its_model_no_longer(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        handle = await stage.manager.get_model("a")
        other = spawn(stage.manager.get_model("b"))
        await asyncio.sleep(1)
        assert not other.done()
        del handle
        gc.collect()
        await settle()
        await other
        assert now() == 1

    play(Stage(tmp_path, {"a": {"vram_gb": 8}, "b": {"vram_gb": 8}}, memory={"claim_s": 50}), main)


def test_the_first_call_ends_the_protection(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        handle = await stage.manager.get_model("a")
        await handle.chat("hello")
        await spawn(stage.manager.get_model("b"))
        assert now() == 0
        assert (await handle.chat("hello")).text

    play(Stage(tmp_path, {"a": {"vram_gb": 8}, "b": {"vram_gb": 8}}, memory={"claim_s": 50}), main)


# --- leaks ------------------------------------------------------------------------------------------------------------


def test_a_lease_collected_unreleased_is_released_with_a_warning_that_says_where(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        lease = stage.manager.lease("a")
        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
        await lease.__aenter__()
        assert stage.leases() == 1
        with pytest.warns(ResourceWarning, match=f"test_leases.py:{line}.*never released"):  # noqa: PT031
            del lease
            gc.collect()
        await settle()
        assert stage.leases() == 0

    play(Stage(tmp_path, {"a": {}}), main)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_leaked_lease_is_released_also_where_warnings_are_errors(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.lease("a").__aenter__()
        gc.collect()
        await settle()
        assert stage.leases() == 0

    play(Stage(tmp_path, {"a": {}}), main)


def test_a_lease_held_for_long_is_reported_once_with_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a"):
            line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
            await asyncio.sleep(29)
            assert "has been held" not in caplog.text
            await asyncio.sleep(100)
        lines = [record.getMessage() for record in caplog.records if "has been held" in record.getMessage()]
        assert len(lines) == 1
        assert "a/a" in lines[0]
        assert f"test_leases.py:{line}" in lines[0]

    caplog.set_level(logging.WARNING, "taskrouter")
    play(Stage(tmp_path, {"a": {}}, memory={"lease_warn_s": 30}), main)


def test_a_raw_reference_that_was_kept_is_reported_and_its_memory_comes_back_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Case 22."""

    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a") as model:
            kept: list[Any] = [model.raw]
        await stage.manager.unload_model("a")
        assert stage.manager.statistics().devices[GPU].residue == 4 * GIB
        assert "something still refers to it" in caplog.text
        (span,) = stage.spans("unload_model")
        assert span.attributes is not None
        assert span.attributes["taskrouter.bytes.residue"] == 4 * GIB
        kept.clear()
        gc.collect()
        await asyncio.sleep(2)
        assert stage.manager.statistics().devices[GPU].residue == 0

    play(Stage(tmp_path, {"a": {}}), main)


def test_nothing_keeps_a_model_alive_after_its_unload(tmp_path: Path) -> None:
    """Case 22."""

    async def main(stage: Stage) -> None:
        handle = await stage.manager.get_model("a")
        await handle.chat("hello")
        async with stage.manager.lease("a") as model:
            seen = weakref.ref(model.raw)
        performer = stage.manager.performer
        assert performer is not None
        also = weakref.ref(next(iter(performer.residents.values())).model)
        kept = [stage.manager.statistics(), stage.manager.get_loaded_models(), stage.manager.loaded_models, model]
        await stage.manager.unload_model("a")
        gc.collect()
        assert seen() is None
        assert also() is None
        assert kept

    play(Stage(tmp_path, {"a": {}}), main)


def test_a_caller_that_allows_no_time_is_told_so(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(errors.Overloaded, match="no time was allowed for loading it"):
            await stage.manager.get_model("t", timeout=0)

    play(Stage(tmp_path, {"t": {}}), main)


NONSENSE = [
    {"timeout": float("nan")},
    {"timeout": float("inf")},
    {"timeout": -1},
    {"timeout": "5"},
    {"priority": 10**400},
    {"priority": 1.5},
    {"priority": True},
]


@pytest.mark.parametrize("how", NONSENSE, ids=range(len(NONSENSE)))
def test_a_wait_or_a_priority_that_makes_no_sense_is_refused_before_anything_happens(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(errors.BadInput, match=next(iter(how))):
            await stage.manager.get_model("a", **how)
        with pytest.raises(errors.BadInput, match=next(iter(how))):
            stage.manager.lease("a", **how)
        assert stage.backend.events == []

    play(Stage(tmp_path, {"a": {}}), main)
