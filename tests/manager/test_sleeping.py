"""Models that sleep, in virtual time: demoted for room, woken for a call, forgotten for RAM, whatever fails."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.types import CPU
from tests.manager.stage import GPU, Stage, now, option, play, until

SLEEPS: dict[str, Any] = {"vram_gb": 6, "load_s": 20, "can_sleep": True, "sleep_s": 1, "wake_s": 2, "kind": "chat"}
MACHINE = {"cuda:0": 10 << 30, "cpu": 64 << 30}


def staged(folder: Path, **more: Any) -> Stage:
    tasks = more.pop("tasks", {"a": SLEEPS, "b": SLEEPS, "c": SLEEPS})
    memory = {"min_residency_s": 0, "claim_s": 0.1, "host_budget": "20GiB", **more.pop("memory", {})}
    return Stage(folder, tasks, machine=more.pop("machine", MACHINE), memory=memory, **more)


async def ask(stage: Stage, task: str) -> float:
    """One call; the seconds it waited."""
    since = now()
    async with stage.manager.lease(task) as model:
        waited = now() - since
        assert (await model.chat("hi")).text == f"{task}: hi"
    return waited


def test_a_model_sleeps_within_the_budget_of_the_file(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        assert await ask(stage, "a") == 20
        assert await ask(stage, "b") == 1 + 20  # a sleeps
        assert stage.state("a") == "host"
        assert stage.backend.in_use == {"cuda:0": 6 << 30, "cpu": 6 << 30}
        assert await ask(stage, "a") == 1 + 2  # b sleeps, a wakes
        assert await ask(stage, "b") == 1 + 2
        assert stage.backend.labels("load-start") == ["a", "b"]
        assert stage.backend.labels("unload-start") == []
        assert set(stage.manager.loaded_models) == {"b"}, "who sleeps isn't loaded"
        assert (len(stage.spans("sleep_model")), len(stage.spans("wake_model"))) == (3, 2)

    play(staged(tmp_path), main)


@pytest.mark.parametrize("why", [{"memory": {"host_budget": 0}}, {"machine": {"cuda:0": 10 << 30, "cpu": 5 << 30}}])
def test_without_room_in_ram_it_is_unloaded(tmp_path: Path, why: dict[str, Any]) -> None:
    async def main(stage: Stage) -> None:
        await ask(stage, "a")
        assert await ask(stage, "b") == 20
        assert stage.state("a") == "disk"
        assert stage.backend.labels("sleep-start") == []

    play(staged(tmp_path, **why), main)


def test_where_waking_is_no_quicker_than_loading_it_is_unloaded(tmp_path: Path) -> None:
    quick = {**SLEEPS, "load_s": 1}

    async def main(stage: Stage) -> None:
        await ask(stage, "a")
        await ask(stage, "b")
        assert stage.state("a") == "disk"

    play(staged(tmp_path, tasks={"a": quick, "b": quick}), main)


def test_who_slept_longest_is_forgotten_for_who_goes_to_sleep(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        for task in ("a", "b", "c"):
            await ask(stage, task)
        assert (stage.state("a"), stage.state("b")) == ("disk", "host")
        assert await ask(stage, "b") == 2  # who wakes keeps its RAM until then, so c finds none
        assert stage.state("c") == "disk"

    play(staged(tmp_path, memory={"host_budget": "7GiB"}), main)


def test_what_it_leaves_on_the_device_is_charged_while_it_sleeps(tmp_path: Path) -> None:
    leaves = {**SLEEPS, "sleep_residue": "1GiB", "sleep_ram": "8GiB"}

    async def main(stage: Stage) -> None:
        await ask(stage, "a")
        await ask(stage, "b")
        books = stage.manager.statistics().devices
        assert (books[GPU].charged, books[CPU].charged) == (7 << 30, 8 << 30)
        assert await ask(stage, "a") == 3

    play(staged(tmp_path, tasks={"a": leaves, "b": leaves}), main)


def test_a_request_for_a_model_that_falls_asleep_waits_and_wakes_it(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await ask(stage, "a")
        other = asyncio.ensure_future(ask(stage, "b"))
        await until(20.5)
        assert stage.state("a") == "demoting"
        assert await ask(stage, "a") > 20  # b came first
        assert await other == 21

    play(staged(tmp_path), main)


@pytest.mark.parametrize("fail", ["sleep", "wake"])
def test_a_model_that_fails_to_sleep_or_to_wake_is_loaded_again(
    tmp_path: Path, fail: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(stage: Stage) -> None:
        caplog.set_level(logging.WARNING, "taskrouter")
        await ask(stage, "a")
        await ask(stage, "b")
        assert stage.state("a") == ("disk" if fail == "sleep" else "host")
        assert await ask(stage, "a") >= 20
        assert stage.backend.labels("load-start") == ["a", "b", "a"]
        words = {"sleep": "a could not be put to sleep, and is unloaded", "wake": "a did not wake, and is loaded anew"}
        assert words[fail] in caplog.text

    tasks = {"a": {**SLEEPS, "fail": fail, "fail_times": 1}, "b": SLEEPS}
    play(staged(tmp_path, tasks=tasks), main)


def test_after_two_failures_in_a_row_it_is_not_put_to_sleep_any_more(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        for _ in range(4):
            await ask(stage, "a")
            await ask(stage, "b")
        assert stage.backend.labels("sleep-failed") == ["a", "a"]
        assert stage.backend.labels("sleep-start").count("a") == 2

    play(staged(tmp_path, tasks={"a": {**SLEEPS, "fail": "sleep"}, "b": SLEEPS}), main)


def test_one_that_dies_asleep_is_noticed_and_loaded_again(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await ask(stage, "a")
        await ask(stage, "b")
        stage.backend.kill("a")
        await until(now() + 1)
        assert stage.state("a") == "disk"
        assert stage.backend.in_use == {"cuda:0": 6 << 30}
        assert await ask(stage, "a") == 21

    play(staged(tmp_path), main)


@pytest.mark.parametrize(("moment", "state"), [(42.0, "promoting"), (20.5, "demoting")])
def test_one_that_dies_on_its_way_is_loaded_again(tmp_path: Path, moment: float, state: str) -> None:
    """Falling asleep or waking: who waits for it, or asks later, gets one that is alive."""
    slow = {**SLEEPS, "wake_s": 5}

    async def main(stage: Stage) -> None:
        await ask(stage, "a")
        turns = asyncio.create_task(ask(stage, "b"))
        if state == "promoting":
            await turns
            turns = asyncio.create_task(ask(stage, "a"))
            await until(43)  # b sleeps until 42
        else:
            await until(moment)
        assert stage.state("a") == state
        stage.backend.kill("a")
        await turns
        await ask(stage, "a")
        assert stage.backend.labels("load-start").count("a") == 2

    play(staged(tmp_path, tasks={"a": slow, "b": slow}), main)


def test_unloading_one_that_wakes_ends_whoever_joins(tmp_path: Path) -> None:
    slow = {**SLEEPS, "wake_s": 5}

    async def main(stage: Stage) -> None:
        await ask(stage, "a")
        await ask(stage, "b")
        first = asyncio.create_task(ask(stage, "a"))
        await until(now() + 2)
        assert stage.state("a") == "promoting"
        unload = asyncio.create_task(stage.manager.unload_model("a"))
        await until(now() + 0.5)
        assert await ask(stage, "a") < 30, "the wake goes on for who came later"
        await asyncio.wait_for(unload, 100)
        with pytest.raises(errors.Unloaded, match="unloaded by request"):
            await first

    play(staged(tmp_path, tasks={"a": slow, "b": slow}), main)


def test_a_selection_that_changes_leaves_no_sleeper_behind(tmp_path: Path) -> None:
    options = {name: option(name, **{k: v for k, v in SLEEPS.items() if k != "kind"}) for name in ("x", "y")}
    tasks = {"t": {"kind": "chat", "selected": "x", "options": options}, "b": SLEEPS}

    async def main(stage: Stage) -> None:
        async with stage.manager.lease("t"):
            pass
        await ask(stage, "b")
        assert stage.state("x") == "host"
        await stage.manager.set_selected_model("t", "y")
        assert stage.state("x") == "disk"
        assert CPU not in stage.backend.in_use or stage.state("b") == "host"

    play(staged(tmp_path, tasks=tasks), main)


def test_unloading_one_that_sleeps_gives_its_ram_back(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await ask(stage, "a")
        await ask(stage, "b")
        await stage.manager.unload_model("a")
        assert stage.state("a") == "disk"
        assert stage.backend.in_use == {"cuda:0": 6 << 30}

    play(staged(tmp_path), main)


def test_keep_alive_ends_a_sleep_too(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await ask(stage, "a")
        await ask(stage, "b")
        assert stage.state("a") == "host"
        await until(now() + 100)
        assert stage.state("a") == "disk"

    play(staged(tmp_path, tasks={"a": {**SLEEPS, "keep_alive_s": 60}, "b": SLEEPS}), main)


def test_a_device_that_shrinks_puts_idle_models_to_sleep(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await ask(stage, "a")
        stage.others_use(8)
        await until(now() + 10)
        assert stage.state("a") == "host"
        stage.others_use(0)
        await until(now() + 10)
        assert await ask(stage, "a") == 2

    play(staged(tmp_path), main)


def test_who_can_not_wake_where_it_sleeps_is_loaded_elsewhere(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await ask(stage, "a")
        stage.others_use(8)
        await until(now() + 10)
        assert stage.state("a") == "host"
        assert await ask(stage, "a") == 20
        assert stage.backend.in_use == {"cuda:1": 6 << 30}

    machine = {"cuda:0": 10 << 30, "cuda:1": 10 << 30, "cpu": 64 << 30}
    play(staged(tmp_path, machine=machine, tasks={"a": SLEEPS}), main)


def test_a_model_on_the_cpu_never_sleeps(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await ask(stage, "a")
        await ask(stage, "b")
        assert stage.backend.labels("sleep-start") == []

    play(staged(tmp_path, machine={"cpu": 10 << 30}), main)


def test_hundreds_of_requests_over_models_that_sleep_lose_nobody(tmp_path: Path) -> None:
    flaky = {**SLEEPS, "fail": "wake", "fail_times": 3, "load_s": 5}

    async def main(stage: Stage) -> None:
        async def caller(number: int) -> None:
            for turn in range(8):
                await asyncio.sleep((number * 7 + turn * 3) % 11)
                async with stage.manager.lease("abcd"[(number + turn) % 4], timeout=3000) as model:
                    await model.chat("hi")

        await asyncio.gather(*[caller(number) for number in range(40)])
        assert len(stage.backend.labels("call-end")) == 320
        assert stage.backend.labels("wake-end")

    tasks = {"a": SLEEPS, "b": {**SLEEPS, "load_s": 9}, "c": flaky, "d": {"vram_gb": 9, "load_s": 4, "kind": "chat"}}
    play(staged(tmp_path, tasks=tasks), main)


def test_options_of_one_task_sleep_by_themselves(tmp_path: Path) -> None:
    """The selection is changed to a model that sleeps: it wakes, and the old one goes."""
    options = {name: option(name, **{k: v for k, v in SLEEPS.items() if k != "kind"}) for name in ("x", "y")}
    tasks = {"t": {"kind": "chat", "selected": "x", "options": options}}

    async def main(stage: Stage) -> None:
        async with stage.manager.lease("t"):
            pass
        await stage.manager.set_selected_model("t", "y")
        assert stage.state("y") == "ready"

    play(staged(tmp_path, tasks=tasks), main)


def test_a_model_that_one_of_its_options_keeps_awake_never_sleeps(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        assert stage.manager._keys["a", "x"] == stage.manager._keys["c", "x"]
        for task in ("a", "b"):
            async with stage.manager.lease(task):
                pass
        assert stage.backend.labels("sleep-start") == []
        assert stage.state("x") == "disk"

    shared = option("x", **{k: v for k, v in SLEEPS.items() if k != "kind"})
    tasks = {
        "a": {"kind": "chat", "selected": "x", "options": {"x": shared}},
        "c": {"kind": "chat", "selected": "x", "options": {"x": {**shared, "sleep": "never"}}},
        "b": SLEEPS,
    }
    play(staged(tmp_path, tasks=tasks), main)
