"""One contract for every backend: what a caller may count on, whichever serves it. Real engines, nothing mocked."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from taskrouter import ModelManager, errors
from taskrouter.backends.base import LoadedModel, Sleeper
from taskrouter.backends.engines.model import EngineModel
from taskrouter.residency import State
from taskrouter.types import CPU, GIB

from .subjects import SUBJECTS, Subject, until

pytestmark = [pytest.mark.slow, pytest.mark.shared_engine, pytest.mark.timeout(600)]

Main = Callable[[], Coroutine[Any, Any, None]]


class Stage:
    """A subject, its manager and their loop, for all tests of one backend: engines take long to start."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.runner = asyncio.Runner()
        self.manager: ModelManager = subject.manager()

    def run(self, main: Main) -> None:
        self.runner.run(main())
        seen = self.manager.statistics()
        assert not self.manager.leases
        assert all(not model.leases for model in seen.models.values()), seen.models
        self.manager._core.check()

    def close(self) -> None:
        self.runner.run(self.manager.shutdown())
        self.runner.close()
        gc.collect()
        assert self.subject.left() == []
        assert self.manager.statistics().info == {}

    def state(self) -> State:
        models = self.manager.statistics().models.values()
        return next(model.state for model in models if model.label == "subject")

    def charged(self) -> int:
        models = self.manager.statistics().models.values()
        return next(sum(model.charges.values()) for model in models if model.label == "subject")

    async def answers_right(self) -> None:
        model = await self.manager.get_model("ask")
        messages, expected = self.subject.questions()[0]
        assert (await model.chat(messages)).text == expected

    async def answers(self) -> list[Any]:
        """What it answers to everything it is asked, with what the answers cost."""
        model = await self.manager.get_model("ask")
        found = [await model.chat(messages) for messages, _ in self.subject.questions()]
        return [(answer.text, answer.finish_reason, answer.usage) for answer in found]

    async def rests(self) -> tuple[Sleeper, LoadedModel]:
        """The model and its backend, to be put to sleep beside the core, which never does that on the ``cpu``."""
        async with self.manager.lease("ask") as lease:
            assert lease.resident is not None
            assert lease.resident.model is not None
            return cast(Sleeper, lease.resident.backend), lease.resident.model

    @staticmethod
    def sleep_as(model: LoadedModel, how: str) -> None:
        """As if its option said so."""
        if isinstance(model, EngineModel):
            model.request = dataclasses.replace(model.request, sleep=how)

    async def memory(self) -> int:
        gc.collect()
        async with self.manager.lease("ask") as lease:
            return self.subject.memory(lease)

    async def idle(self) -> None:
        async with self.manager.lease("ask") as lease:
            await until(lambda: self.subject.idle(lease))


@pytest.fixture(scope="module", params=SUBJECTS)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, engine_python: Callable[[str], str]
) -> Iterator[Stage]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="tr-", dir="/tmp") as temporary:
        patch.setattr(tempfile, "tempdir", temporary)
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        stage = Stage(SUBJECTS[request.param](folder, engine_python))
        try:
            yield stage
        finally:
            stage.close()
        assert list((folder / "state" / "taskrouter" / "engines").glob("*")) == []


def test_it_is_loaded_once_for_all_who_ask_and_answers_each_right(stage: Stage) -> None:
    async def main() -> None:
        await stage.manager.unload_model("ask")
        questions = stage.subject.questions() * 5

        async def ask(messages: Any, expected: str) -> None:
            model = await stage.manager.get_model("ask")
            answer = await model.chat(messages)
            assert (answer.text, answer.finish_reason) == (expected, "stop")
            assert answer.usage is not None
            assert answer.usage.completion_tokens > 0

        before = {key: model.generation for key, model in stage.manager.statistics().models.items()}
        await asyncio.gather(*[ask(*question) for question in questions])
        after = {key: model.generation for key, model in stage.manager.statistics().models.items()}
        assert sum(after.values()) - sum(before.values()) == 1

    stage.run(main)


def test_a_stream_says_the_same_in_pieces_and_its_last_one_has_the_usage(stage: Stage) -> None:
    async def main() -> None:
        model = await stage.manager.get_model("ask")
        messages, expected = stage.subject.questions()[1]
        async with model.stream_chat(messages) as chunks:
            pieces = [chunk async for chunk in chunks]
        assert "".join(piece.text for piece in pieces) == expected
        assert len(pieces) > 2
        assert pieces[-1].finish_reason == "stop"
        assert pieces[-1].usage is not None
        assert all(piece.finish_reason is None for piece in pieces[:-1])

    stage.run(main)


