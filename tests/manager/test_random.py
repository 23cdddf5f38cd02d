"""Anything, in any order, cancelled anywhere: in the end the books are true, nothing is left, no promise was broken."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskrouter import errors

from .stage import Stage, option, play, settle, spawn

FAST = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DEEP = settings(FAST, max_examples=400)
SECONDS = st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.0])


@st.composite
def scripts(draw: st.DrawFn, number: int) -> dict[str, Any]:
    """How one model behaves."""
    size = draw(st.sampled_from([1, 2, 3, 4, 6, 9]))
    script: dict[str, Any] = {
        "vram_gb": size,
        "load_s": draw(SECONDS),
        "call_s": draw(SECONDS),
        "unload_s": draw(SECONDS),
        "stop_s": draw(st.sampled_from([0.0, 0.0, 0.5, 2.0])),
        "late_free_s": draw(st.sampled_from([0.0, 0.0, 1.0])),
        "answer": "one two three " * draw(st.sampled_from([1, 10])),
    }
    if draw(st.integers(0, 3)) == 0:
        script |= {"fail": draw(st.sampled_from(["oom", "error", "die", "preflight"])), "fail_times": 1}
    if draw(st.integers(0, 3)) == 0:
        script["cancellable"] = False
    if draw(st.integers(0, 3)) == 0:
        script["serial_group"] = "group"
    if draw(st.integers(0, 4)) == 0:
        script["exclusive"] = True
    if draw(st.integers(0, 2)) == 0:
        script["max_concurrency"] = draw(st.integers(1, 2))
    if draw(st.integers(0, 4)) == 0:
        script["keep_alive_s"] = draw(SECONDS)
    return script


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    names = ["a", "b", "c", "d"][: draw(st.integers(2, 4))]
    tasks = {}
    for number, name in enumerate(names):
        options = {f"{name}{i}": option(f"{name}{i}", **draw(scripts(number))) for i in range(draw(st.integers(1, 2)))}
        tasks[name] = {
            "selected": next(iter(options)),
            "options": options,
            "max_wait_s": draw(st.sampled_from([2, 9, 60])),
        }
    return tasks


class User:
    """Somebody who does this and that, and meets only errors that are typed."""

    def __init__(self, stage: Stage, dice: random.Random) -> None:
        self.stage = stage
        self.dice = dice

    async def live(self) -> None:
        for _ in range(self.dice.randint(1, 5)):
            act = self.dice.choice([self.chat, self.chat, self.lease, self.lease, self.stream, self.stream, self.nest])
            try:
                await act(self.dice.choice(list(self.stage.manager.tasks)))
            except errors.WrongLoop:
                raise
            except errors.TaskRouterError:
                pass
            await asyncio.sleep(self.dice.choice([0, 0, 0.5, 2]))

    async def chat(self, name: str) -> None:
        model = await self.stage.manager.get_model(name)
        await asyncio.sleep(self.dice.choice([0, 0, 3]))
        assert (await model.chat("hello")).text

    async def lease(self, name: str) -> None:
        async with self.stage.manager.lease(name, priority=self.dice.randint(0, 3)) as model:
            raw = model.raw
            assert raw is not None
            del raw
            await asyncio.gather(*[model.chat("hello") for _ in range(self.dice.randint(0, 2))])

    async def nest(self, name: str) -> None:
        handle = await self.stage.manager.get_model(name)
        async with self.stage.manager.lease(name) as model:
            await handle.chat("hello")
            async with self.stage.manager.lease(self.dice.choice(list(self.stage.manager.tasks))) as inner:
                await inner.chat("hello")
            await model.chat("hello")

    async def stream(self, name: str) -> None:
        model = await self.stage.manager.get_model(name)
        how = self.dice.randint(0, 3)
        stream = model.stream_chat("hello")
        if how == 0:
            assert [chunk async for chunk in stream][-1].finish_reason == "stop"
        elif how == 1:
            async for _ in stream:
                break
        elif how == 2:
            async with stream:
                await anext(stream)
        else:
            await anext(stream)
            await stream.aclose()


async def disturb(stage: Stage, dice: random.Random, users: list[asyncio.Task[None]]) -> None:
    """Cancel users, kill models, take memory away, unload, select something else."""
    while not all(user.done() for user in users):
        await asyncio.sleep(dice.choice([0, 0.1, 0.5, 1, 2]))
        stage.manager._core.check()
        name = dice.choice(list(stage.manager.tasks))
        what = dice.randint(0, 9)
        if what <= 3:
            dice.choice(users).cancel()
        elif what == 4:
            stage.backend.kill(stage.manager.tasks[name].selected)
        elif what == 5:
            stage.others_use(dice.choice([0, 0, 1, 5]))
        elif what == 6:
            spawn(quietly(stage.manager.unload_model(name, force=dice.random() < 0.5)))
        elif what == 7:
            spawn(quietly(stage.manager.set_selected_model(name, dice.choice(list(stage.manager.tasks[name].options)))))
        elif what == 8:
            spawn(quietly(stage.manager.evict_lru_model()))


async def quietly(work: Any) -> None:
    with contextlib.suppress(errors.TaskRouterError):
        await work


def rehearse(folder: Path, tasks: dict[str, Any], seed: int) -> None:
    async def main(stage: Stage) -> None:
        dice = random.Random(seed)
        users = [spawn(User(stage, random.Random(dice.random())).live()) for _ in range(dice.randint(2, 8))]
        await disturb(stage, dice, users)
        for answer in await asyncio.gather(*users, return_exceptions=True):
            assert answer is None or isinstance(answer, asyncio.CancelledError), answer
        if dice.random() < 0.7:
            # Left alone, everything comes to rest: no lease, no ticket, no load.
            stage.others_use(0)
            await asyncio.sleep(300)
            await settle()
            assert stage.leases() == 0
            assert stage.manager.statistics().waiting == 0
            assert {status.state.value for status in stage.manager.statistics().models.values()} <= {
                "disk",
                "ready",
                "cooldown",
            }
            assert asyncio.all_tasks() - {asyncio.current_task()} <= stage.tasks()
        await stage.manager.shutdown(drain_s=dice.choice([0, 5, 60]))
        await settle()
        broken = [key for what, key in stage.backend.events if what == "load-cancelled" and not stage.cancellable(key)]
        assert broken == []

    stage = Stage(folder, tasks, memory={"claim_s": 1, "stream_idle_s": 5})
    play(stage, main)


@pytest.mark.slow
@FAST
@given(tasks=worlds(), seed=st.integers(0, 2**32))
def test_whatever_happens_nothing_is_left_and_no_promise_is_broken(
    tmp_path: Path, tasks: dict[str, Any], seed: int
) -> None:
    rehearse(tmp_path, tasks, seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@DEEP
@given(tasks=worlds(), seed=st.integers(0, 2**32))
def test_whatever_happens_nothing_is_left_and_no_promise_is_broken_many_times(
    tmp_path: Path, tasks: dict[str, Any], seed: int
) -> None:
    rehearse(tmp_path, tasks, seed)
