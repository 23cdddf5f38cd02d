"""Giving up, failing, and what people do meanwhile; the numbers are those of the list of cases."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from taskrouter import errors
from taskrouter.types import GIB

from .stage import Stage, now, option, play, settle, spawn, until

# --- giving up and failing --------------------------------------------------------------------------------------------


def test_a_caller_that_gives_up_while_queued_causes_no_load_and_no_eviction(tmp_path: Path) -> None:
    """Case 13."""

    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a"):
            waiting = spawn(stage.manager.get_model("b"))
            await asyncio.sleep(1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await asyncio.sleep(500)
        assert stage.backend.labels("load-start") == ["a"]
        assert stage.backend.labels("unload-start") == []

    play(Stage(tmp_path, {"a": {"vram_gb": 8}, "b": {"vram_gb": 8}}), main)


def test_an_impatient_caller_leaks_no_lease_and_the_load_of_the_last_one_is_cancelled(tmp_path: Path) -> None:
    """Case 13."""

    async def main(stage: Stage) -> None:
        callers = [spawn(stage.manager.get_model("a")) for _ in range(3)]
        await asyncio.sleep(1)
        callers[0].cancel()
        callers[1].cancel()
        await asyncio.sleep(1)
        assert stage.backend.labels("load-cancelled") == []
        callers[2].cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await settle()
        assert stage.backend.labels("load-cancelled") == ["a"]
        assert stage.backend.in_use == {}
        stage.manager._core.check()

    play(Stage(tmp_path, {"a": {"load_s": 9}}), main)


def test_a_caller_cancelled_in_the_instant_of_its_grant_keeps_nothing(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        caller = spawn(stage.manager.get_model("a"))
        await until(4.999)
        performer = stage.manager.performer
        assert performer is not None
        (waiter,) = performer._waiters.values()
        await until(5)
        while not waiter.future.done():  # noqa: ASYNC110  (the step between grant and wake-up is what is wanted)
            await asyncio.sleep(0)
        assert not caller.done()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await settle()
        assert stage.state("a") == "ready"
        assert stage.manager.statistics().models[performer.core.resident()[0]].claims == 0

    play(Stage(tmp_path, {"a": {"load_s": 5}}), main)


def test_a_failed_load_fails_all_its_waiters_and_the_next_request_tries_again(tmp_path: Path) -> None:
    """Case 14."""

    async def main(stage: Stage) -> None:
        answers = await asyncio.gather(*[stage.manager.get_model("a") for _ in range(5)], return_exceptions=True)
        assert [type(answer) for answer in answers] == [errors.LoadFailed] * 5
        assert len({id(answer) for answer in answers}) == 5
        await stage.manager.get_model("a")
        assert stage.backend.labels("load-start") == ["a", "a"]

    play(Stage(tmp_path, {"a": {"load_s": 1, "fail": "error", "fail_times": 1}}), main)


def test_repeated_failure_cools_down_with_a_time_to_come_back(tmp_path: Path) -> None:
    """Case 14."""

    async def main(stage: Stage) -> None:
        for _ in range(2):
            with pytest.raises(errors.LoadFailed):
                await stage.manager.get_model("a")
        with pytest.raises(errors.CoolingDown) as caught:
            await stage.manager.get_model("a")
        assert caught.value.retry_after_s == pytest.approx(10)
        assert len(stage.backend.labels("load-start")) == 2
        await asyncio.sleep(10.1)
        await stage.manager.get_model("a")

    play(Stage(tmp_path, {"a": {"fail": "error", "fail_times": 2}}), main)


def test_out_of_memory_makes_more_room_and_tries_once_more(tmp_path: Path) -> None:
    """Case 15."""

    async def main(stage: Stage) -> None:
        async with stage.manager.lease("idle"):
            pass
        await stage.manager.get_model("a")
        assert stage.backend.labels("load-start") == ["idle", "a", "a"]
        assert stage.backend.labels("unload-start") == ["idle"]

    tasks = {"idle": {"vram_gb": 5}, "a": {"vram_gb": 5, "fail": "oom", "fail_times": 1}}
    play(Stage(tmp_path, tasks), main)


def test_out_of_memory_twice_is_the_callers_error_and_other_failures_evict_nothing(tmp_path: Path) -> None:
    """Cases 15 and 16."""

    async def main(stage: Stage) -> None:
        serving = await stage.manager.get_model("serving")
        with pytest.raises(errors.LoadFailed):
            await stage.manager.get_model("broken")
        assert stage.backend.labels("unload-start") == []
        with pytest.raises(errors.OutOfMemory) as caught:
            await stage.manager.get_model("oom")
        assert caught.value.status_hint == 507
        assert (await serving.chat("hello")).text

    tasks = {
        "serving": {"vram_gb": 2},
        "broken": {"vram_gb": 4, "fail": "error"},
        "oom": {"vram_gb": 4, "fail": "oom"},
    }
    play(Stage(tmp_path, tasks), main)


def test_a_model_that_dies_in_mid_call_is_an_error_and_the_next_request_starts_it_again(tmp_path: Path) -> None:
    """Case 17."""

    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        with pytest.raises(errors.ModelDied):
            await model.chat("hello")
        assert (await model.chat("hello")).text
        assert stage.backend.labels("load-end") == ["a", "a"]

    play(Stage(tmp_path, {"a": {"fail": "die", "fail_times": 1, "load_s": 1, "call_s": 1}}), main)


def test_a_model_that_dies_in_mid_stream_is_an_error_and_the_next_request_starts_it_again(tmp_path: Path) -> None:
    """Case 17."""

    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        pieces = []
        with pytest.raises(errors.ModelDied):
            async for piece in model.stream_chat("hello"):
                pieces.append(piece.text)  # noqa: PERF401  (what was read before the error counts)
        assert pieces == ["one "]
        assert [chunk.text async for chunk in model.stream_chat("hello")] == ["one ", "two ", "three", ""]
        assert stage.backend.labels("load-end") == ["a", "a"]

    play(Stage(tmp_path, {"a": {"fail": "die", "fail_times": 1, "call_s": 8, "answer": "one two three"}}), main)


def test_callers_of_a_model_that_dies_get_errors_of_their_own(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        calls = [spawn(model.chat("hello")) for _ in range(3)]
        await asyncio.sleep(1)
        stage.backend.kill("a")
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {errors.ModelDied}
        assert len({id(answer) for answer in answers}) == 3

    play(Stage(tmp_path, {"a": {"call_s": 9}}), main)


# --- files and people -------------------------------------------------------------------------------------------------


def test_unloading_while_it_loads_leaves_nothing_resident(tmp_path: Path) -> None:
    """Case 20."""

    async def main(stage: Stage) -> None:
        waiting = spawn(stage.manager.get_model("a"))
        await asyncio.sleep(1)
        await stage.manager.unload_model("a")
        assert stage.backend.in_use == {}
        with pytest.raises(errors.Unloaded):
            await waiting
        assert list(stage.manager.loaded_models) == []

    play(Stage(tmp_path, {"a": {"load_s": 9}}), main)


def test_unloading_while_a_load_that_can_not_be_cancelled_runs_waits_for_it(tmp_path: Path) -> None:
    """Case 20."""

    async def main(stage: Stage) -> None:
        waiting = spawn(stage.manager.get_model("a"))
        await asyncio.sleep(1)
        await stage.manager.unload_model("a")
        assert now() == 9
        assert stage.backend.in_use == {}
        assert stage.backend.labels("load-cancelled") == []
        with pytest.raises(errors.Unloaded):
            await waiting

    play(Stage(tmp_path, {"a": {"load_s": 9, "cancellable": False}}), main)


def test_unloading_ends_also_where_somebody_asks_for_the_model_again_meanwhile(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        waiting = spawn(stage.manager.get_model("a"))
        await asyncio.sleep(1)
        unloading = spawn(stage.manager.unload_model("a"))
        await asyncio.sleep(1)
        again = spawn(stage.manager.get_model("a"))
        await unloading
        assert now() == 9
        assert (await (await again).chat("hello")).text
        with pytest.raises(errors.Unloaded):
            await waiting

    play(Stage(tmp_path, {"a": {"load_s": 9, "cancellable": False}}), main)


def test_unloading_while_a_load_fails_ends_too(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        waiting = spawn(stage.manager.get_model("a"))
        await asyncio.sleep(1)
        await stage.manager.unload_model("a")
        assert now() == 9
        with pytest.raises(errors.Unloaded):
            await waiting

    play(Stage(tmp_path, {"a": {"load_s": 9, "cancellable": False, "fail": "error"}}), main)


def test_a_request_during_an_unload_waits_and_loads_again(tmp_path: Path) -> None:
    """Case 20."""

    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        unloading = spawn(stage.manager.unload_model("a"))
        await asyncio.sleep(1)
        assert stage.state("a") == "unloading"
        assert (await model.chat("hello")).text
        assert now() == 5
        await unloading
        assert stage.backend.labels("load-end") == ["a", "a"]

    play(Stage(tmp_path, {"a": {"unload_s": 5}}), main)


def test_unloading_by_force_gives_callers_a_typed_error_and_no_cancellation(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        call = spawn(model.chat("hello"))
        await asyncio.sleep(1)
        await stage.manager.unload_model("a", force=True)
        assert now() == 3
        assert stage.backend.labels("call-cancelled") == ["a"]
        with pytest.raises(errors.Unloaded, match="force"):
            await call

    play(Stage(tmp_path, {"a": {"call_s": 100, "stop_s": 2}}), main)


def test_a_load_past_its_bound_that_can_not_be_killed_is_stuck_and_says_so(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        waiting = spawn(stage.manager.get_model("a", timeout=10_000))
        other = spawn(stage.manager.get_model("b", timeout=10_000))
        await until(601)
        with pytest.raises(errors.ModelStuck):
            await waiting
        with pytest.raises(errors.ModelStuck, match="a"):
            await other
        with pytest.raises(errors.ModelStuck):
            await stage.manager.unload_model("a")
        stage.backend.resume("a")
        await settle()
        await stage.manager.get_model("b")

    both = {"cancellable": False, "serial_group": "g"}
    play(Stage(tmp_path, {"a": {"hang": "load", **both}, "b": both}), main)


def test_foreign_growth_makes_idle_models_go_and_busy_ones_stay(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        async with stage.manager.lease("b"):
            stage.others_use(5)
            await asyncio.sleep(8)
            assert list(stage.manager.loaded_models) == ["b"]

    play(Stage(tmp_path, {"a": {}, "b": {}}), main)


def test_a_model_goes_to_the_device_that_has_room(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        await stage.manager.get_model("b")
        assert stage.manager.get_loaded_models()["a"]["devices"] != stage.manager.get_loaded_models()["b"]["devices"]
        await stage.manager.get_model("both")
        assert stage.manager.get_loaded_models()["both"]["devices"] == ["cuda:0", "cuda:1"]
        with pytest.raises(errors.PreflightFailed, match="cuda:7"):
            await stage.manager.get_model("nowhere")

    tasks = {
        "a": {"vram_gb": 8},
        "b": {"vram_gb": 8},
        "both": {"vram_gb": 8, "devices": 2},
        "nowhere": {"devices": ["cuda:7"]},
    }
    machine = {"cuda:0": 10 * GIB, "cuda:1": 10 * GIB}
    play(Stage(tmp_path, tasks, machine=machine, memory={"claim_s": 0}), main)


def test_what_a_model_can_not_do_is_said_before_it_is_loaded(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(errors.UnsupportedVerb, match="classify"):
            async with stage.manager.lease("a") as model:
                await model.classify(b"")
        handle = await stage.manager.get_model("b")
        await stage.manager.unload_model("b")
        stage.backend.events.clear()
        with pytest.raises(errors.UnsupportedVerb, match="chat"):
            await handle.chat("hello")
        assert stage.backend.labels("load-start") == []

    tasks = {"a": {"kind": "chat"}, "b": {"verbs": ["classify"]}}
    play(Stage(tmp_path, tasks), main)


def test_a_backend_that_raises_anything_is_a_typed_error_that_names_the_model(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async def broken(*args: object) -> None:
            raise KeyError("oops")

        model = await stage.manager.get_model("a")
        performer = stage.manager.performer
        assert performer is not None
        (resident,) = performer.residents.values()
        resident.model.call = broken  # type: ignore[union-attr,method-assign]
        with pytest.raises(errors.CallFailed, match="a failed to answer chat") as caught:
            await model.chat("hello")
        assert isinstance(caught.value.__cause__, KeyError)
        assert stage.state("a") == "ready"

    play(Stage(tmp_path, {"a": {}}), main)


def test_an_option_other_than_the_selected_can_be_leased(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("t", option="other") as model:
            assert model.info["label"] == "other"
        with pytest.raises(errors.UnknownOption):
            stage.manager.lease("t", option="nothing")
        assert stage.manager.tasks["t"].selected == "one"

    whole = {"selected": "one", "options": {"one": option("one"), "other": option("other")}}
    play(Stage(tmp_path, {"t": whole}), main)
