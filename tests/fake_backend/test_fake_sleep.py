"""Fake models sleep and wake as scripted, and their bytes are counted wherever they are. Time is virtual."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from taskrouter.backends.fake import FakeBackend, Overcommit
from taskrouter.errors import CallFailed, OutOfMemory, SleepFailed
from taskrouter.types import CPU, GIB, ModelRequest

from .stage import ASK, GPU, check_free, load, now, request, run, until

SLEEPER: dict[str, Any] = {"can_sleep": True, "bytes": 4 * GIB, "sleep_s": 1, "wake_s": 2}
ROOM = {GPU: 4 * GIB}


def test_its_bytes_move_to_ram_and_back_in_the_time_that_takes() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(**SLEEPER, sleep_residue=GIB))
        before = await model.call("chat", ASK)
        sleeping = asyncio.ensure_future(backend.demote(model, timeout_s=9))
        await until(0.5)
        assert backend.in_use == {GPU: 4 * GIB, CPU: 4 * GIB}  # it is copied: it is in both
        asleep = await sleeping
        assert (asleep.ram_bytes, asleep.residue, now()) == (4 * GIB, {GPU: GIB}, 1)
        assert backend.in_use == {GPU: GIB, CPU: 4 * GIB}
        assert "asleep" in repr(model)
        await backend.promote(model, ROOM)
        assert (backend.in_use, now()) == ({GPU: 4 * GIB}, 3)
        assert await model.call("chat", ASK) == before
        assert await backend.unload(model, timeout_s=1) == {}
        assert [what for what, _ in backend.events if "e-" in what or "p-" in what] == [
            "sleep-start", "sleep-end", "wake-start", "wake-end",
        ]  # fmt: skip

    run(main)


def test_unloaded_asleep_it_gives_everything_back() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(**SLEEPER, sleep_ram=GIB))
        await backend.demote(model, timeout_s=9)
        assert backend.in_use == {CPU: GIB}
        assert await backend.unload(model, timeout_s=1) == {}
        check_free(backend)

    run(main)


def test_a_call_in_its_sleep_is_a_promise_broken() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(**SLEEPER))
        await backend.demote(model, timeout_s=9)
        with pytest.raises(CallFailed, match="while it slept"):
            await model.call("chat", ASK)
        assert backend.labels("call-asleep") == ["small"]

    run(main)


def test_put_to_sleep_at_work_is_a_promise_broken() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(**SLEEPER, call_s=5))
        call = asyncio.ensure_future(model.call("chat", ASK))
        await until(0.5)
        await backend.demote(model, timeout_s=9)
        assert backend.labels("sleep-busy") == ["small"]
        await call

    run(main)


@pytest.mark.parametrize("what", ["sleep", "wake"])
def test_a_failure_leaves_it_as_it_was(what: str) -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(**SLEEPER, fail=what, fail_times=1))
        if what == "wake":
            await backend.demote(model, timeout_s=9)
        held = backend.in_use
        with pytest.raises(SleepFailed, match="it is scripted to fail"):
            await (backend.demote(model, timeout_s=9) if what == "sleep" else backend.promote(model, ROOM))
        assert backend.in_use == held
        assert backend.labels(f"{what}-failed") == ["small"]
        if what == "sleep":
            await backend.demote(model, timeout_s=9)
        await backend.promote(model, ROOM)
        assert (await model.call("chat", ASK)).text

    run(main)


@pytest.mark.parametrize("what", ["sleep", "wake"])
def test_what_hangs_goes_on_when_it_is_told_to(what: str) -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(**SLEEPER, hang=what))
        for step in (backend.demote(model, timeout_s=9), backend.promote(model, ROOM)):
            going = asyncio.ensure_future(step)
            await until(now() + 100)
            if not going.done():
                backend.resume("small")
            await going
        assert backend.labels("wake-end") == ["small"]

    run(main)


def test_ram_and_devices_that_have_no_room_for_it_are_overcommitted() -> None:
    async def main() -> None:
        backend = FakeBackend(capacity={GPU: 6 * GIB, CPU: 3 * GIB})
        model = await load(backend, request(**SLEEPER))
        with pytest.raises(SleepFailed, match="ran out of memory: 4294967296 bytes on cpu, which has 3221225472"):
            await backend.demote(model, timeout_s=9)
        assert (await model.call("chat", ASK)).text
        small = await load(backend, request("other", **{**SLEEPER, "bytes": 2 * GIB}))
        await backend.demote(small, timeout_s=9)
        third = await load(backend, request("third", bytes=GIB))
        with pytest.raises(OutOfMemory, match="other ran out of memory"):
            await backend.promote(small, {GPU: 2 * GIB})
        assert backend.overcommitted == [
            Overcommit("small", CPU, 4 * GIB, 3 * GIB), Overcommit("other", GPU, 7 * GIB, 6 * GIB),
        ]  # fmt: skip
        await backend.unload(third, timeout_s=1)
        await backend.promote(small, {GPU: 2 * GIB})
        assert backend.in_use == {GPU: 6 * GIB}

    run(main)


def test_one_that_dies_asleep_is_noticed_and_does_not_wake() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(**SLEEPER))
        sleeping = asyncio.ensure_future(backend.demote(model, timeout_s=9))
        await sleeping
        death = asyncio.ensure_future(model.wait_dead())
        backend.kill("small")
        assert "died" in str(await death)
        with pytest.raises(SleepFailed, match="can't be woken: it is dead"):
            await backend.promote(model, ROOM)
        assert await backend.unload(model, timeout_s=1) == {}
        check_free(backend)

    run(main)


def test_nobody_falls_asleep_or_wakes_twice() -> None:
    async def main() -> None:
        backend = FakeBackend()
        model = await load(backend, request(**SLEEPER))
        with pytest.raises(SleepFailed, match="can't be woken: it is awake"):
            await backend.promote(model, ROOM)
        await backend.demote(model, timeout_s=9)
        with pytest.raises(SleepFailed, match="can't be put to sleep: it is asleep"):
            await backend.demote(model, timeout_s=9)

    run(main)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (request(can_sleep=True), "yes"),
        (request(), "no: its script doesn't say can_sleep"),
        (replace(request(can_sleep=True), sleep="never"), "no: its option says sleep: never"),
        (replace(request(can_sleep=True), devices=(CPU,)), "no: it is on the cpu, in host RAM already"),
    ],
)
def test_who_can_sleep_is_known_from_the_request_and_told(wanted: ModelRequest, says: str) -> None:
    async def main() -> None:
        backend = FakeBackend()
        assert backend.traits(wanted).can_sleep is (says == "yes")
        assert (await load(backend, wanted)).info["can_sleep"] == says

    run(main)
