"""The behaviours that must hold, through the manager; the numbers are those of the list of cases."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from taskrouter import errors
from taskrouter.types import GIB

from .stage import GPU, Stage, now, play, settle, spawn, until

# --- scheduling -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_callers_of_a_cold_model_are_one_load_and_as_many_answers(tmp_path: Path) -> None:
    """Case 1."""
    many = 10_000

    async def main(stage: Stage) -> None:
        async def one() -> str:
            async with stage.manager.lease("a") as model:
                assert model.info["label"] == "a"
            return "done"

        answers = await asyncio.gather(*[one() for _ in range(many)])
        assert answers == ["done"] * many
        assert stage.backend.labels("load-start") == ["a"]

    play(Stage(tmp_path, {"a": {"load_s": 3}}), main)


def test_many_callers_of_a_cold_model_all_get_its_answer(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        await stage.manager.unload_model("a")
        answers = await asyncio.gather(*[model.chat(f"{number}") for number in range(300)])
        assert len({answer.text for answer in answers}) == 1
        assert stage.backend.labels("load-start") == ["a", "a"]
        assert len(stage.backend.labels("call-end")) == 300

    play(Stage(tmp_path, {"a": {"load_s": 3, "answer": "yes"}}), main)


def test_a_busy_model_is_never_evicted_and_the_next_idle_one_goes(tmp_path: Path) -> None:
    """Case 2."""

    async def main(stage: Stage) -> None:
        for name in "ab":
            async with stage.manager.lease(name):
                pass
        async with stage.manager.lease("a"):
            await stage.manager.get_model("b")
            async with stage.manager.lease("c") as model:
                assert (await model.chat("hello")).text
            assert stage.backend.labels("unload-start") == ["b"]

    play(Stage(tmp_path, {"a": {}, "b": {}, "c": {}}, memory={"claim_s": 0}), main)


def test_a_request_queued_behind_a_busy_model_succeeds_when_that_is_done(tmp_path: Path) -> None:
    """Case 2."""

    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        call = spawn(model.chat("hello"))
        await settle()
        await stage.manager.get_model("b")
        assert call.done()
        assert stage.backend.labels("unload-start") == ["a"]
        assert now() == pytest.approx(9)

    play(Stage(tmp_path, {"a": {"vram_gb": 8, "call_s": 9}, "b": {"vram_gb": 8}}), main)


def test_calls_never_queue_behind_a_cold_load_or_a_slow_unload_of_others(tmp_path: Path) -> None:
    """Case 4."""

    async def main(stage: Stage) -> None:
        manager = stage.manager
        ready = await manager.get_model("a")
        await manager.get_model("c")
        unloading = spawn(manager.unload_model("c"))
        loading = spawn(manager.get_model("b"))
        waits = []
        while not (unloading.done() and loading.done()):
            began = now()
            await ready.chat("hello")
            waits.append(now() - began)
        assert now() >= 60
        assert max(waits) == pytest.approx(1)
        assert len(waits) >= 60

    tasks = {
        "a": {"vram_gb": 3, "call_s": 1},
        "b": {"vram_gb": 3, "load_s": 60},
        "c": {"vram_gb": 3, "unload_s": 9},
    }
    play(Stage(tmp_path, tasks), main)


def test_loads_that_fit_together_run_in_parallel_and_those_of_a_serial_group_in_turn(tmp_path: Path) -> None:
    """Case 4."""

    async def main(stage: Stage) -> None:
        await asyncio.gather(stage.manager.get_model("a"), stage.manager.get_model("b"))
        assert now() == 5
        await asyncio.gather(stage.manager.get_model("c"), stage.manager.get_model("d"))
        assert now() == 15

    tasks = {
        "a": {"vram_gb": 2, "load_s": 5},
        "b": {"vram_gb": 2, "load_s": 5},
        "c": {"vram_gb": 2, "load_s": 5, "serial_group": "g"},
        "d": {"vram_gb": 2, "load_s": 5, "serial_group": "g"},
    }
    play(Stage(tmp_path, tasks), main)


def test_two_waiters_that_want_the_same_victim_both_finish(tmp_path: Path) -> None:
    """Cases 3 and 5."""

    async def main(stage: Stage) -> None:
        async def use(name: str) -> None:
            async with stage.manager.lease(name) as model:
                await model.chat("hello")

        await use("a")
        await asyncio.gather(use("b"), use("c"))
        assert stage.backend.labels("call-end") == ["a", "b", "c"]
        assert stage.backend.labels("unload-start") == ["a", "b"]

    each = {"vram_gb": 8, "load_s": 2, "call_s": 1}
    play(Stage(tmp_path, {"a": each, "b": each, "c": each}), main)


def test_requests_in_turn_for_models_that_exclude_each_other_are_served_together(tmp_path: Path) -> None:
    """Case 6."""

    async def main(stage: Stage) -> None:
        async def use(name: str) -> str:
            async with stage.manager.lease(name) as model:
                await model.chat("hello")
                return name

        uses = [spawn(use(name)) for name in "abcabc"]
        await asyncio.gather(*uses)
        assert stage.backend.labels("load-start") == ["a", "b", "c"]
        assert stage.backend.labels("call-start") == ["a", "a", "b", "b", "c", "c"]

    each = {"vram_gb": 8, "load_s": 2, "call_s": 1, "max_concurrency": 1}
    play(Stage(tmp_path, {"a": each, "b": each, "c": each}), main)


def test_a_waiter_is_served_within_its_bound_though_its_victim_is_under_steady_traffic(tmp_path: Path) -> None:
    """Cases 6 and 7."""

    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")

        async def traffic() -> None:
            while now() < 200:
                await model.chat("hello")

        users = []
        for _ in range(3):
            users.append(spawn(traffic()))
            await asyncio.sleep(0.7)
        await until(20)
        async with stage.manager.lease("b") as other:
            assert 20 < now() < 60
            await other.chat("hello")
        await asyncio.gather(*users)

    play(Stage(tmp_path, {"a": {"vram_gb": 8, "call_s": 2}, "b": {"vram_gb": 8, "max_wait_s": 40}}), main)


def test_no_room_even_without_every_idle_model_evicts_nothing(tmp_path: Path) -> None:
    """Case 8."""

    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a"):
            await stage.manager.get_model("b")
            with pytest.raises(errors.Overloaded, match="a"):
                await spawn(stage.manager.get_model("big", timeout=3))
            assert sorted(stage.manager.loaded_models) == ["a", "b"]

    play(Stage(tmp_path, {"a": {"vram_gb": 4}, "b": {"vram_gb": 1}, "big": {"vram_gb": 8}}), main)


def test_an_exact_fit_is_accepted_and_an_unneeded_victim_stays(tmp_path: Path) -> None:
    """Case 9."""

    async def main(stage: Stage) -> None:
        for name in ("small", "large", "exact"):
            async with stage.manager.lease(name):
                pass
        assert stage.backend.labels("unload-start") == ["large"]
        assert stage.backend.in_use == {GPU: 10 * GIB}

    tasks = {"small": {"vram_gb": 1}, "large": {"vram_gb": 8}, "exact": {"vram_gb": 9}}
    play(Stage(tmp_path, tasks), main)


def test_memory_that_comes_free_late_is_waited_for(tmp_path: Path) -> None:
    """Case 19; the fake device itself would run out of memory."""

    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        await stage.manager.get_model("b")
        assert now() == pytest.approx(6)

    tasks = {"a": {"vram_gb": 8, "late_free_s": 6}, "b": {"vram_gb": 8}}
    play(Stage(tmp_path, tasks, memory={"claim_s": 0}), main)


def test_memory_that_never_comes_free_is_named_and_refused_at_once(tmp_path: Path) -> None:
    """Cases 19 and 22."""

    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        await stage.manager.unload_model("a")
        assert stage.manager.statistics().devices[GPU].residue == 8 * GIB
        with pytest.raises(errors.InsufficientMemory, match=r"a 8\.0 GiB"):
            await stage.manager.get_model("b")
        stage.backend.resume("a")
        await asyncio.sleep(2)
        assert stage.manager.statistics().devices[GPU].residue == 0
        await stage.manager.get_model("b")

    play(Stage(tmp_path, {"a": {"vram_gb": 8, "hang": "unload"}, "b": {"vram_gb": 8}}), main)


def test_pinned_is_never_evicted_and_the_refusal_says_so(tmp_path: Path) -> None:
    """Case 24."""

    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        with pytest.raises(errors.AllPinned, match="pinned") as caught:
            await stage.manager.get_model("b")
        assert caught.value.status_hint == 409
        assert stage.manager.get_lru_model() is None
        assert list(stage.manager.loaded_models) == ["a"]

    play(Stage(tmp_path, {"a": {"vram_gb": 8, "pinned": True}, "b": {"vram_gb": 8}}), main)
