"""Streams end their lease however they end."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from taskrouter import errors

from .stage import Stage, now, play, settle, spawn

TEN = " ".join(str(number) for number in range(10))
HUNDRED = " ".join(str(number) for number in range(100))


def slow(**keys: Any) -> dict[str, dict[str, Any]]:
    return {"a": {"call_s": 11, "answer": TEN, **keys}}


def test_a_stream_that_is_read_to_its_end_has_ended_its_lease(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        async with model.stream_chat("hello") as chunks:
            assert stage.leases() == 1
            pieces = [chunk async for chunk in chunks]
            assert stage.leases() == 0
        assert "".join(piece.text for piece in pieces) == TEN
        assert pieces[-1].finish_reason == "stop"
        assert pieces[-1].usage is not None
        assert [chunk async for chunk in chunks] == []

    play(Stage(tmp_path, slow()), main)


def test_a_stream_takes_its_lease_when_reading_begins(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        stream = model.stream_chat("hello")
        await asyncio.sleep(5)
        assert stage.leases() == 0
        await anext(stream)
        assert stage.leases() == 1
        await stream.aclose()

    play(Stage(tmp_path, slow()), main)


def test_leaving_a_stream_early_stops_the_model(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        async for _ in model.stream_chat("hello"):
            break
        gc.collect()
        await settle()
        assert stage.leases() == 0
        assert stage.backend.labels("call-cancelled") == ["a"]
        assert now() == 1

    play(Stage(tmp_path, slow()), main)


def test_closing_a_stream_returns_when_the_work_has_stopped_and_may_be_repeated(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        stream = model.stream_chat("hello")
        await anext(stream)
        await stream.aclose()
        assert now() == 4
        assert stage.leases() == 0
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    play(Stage(tmp_path, slow(stop_s=3)), main)


def test_leaving_the_block_of_a_stream_keeps_the_lease_until_the_work_has_stopped(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        with pytest.raises(ZeroDivisionError):
            async with model.stream_chat("hello") as chunks:
                await anext(chunks)
                raise ZeroDivisionError
        assert stage.leases() == 1
        await asyncio.sleep(3.1)
        assert stage.leases() == 0

    play(Stage(tmp_path, slow(stop_s=3)), main)


def test_a_reader_that_is_cancelled_ends_the_stream(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        stream = model.stream_chat("hello")

        async def read() -> None:
            async for _ in stream:
                pass

        reader = spawn(read())
        await asyncio.sleep(2.5)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await settle()
        assert stage.leases() == 0
        assert now() == 2.5

    play(Stage(tmp_path, slow()), main)


def test_a_reader_that_is_cancelled_while_it_waits_for_the_model_leaves_no_ticket(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")

        async def read() -> None:
            await anext(model.stream_chat("hello"))

        async with stage.manager.lease("a"):
            reader = spawn(read())
            await asyncio.sleep(1)
            assert stage.manager.statistics().waiting == 1
            reader.cancel()
            await asyncio.wait([reader])
            assert stage.manager.statistics().waiting == 0
        assert stage.leases() == 0

    play(Stage(tmp_path, slow(max_concurrency=1)), main)


def test_a_stream_that_is_closed_while_its_reader_waits_for_the_model_never_starts(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        stream = model.stream_chat("hello")
        async with stage.manager.lease("a"):
            reader = spawn(stream.__anext__())
            await asyncio.sleep(1)
            await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await reader
        await settle()
        assert stage.leases() == 0
        assert now() == 1

    play(Stage(tmp_path, slow(max_concurrency=1)), main)


def test_a_slow_reader_slows_the_model_down(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        read = 0
        async with model.stream_chat("hello") as chunks:
            async for _ in chunks:
                read += 1
                await asyncio.sleep(1)
                if read == 50:
                    assert stage.leases() == 1
        assert read == 101
        assert now() == 101

    play(Stage(tmp_path, {"a": {"answer": HUNDRED}}), main)


def test_a_stream_nobody_reads_ends_after_its_bound(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        stream = model.stream_chat("hello")
        await anext(stream)
        await asyncio.sleep(19)
        assert stage.leases() == 1
        await asyncio.sleep(2)
        assert stage.leases() == 0
        with pytest.raises(errors.CallFailed, match="stream_idle_s"):
            async for _ in stream:
                pass

    play(Stage(tmp_path, {"a": {"answer": HUNDRED}}, memory={"stream_idle_s": 20}), main)


def test_a_stream_whose_model_is_unloaded_by_force_ends_in_an_error_not_as_if_complete(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        stream = model.stream_chat("hello")
        await anext(stream)
        await spawn(stage.manager.unload_model("a", force=True))
        with pytest.raises(errors.Unloaded):
            async for _ in stream:
                pass

    play(Stage(tmp_path, slow()), main)


def test_a_model_that_fails_in_the_middle_is_a_typed_error_and_stays(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async def broken(verb: str, request: object) -> Any:
            yield "one"
            raise KeyError("oops")

        model = await stage.manager.get_model("a")
        performer = stage.manager.performer
        assert performer is not None
        (resident,) = performer.residents.values()
        resident.model.stream = broken  # type: ignore[union-attr,method-assign]
        stream = model.stream_chat("hello")
        assert await anext(stream) == "one"
        with pytest.raises(errors.CallFailed, match="a failed while answering"):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert stage.leases() == 0
        assert stage.state("a") == "ready"

    play(Stage(tmp_path, slow()), main)


def test_a_stream_that_is_dropped_unread_never_took_anything(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        model.stream_chat("hello")
        await settle()
        assert stage.backend.labels("call-start") == []

    play(Stage(tmp_path, slow()), main)


def test_bad_arguments_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        async with stage.manager.lease("a") as model:
            for messages, how in (("", {"max_tokens": 0}), ([], {}), ([{"role": "x"}], {}), ("x", {"top_p": 2})):
                with pytest.raises(errors.BadInput):
                    model.stream_chat(messages, **how)  # type: ignore[arg-type]
                with pytest.raises(errors.BadInput):
                    await model.chat(messages, **how)  # type: ignore[arg-type]
            with pytest.raises(errors.BadInput):
                await model.classify(b"", top_k=0)
            for wrong in ("cat", ["cat", ""], [1]):
                with pytest.raises(errors.BadInput, match="list of names that aren't empty"):
                    await model.classify(b"", labels=wrong)  # type: ignore[arg-type]
                with pytest.raises(errors.BadInput, match="list of names that aren't empty"):
                    await model.detect(b"", labels=wrong)  # type: ignore[arg-type]
            with pytest.raises(errors.BadInput, match="threshold is 2"):
                await model.detect(b"", threshold=2)
        assert stage.backend.labels("call-start") == []

    play(Stage(tmp_path, slow()), main)