def test_max_tokens_ends_an_answer(stage: Stage) -> None:
    async def main() -> None:
        model = await stage.manager.get_model("ask")
        messages, expected = stage.subject.questions()[1]
        short = await model.chat(messages, max_tokens=1)
        assert short.finish_reason == "length"
        assert expected.startswith(short.text)
        assert len(short.text) < len(expected)

    stage.run(main)


def test_a_cancelled_call_and_an_abandoned_stream_stop_the_model_and_free_their_slots(stage: Stage) -> None:
    async def main() -> None:
        model = await stage.manager.get_model("ask")
        messages, _ = stage.subject.questions()[0]
        calls = [asyncio.ensure_future(model.chat(messages, **stage.subject.long())) for _ in range(3)]
        await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) or each.text for each in done)  # type: ignore[union-attr]
        async with model.stream_chat(messages, **stage.subject.long()) as chunks:
            await anext(chunks)
        await stage.idle()
        await stage.answers_right()

    stage.run(main)


def test_calls_run_side_by_side_within_their_slots(stage: Stage) -> None:
    async def main() -> None:
        model = await stage.manager.get_model("ask")
        most = 0

        async def ask(messages: Any, expected: str) -> None:
            nonlocal most
            async with model.stream_chat(messages) as chunks:
                text = ""
                async for chunk in chunks:
                    text += chunk.text
                    leases = [m.leases for m in stage.manager.statistics().models.values() if m.label == "subject"]
                    most = max(most, *leases)
            assert text == expected

        await asyncio.gather(*[ask(*question) for question in stage.subject.questions() * 4])
        slots = stage.manager.tasks["ask"].options["subject"].max_concurrency
        assert most == slots

    stage.run(main)


def test_input_that_makes_no_sense_is_refused_and_the_model_serves_on(stage: Stage) -> None:
    async def main() -> None:
        model = await stage.manager.get_model("ask")
        for bad in ([], [{"role": "user"}], [{"role": "nobody", "content": "x"}], [{"content": "x"}]):
            with pytest.raises(errors.BadInput):
                await model.chat(bad)
        if stage.subject.checks_context:
            with pytest.raises(errors.BadInput, match=r"context|long|token"):
                await model.chat("word " * 5000)
        await stage.answers_right()

    stage.run(main)


def test_an_unload_gives_everything_back_and_the_next_request_loads_again(stage: Stage) -> None:
    async def main() -> None:
        await stage.answers_right()
        assert stage.charged() > 0
        await stage.manager.unload_model("ask")
        gc.collect()
        assert stage.state() is State.DISK
        assert stage.charged() == 0
        assert stage.subject.left() == []
        await stage.answers_right()

    stage.run(main)


def test_its_footprint_is_measured_and_charged(stage: Stage) -> None:
    async def main() -> None:
        async with stage.manager.lease("ask") as lease:
            assert lease.resident is not None
            assert lease.resident.model is not None
            measured = lease.resident.model.measured
            assert measured is not None
            assert measured.device_bytes >= 1 << 20
            # A person's word is a floor; what was measured above it counts.
            assert stage.charged() == max(measured.device_bytes, int(stage.subject.vram_gb * GIB))
            assert lease.info
            stage.subject.check_cache(lease.info, measured.device_bytes)

    stage.run(main)


def test_it_sleeps_for_longer_than_a_hang_and_answers_as_before(stage: Stage) -> None:
    async def main() -> None:
        before = await stage.answers()
        backend, model = await stage.rests()
        for how in stage.subject.sleeps:
            stage.sleep_as(model, how)
            asleep = await backend.demote(model, timeout_s=10)
            assert asleep.ram_bytes >= 1 << 20
            assert asleep.residue == {}
            with pytest.raises((errors.ModelDied, errors.CallFailed), match=r"asleep|slept"):
                await (await stage.manager.get_model("ask")).chat("hello")
            await asyncio.sleep(1.5 * stage.subject.hang_timeout_s if stage.subject.has_process else 0)
            await backend.promote(model, {CPU: 6 * GIB})
            assert await stage.rests() == (backend, model), "it was started anew"
            assert await stage.answers() == before
        stage.sleep_as(model, "auto")

    stage.run(main)


def test_five_sleeps_leave_its_memory_as_it_was(stage: Stage) -> None:
    async def main() -> None:
        await stage.answers()
        backend, model = await stage.rests()

        async def cycle() -> int:
            await backend.demote(model, timeout_s=10)
            await backend.promote(model, {CPU: 6 * GIB})
            await stage.answers_right()
            return await stage.memory()

        before = await cycle()
        after = [await cycle() for _ in range(5)][-1]
        assert abs(after - before) <= 0.05 * before

    stage.run(main)


def test_unloaded_asleep_it_gives_everything_back(stage: Stage) -> None:
    async def main() -> None:
        await stage.answers_right()
        backend, model = await stage.rests()
        await backend.demote(model, timeout_s=10)
        del model
        await stage.manager.unload_model("ask")
        gc.collect()
        assert stage.state() is State.DISK
        assert stage.charged() == 0
        assert stage.subject.left() == []
        await stage.answers_right()

    stage.run(main)


def test_one_that_can_not_be_put_to_sleep_serves_on(stage: Stage) -> None:
    async def main() -> None:
        before = await stage.answers()
        backend, model = await stage.rests()
        async with stage.manager.lease("ask") as lease:
            refusing = stage.subject.refusing_to_sleep(lease)
            await refusing.__aenter__()
        with pytest.raises(errors.SleepFailed, match="subject"):
            await backend.demote(model, timeout_s=10)
        await refusing.__aexit__(None, None, None)
        assert await stage.rests() == (backend, model)
        assert await stage.answers() == before

    stage.run(main)


def test_one_that_dies_in_its_sleep_is_noticed_and_is_there_again_for_the_next(stage: Stage) -> None:
    async def main() -> None:
        if not stage.subject.comes_back:
            pytest.skip("in this process nothing dies by itself")
        await stage.answers_right()
        backend, model = await stage.rests()
        async with stage.manager.lease("ask") as lease:
            dying = stage.subject.doomed(lease)
        await backend.demote(model, timeout_s=10)
        dying()
        await until(lambda: stage.state() is State.DISK)
        await stage.answers_right()

    stage.run(main)


def test_nobody_without_the_key_puts_it_to_sleep_and_no_caller_does(stage: Stage) -> None:
    async def main() -> None:
        if not stage.subject.has_api:
            pytest.skip("it listens on no port")
        _, model = await stage.rests()
        assert isinstance(model, EngineModel)
        paths = sorted(model._adapter.controls(model.request))
        assert len(paths) >= 2
        async with aiohttp.ClientSession(model.api.base_url) as stranger:
            for path in paths:
                for headers in ({}, {"Authorization": "Bearer x"}):
                    async with stranger.post(path, json={}, headers=headers) as answer:
                        assert answer.status == 401, path
        handle = await stage.manager.get_model("ask")
        for path in paths:
            with pytest.raises(errors.BadInput, match="is for taskrouter to call"):
                await handle.request(path, {})
        await stage.answers_right()

    stage.run(main)


def test_a_model_that_dies_costs_its_callers_an_error_and_is_there_again_for_the_next(stage: Stage) -> None:
    async def main() -> None:
        await stage.answers_right()
        other = await stage.manager.get_model("other")
        messages, _ = stage.subject.questions()[0]
        if stage.subject.comes_back:
            await _dies_in_its_answer(stage, messages)
        else:
            async with stage.manager.lease("ask") as lease:
                await stage.subject.die(lease)
                with pytest.raises(stage.subject.dies_with):
                    await lease.chat(messages)
        assert (await other.chat("hello")).text
        await stage.answers_right()

    stage.run(main)


async def _dies_in_its_answer(stage: Stage, messages: Any) -> None:
    """It is kept from answering first: however starved the machine, no answer is there before it is killed."""
    async with stage.manager.lease("ask") as lease:
        die = stage.subject.doomed(lease)
        async with stage.subject.hang(lease):
            call = asyncio.ensure_future(lease.chat(messages, **stage.subject.long()))
            await asyncio.wait({call}, timeout=0.2)
            assert not call.done()
            die()
            with pytest.raises(stage.subject.dies_with):
                await call


def test_a_model_that_hangs_is_given_up_within_its_bound_or_costs_only_its_own_slots(stage: Stage) -> None:
    async def main() -> None:
        await stage.answers_right()
        other = await stage.manager.get_model("other")
        messages, _ = stage.subject.questions()[0]
        model = await stage.manager.get_model("ask")
        async with stage.manager.lease("ask") as lease:
            hanging = stage.subject.hang(lease)
            await hanging.__aenter__()
        try:
            stuck = asyncio.ensure_future(model.chat(messages))
            bound = 2 * stage.subject.hang_timeout_s
            await asyncio.wait({stuck}, timeout=bound)
            assert (await other.chat("hello")).text
            if not stuck.done():
                # In this process nobody can tell it from a long answer: the caller goes, the slot stays taken.
                assert stage.subject.name in ("fake", "transformers")
                stuck.cancel()
            in_process = stage.subject.name in ("fake", "transformers")
            with pytest.raises(asyncio.CancelledError if in_process else errors.ModelDied):
                await stuck
        finally:
            await hanging.__aexit__(None, None, None)
        await stage.answers_right()

    stage.run(main)
