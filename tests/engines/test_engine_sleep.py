"""Engines that sleep and wake, and every way that goes wrong: the stub, which sleeps as vLLM or as SGLang does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.backends.engines import guardian, sleeping, vllm
from taskrouter.backends.engines.api import Api, Broken
from taskrouter.backends.engines.backend import EngineBackend
from taskrouter.backends.engines.command import CommandAdapter, CommandBackend
from taskrouter.backends.engines.model import EngineModel, Rest
from taskrouter.backends.engines.sglang import SglangAdapter
from taskrouter.backends.engines.vllm import DEVELOPMENT, SLEEP, WAKE, VllmAdapter
from taskrouter.errors import BadInput, CallFailed, ModelDied, OutOfMemory, SleepFailed
from taskrouter.manager import StillMachine
from taskrouter.memory.devices import DeviceInfo
from taskrouter.memory.ram import HostRam
from taskrouter.memory.release import tree_bytes
from taskrouter.types import CPU, GIB, MIB, DeviceId, ModelKey, ModelRequest
from taskrouter.verbs import ChatRequest, RawRequest
from tests.test_memory_release import Driver

from .subjects import STUB, until

CALLS = {
    "vllm": {"sleep": f"POST {SLEEP}", "wake": f"POST {WAKE}"},
    "sglang": {"sleep": "POST /release_memory_occupation", "wake": "POST /resume_memory_occupation"},
}
MANNERS = pytest.mark.parametrize("manner", CALLS)
HELLO = ChatRequest(({"role": "user", "content": "hello"},))
ROOM = {CPU: GIB // 4}
WEIGHTS = 32 * MIB


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = set(guardian.descendants(os.getpid()))
    yield
    assert [pid for pid in guardian.descendants(os.getpid()) if pid not in before] == []


def option(manner: str, *words: str, **keys: Any) -> dict[str, Any]:
    flags = ["--port", "{port}", "--api-key", "{api_key}", "--ready-after", "0", "--sleeps", manner, *words]
    command = (sys.executable, str(STUB), "--weights", str(WEIGHTS), *flags)
    return {"model_id": "stub", "framework": "command", "command": command, "sleep_calls": CALLS[manner], **keys}


class Stage:
    """A stub under its backend."""

    def __init__(self, backend: EngineBackend, model: EngineModel) -> None:
        self.backend = backend
        self.model = model

    async def say(self) -> str:
        return str((await self.model.call("chat", HELLO)).text)

    async def sleep(self, timeout_s: float = 5) -> Any:
        return await self.backend.demote(self.model, timeout_s=timeout_s)

    async def wake(self) -> None:
        await self.backend.promote(self.model, ROOM)

    async def fault(self, name: str, **how: Any) -> None:
        """Beside the model, which answers nothing while it sleeps."""
        api = self.model.api
        async with api._session.post("/stub/fault", json={"name": name, **how}) as response:
            assert response.status == 200

    async def state(self) -> Any:
        return json.loads(await self.model.api.tell("GET", "/stub/state", 5))

    async def told(self) -> list[str]:
        return list((await self.state())["told"])

    def ram(self) -> int:
        return tree_bytes(self.model.process.pids())


def play(
    manner: str, main: Callable[[Stage], Coroutine[Any, Any, None]], *words: str, given: EngineBackend | None = None,
    **keys: Any,
) -> None:  # fmt: skip
    request = ModelRequest(ModelKey("stub#1"), "stub", **option(manner, *words, **keys))

    async def whole() -> None:
        backend = given or CommandBackend()
        try:
            model = await backend.load(request, (CPU,), ROOM)
            assert isinstance(model, EngineModel)
            try:
                await main(Stage(backend, model))
            finally:
                assert await backend.unload(model, timeout_s=5) == {}
        finally:
            await backend.close()

    asyncio.run(whole())


# --- as it should be --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@MANNERS
def test_it_sleeps_longer_than_a_hang_and_answers_as_before(manner: str) -> None:
    """SGLang's health check computes a token: looked at in its sleep, the stub would die."""

    async def main(stage: Stage) -> None:
        death = asyncio.ensure_future(stage.model.wait_dead())
        before, awake = await stage.say(), stage.ram()
        for _ in range(2):
            asleep = await stage.sleep()
            assert asleep.ram_bytes >= awake + WEIGHTS // 2
            assert asleep.residue == {}
            assert "asleep" in repr(stage.model)
            await asyncio.sleep(1.2)
            await stage.wake()
            assert await stage.say() == before
        assert not death.done()
        death.cancel()
        assert await stage.told() == ["sleep", "wake"] * 2

    play(manner, main, hang_timeout_s=0.4)


@MANNERS
def test_five_sleeps_leave_its_memory_as_it_was(manner: str) -> None:
    async def main(stage: Stage) -> None:
        async def cycle() -> int:
            await stage.sleep()
            await stage.wake()
            await stage.say()
            return stage.ram()

        before = await cycle()
        for _ in range(5):
            after = await cycle()
        assert abs(after - before) <= 0.05 * before

    play(manner, main)


@MANNERS
def test_unloaded_asleep_nothing_of_it_is_left(manner: str) -> None:
    async def main(stage: Stage) -> None:
        await stage.sleep()

    play(manner, main)


@pytest.mark.slow
def test_a_look_at_its_health_ends_before_it_is_told_to_sleep() -> None:
    async def main(stage: Stage) -> None:
        await stage.fault("health_hang", times=1)
        death = asyncio.ensure_future(stage.model.wait_dead())
        await until(lambda: not stage.model._unseen.is_set())
        await stage.sleep()
        assert stage.model._unseen.is_set()
        death.cancel()

    play("sglang", main, hang_timeout_s=2)


def test_calls_in_its_sleep_are_refused_before_they_reach_it() -> None:
    async def main(stage: Stage) -> None:
        await stage.sleep()
        with pytest.raises(CallFailed, match="stub was asked to chat while it is asleep"):
            await stage.say()
        with pytest.raises(CallFailed, match="while it is asleep"):
            await anext(stage.model.stream("stream_chat", HELLO))
        await stage.wake()
        assert await stage.say() == "stub heard: hello"

    play("sglang", main)


@pytest.mark.parametrize("path", ["/sleep", "/sleep?level=2", "/wake_up/", "/v1/../sleep", "/%73leep"])
def test_a_caller_can_not_put_it_to_sleep_by_itself(path: str) -> None:
    async def main(stage: Stage) -> None:
        with pytest.raises(BadInput, match="is for taskrouter to call"):
            await stage.model.call("request", RawRequest(path, {}))
        assert await stage.told() == []
        assert (await stage.model.call("request", RawRequest("/v1/models")))["data"]

    play("vllm", main)


def test_what_callers_may_not_call_is_known_of_each_engine() -> None:
    request = ModelRequest(ModelKey("m"), "m", **option("vllm"))
    assert CommandAdapter().controls(request) == {"/sleep", "/wake_up"}
    assert "/collective_rpc" in VllmAdapter().controls(request) == DEVELOPMENT
    assert SglangAdapter().controls(request) == {"/release_memory_occupation", "/resume_memory_occupation"}


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({}, None),
        ({"sleep_calls": None}, "its option has no sleep_calls"),
        ({"sleep": "never"}, "its option says sleep: never"),
        ({"devices": (CPU,)}, "it is on the cpu, in host RAM already"),
    ],
)
def test_who_can_sleep_and_why_not(keys: dict[str, Any], why: str | None) -> None:
    request = ModelRequest(ModelKey("m"), "m", **option("vllm", **keys))
    adapter = CommandAdapter()
    assert adapter.why_awake(request) == why
    assert adapter.traits(request).can_sleep is (why is None)


# --- without its weights ----------------------------------------------------------------------------------------------


class Discarding(CommandAdapter):
    """The stub, told as vLLM is."""

    async def sleep(self, api: Api, request: ModelRequest) -> None:
        await VllmAdapter().sleep(api, request)

    async def wake(self, api: Api, request: ModelRequest) -> None:
        await VllmAdapter().wake(api, request)


def discard(main: Callable[[Stage], Coroutine[Any, Any, None]], **keys: Any) -> None:
    play("vllm", main, given=EngineBackend(Discarding()), sleep="discard", **keys)


def test_one_that_drops_its_weights_takes_no_ram_for_them_and_answers_as_before() -> None:
    async def main(stage: Stage) -> None:
        before, awake = await stage.say(), stage.ram()
        stage.model.weight_bytes = 1 << 60  # more than any RAM holds
        for _ in range(2):
            asleep = await stage.sleep()
            assert asleep.ram_bytes < awake + WEIGHTS // 2
            await stage.wake()
            assert await stage.say() == before
        assert await stage.told() == ["sleep", "wake", "reload", "wake"] * 2

    discard(main)


@pytest.mark.slow
def test_one_that_was_woken_halfway_is_neither_asleep_nor_awake() -> None:
    async def main(stage: Stage) -> None:
        await stage.sleep()
        await stage.fault("reload_status", status=500, message="no such file", times=1)
        with pytest.raises(SleepFailed, match=r"couldn't be woken: woken halfway: .* with 500: no such file"):
            await stage.wake()
        assert stage.model.rest is Rest.BETWEEN

    discard(main)


def test_one_that_refuses_to_begin_to_wake_sleeps_on_without_its_weights() -> None:
    async def main(stage: Stage) -> None:
        await stage.sleep()
        await stage.fault("wake_status", status=500, times=1)
        with pytest.raises(SleepFailed, match=r"couldn't be woken: .* with 500"):
            await stage.wake()
        await stage.wake()
        assert await stage.say() == "stub heard: hello"

    discard(main)


def test_it_may_read_its_weights_for_longer_than_a_copy_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeping, "SLEEP_BOUND_S", 0.2)
    monkeypatch.setattr(vllm, "SLEEP_BOUND_S", 5.0)

    async def main(stage: Stage) -> None:
        await stage.sleep()
        await stage.fault("reload_slow", seconds=0.5, times=1)
        await stage.wake()
        assert await stage.say() == "stub heard: hello"

    discard(main)


# --- what goes wrong --------------------------------------------------------------------------------------------------


@MANNERS
def test_one_that_refuses_to_sleep_serves_on(manner: str) -> None:
    async def main(stage: Stage) -> None:
        await stage.fault("sleep_status", status=500, message="no RAM to pin", times=1)
        with pytest.raises(SleepFailed, match=r"couldn't be put to sleep: .* with 500: no RAM to pin"):
            await stage.sleep()
        assert await stage.say() == "stub heard: hello"
        await stage.sleep()
        await stage.wake()

    play(manner, main)


def test_one_without_the_room_in_ram_is_not_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(stage: Stage) -> None:
        stage.model.weight_bytes = GIB
        with monkeypatch.context() as patch:
            patch.setattr(HostRam, "available", lambda self: GIB // 2)
            with pytest.raises(SleepFailed, match=r"its weights take 1.00 GiB of RAM, and 0.50 GiB are free"):
                await stage.sleep()
        assert await stage.say() == "stub heard: hello"
        assert await stage.told() == []
        assert (await stage.sleep()).ram_bytes >= GIB  # that its weights are there is certain, whatever is seen

    play("vllm", main)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["sleep", "wake"])
def test_one_that_never_says_it_did_is_given_up_within_the_bound(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeping, "SLEEP_BOUND_S", 0.5)

    async def main(stage: Stage) -> None:
        await stage.fault(f"{what}_hang")
        if what == "wake":
            await stage.sleep()
        start = time.monotonic()
        with pytest.raises(SleepFailed, match=r"couldn't be (put to sleep|woken) within 0.5 s"):
            await (stage.sleep() if what == "sleep" else stage.wake())
        assert time.monotonic() - start < 3
        with pytest.raises(CallFailed, match="while it is between sleeping and waking"):
            await stage.say()

    play("vllm", main)


@pytest.mark.parametrize("what", ["sleep", "wake"])
def test_one_that_dies_of_it_says_its_last_words(what: str) -> None:
    async def main(stage: Stage) -> None:
        await stage.fault(f"{what}_exit", text="CUDA error: invalid argument")
        if what == "wake":
            await stage.sleep()
        with pytest.raises(SleepFailed, match=r"ended with exit status 1.*\n.*CUDA error: invalid argument"):
            await (stage.sleep() if what == "sleep" else stage.wake())
        assert isinstance(await stage.model.wait_dead(), ModelDied)

    play("vllm", main)


def test_one_that_dies_asleep_is_noticed_at_once() -> None:
    async def main(stage: Stage) -> None:
        await stage.sleep()
        death = asyncio.ensure_future(stage.model.wait_dead())
        with contextlib.suppress(Exception):
            await stage.fault("exit", text="told to")
        assert "ended with exit status 1" in str(await asyncio.wait_for(death, 5))
        with pytest.raises(SleepFailed, match=r"couldn't be woken: .* ended with exit status 1"):
            await stage.wake()

    play("vllm", main)


def test_one_that_refuses_to_wake_sleeps_on() -> None:
    async def main(stage: Stage) -> None:
        await stage.sleep()
        await stage.fault("wake_status", status=500, times=1)
        with pytest.raises(SleepFailed, match=r"couldn't be woken: .* with 500"):
            await stage.wake()
        assert stage.model.rest is Rest.ASLEEP
        await stage.wake()
        assert await stage.say() == "stub heard: hello"

    play("vllm", main)


@pytest.mark.slow
def test_one_that_wakes_and_computes_nothing_has_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleeping, "TOKEN_BOUND_S", 0.5)

    async def main(stage: Stage) -> None:
        await stage.sleep()
        await stage.fault("hang")
        with pytest.raises(SleepFailed, match="couldn't compute anything once awake within"):
            await stage.wake()

    play("vllm", main)


def test_nothing_is_said_twice() -> None:
    """Resumed twice, SGLang dies."""

    async def main(stage: Stage) -> None:
        with pytest.raises(SleepFailed, match="stub can't be woken: it is awake"):
            await stage.wake()
        await stage.sleep()
        with pytest.raises(SleepFailed, match="stub can't be put to sleep: it is asleep"):
            await stage.sleep()
        await stage.wake()
        assert await stage.told() == ["sleep", "wake"]

    play("sglang", main)


# --- the packaged engines' own protocols ------------------------------------------------------------------------------


@pytest.mark.slow
def test_sglang_is_not_released_while_it_works_for_nobody() -> None:
    """It notices late that a caller has gone away, and released at work it dies: what a command's call does."""
    asked = ModelRequest(ModelKey("m"), "m", "sglang", "m")

    async def abandon(stage: Stage) -> None:
        call = asyncio.ensure_future(stage.model.call("chat", HELLO))
        await asyncio.sleep(0.1)
        call.cancel()
        await asyncio.wait({call})

    async def careful(stage: Stage) -> None:
        await abandon(stage)
        await SglangAdapter().sleep(stage.model.api, asked)
        assert (await stage.state())["asleep"]
        await SglangAdapter().wake(stage.model.api, asked)
        assert await stage.say() == "stub heard: hello"

    async def careless(stage: Stage) -> None:
        await abandon(stage)
        await asyncio.sleep(0.1)
        with pytest.raises(SleepFailed, match="should be called only when server is idle"):
            await stage.sleep()

    words = ("--linger", "0.5", "--token-s", "0.5")
    play("sglang", careful, *words)
    play("sglang", careless, *words)


@pytest.mark.slow
def test_sglang_that_never_idles_or_does_not_say_is_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    from taskrouter.backends.engines import sglang

    monkeypatch.setattr(sglang, "IDLE_BOUND_S", 0.2)
    asked = ModelRequest(ModelKey("m"), "m", "sglang", "m")

    async def busy(stage: Stage) -> None:
        call = asyncio.ensure_future(stage.model.call("chat", HELLO))
        with pytest.raises(SleepFailed, match="still works on 1 requests that nobody waits for"):
            await SglangAdapter().sleep(stage.model.api, asked)
        assert await call
        monkeypatch.setattr(sglang, "LOADS", "/v1/models")
        with pytest.raises(SleepFailed, match="doesn't say what its engine works on"):
            await SglangAdapter().sleep(stage.model.api, asked)
        assert await stage.told() == []

    play("sglang", busy, "--token-s", "0.4")


def test_vllm_is_asked_whether_it_sleeps() -> None:
    asked = ModelRequest(ModelKey("m"), "m", "vllm", "m")

    async def main(stage: Stage) -> None:
        api: Api = stage.model.api
        await VllmAdapter().sleep(api, asked)
        assert (await stage.state())["asleep"]
        await stage.fault("wake_lies", times=1)
        with pytest.raises(Broken, match=r'/is_sleeping says {"is_sleeping": true}'):
            await VllmAdapter().wake(api, asked)
        await VllmAdapter().wake(api, asked)
        await stage.fault("sleep_lies", times=1)
        with pytest.raises(Broken, match=r'/is_sleeping says {"is_sleeping": false}'):
            await VllmAdapter().sleep(api, asked)

    play("vllm", main)


# --- what stays on a GPU ----------------------------------------------------------------------------------------------


class Living(Driver):
    """Processes that have ended hold nothing."""

    def _check(self) -> None:
        super()._check()
        self.held = {pid: size for pid, size in self.held.items() if not guardian.is_zombie(pid)}


class Gpu:
    """A GPU made of numbers on which the stub's first process holds memory, as the driver says."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver = Living()
        self.pid = stage.model.process.pid
        self.driver.held = {self.pid: 8 * GIB}
        self.id = DeviceId("cuda:0")
        (place,) = stage.model.places
        info = DeviceInfo(self.id, "made of numbers", "GPU-a", 80 * GIB)
        stage.model.places = (type(place)(self.id, "GPU-a", 80 * GIB, 70 * GIB, 8 * GIB),)
        monkeypatch.setattr(sleeping, "open_nvml", lambda: self.driver)
        monkeypatch.setattr("taskrouter.backends.engines.backend.open_nvml", lambda: self.driver)
        monkeypatch.setattr("taskrouter.backends.engines.ending.open_nvml", lambda: self.driver)
        monkeypatch.setattr(sleeping, "discover", lambda: (info,))
        monkeypatch.setattr(sleeping, "free_bytes", lambda _: (m := self.driver.memory("GPU-a")).total - m.used)

    def follow(self, stage: Stage, *, left: int) -> Any:
        """What the driver shows falls some time after the engine has said that it sleeps."""

        async def watch() -> None:
            await until(lambda: stage.model.rest is Rest.ASLEEP)
            await asyncio.sleep(0.3)
            self.driver.held[self.pid] = left

        return asyncio.ensure_future(watch())


@pytest.mark.slow
def test_what_it_keeps_on_its_gpu_is_seen_and_given_back_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(stage: Stage) -> None:
        gpu = Gpu(stage, monkeypatch)
        falling = gpu.follow(stage, left=GIB)
        assert (await stage.sleep()).residue == {gpu.id: GIB}
        await falling
        gpu.driver.others = 73 * GIB
        with pytest.raises(OutOfMemory, match=r"stub wakes with 7.00 GiB more on cuda:0, but only 6.00 GiB are really"):
            await stage.backend.promote(stage.model, {gpu.id: 8 * GIB})
        assert stage.model.rest is Rest.ASLEEP
        gpu.driver.others = 2 * GIB
        await stage.backend.promote(stage.model, {gpu.id: 8 * GIB})
        assert await stage.say() == "stub heard: hello"

    play("vllm", main)


def test_one_that_gives_nothing_back_has_not_slept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(stage: Stage) -> None:
        Gpu(stage, monkeypatch)
        with pytest.raises(SleepFailed, match=r"gave nothing back within 0.3 s: 8.00 GiB are still held"):
            await stage.sleep(timeout_s=0.3)

    play("vllm", main)


# --- under the manager ------------------------------------------------------------------------------------------------


class House:
    """A manager whose made-up GPU holds one of two stubs."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        # Slower to load than a wake is expected to be, or there would be no reason to sleep.
        mine = {**option("vllm", "--model", "{model_id}", "--ready-after", "0.7"), "vram_gb": 1, **keys}
        options = {name: {**mine, "model_id": f"stub-{name}"} for name in ("a", "b")}
        tasks = {name: {"kind": "chat", "selected": name, "options": {name: each}} for name, each in options.items()}
        # Made-up bytes are nowhere to be seen: of a model that is asleep its RAM is.
        memory = {"min_residency_s": 0, "claim_s": 0.1, "host_budget": "2GiB"}
        sections = {"memory": memory, "inference": {"offload_threshold": 1.0, "warmup_on_startup": False}}
        self.file = folder / "models.yaml"
        self.file.write_text(json.dumps({"tasks": tasks, **sections}), encoding="utf-8")
        self.manager = ModelManager(self.file, machine=StillMachine({"cuda:0": GIB, "cpu": 8 * GIB}))

    async def ask(self, task: str) -> int:
        """One call; the pid that answered."""
        async with self.manager.lease(task) as model:
            assert (await model.chat("hi")).text == f"stub-{task} heard: hi"
            return int(model.info["pid"])

    def state(self, name: str) -> str:
        models = self.manager.statistics().models.values()
        return next(status.state.value for status in models if status.label == name)


def house(folder: Path, main: Callable[[House], Coroutine[Any, Any, None]], **keys: Any) -> None:
    async def whole() -> None:
        stage = House(folder, **keys)
        async with stage.manager:
            await main(stage)
        stage.manager._core.check()

    asyncio.run(whole())


@pytest.mark.slow
def test_a_command_that_can_sleep_makes_room_by_sleeping(tmp_path: Path) -> None:
    async def main(stage: House) -> None:
        first = await stage.ask("a")
        assert {info["can_sleep"] for info in stage.manager.statistics().info.values()} == {"yes"}
        await stage.ask("b")
        assert stage.state("a") == "host"
        books = stage.manager.statistics().devices
        assert books[CPU].charged > WEIGHTS
        assert await stage.ask("a") == first
        assert stage.state("b") == "host"

    house(tmp_path, main)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"sleep": "never"}, {"sleep_calls": None}])
def test_one_that_can_not_sleep_is_unloaded_and_says_why(tmp_path: Path, keys: dict[str, Any]) -> None:
    async def main(stage: House) -> None:
        await stage.ask("a")
        (info,) = stage.manager.statistics().info.values()
        assert info["can_sleep"].startswith("no: its option")
        await stage.ask("b")
        assert stage.state("a") == "disk"

    house(tmp_path, main, **keys)


@pytest.mark.slow
def test_one_that_dies_in_its_sleep_is_started_again(tmp_path: Path) -> None:
    async def main(stage: House) -> None:
        first = await stage.ask("a")
        await stage.ask("b")
        os.kill(first, 9)
        await until(lambda: stage.state("a") == "disk")
        assert await stage.ask("a") != first

    house(tmp_path, main)


@pytest.mark.slow
def test_one_that_does_not_wake_is_started_again_for_who_waits(tmp_path: Path) -> None:
    async def main(stage: House) -> None:
        async with stage.manager.lease("a") as model:
            await model.request("/stub/fault", {"name": "wake_status", "status": 500})
            first = int(model.info["pid"])
        await stage.ask("b")
        assert stage.state("a") == "host"
        assert await stage.ask("a") != first

    house(tmp_path, main)


@pytest.mark.slow
def test_one_that_falls_asleep_for_ever_is_stopped_and_its_room_is_given_to_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleeping, "SLEEP_BOUND_S", 0.5)

    async def main(stage: House) -> None:
        async with stage.manager.lease("a") as model:
            await model.request("/stub/fault", {"name": "sleep_hang"})
        await stage.ask("b")
        assert stage.state("a") == "disk"

    house(tmp_path, main)


@pytest.mark.slow
def test_a_model_asleep_is_unloaded_by_request_and_at_the_end(tmp_path: Path) -> None:
    async def main(stage: House) -> None:
        await stage.ask("a")
        await stage.ask("b")
        assert stage.state("a") == "host"
        await stage.manager.unload_model("a")
        assert stage.state("a") == "disk"
        await stage.ask("a")
        assert stage.state("b") == "host"  # and is left to the shutdown

    house(tmp_path, main)


def test_errors_of_sleep_are_errors_of_loading() -> None:
    assert issubclass(errors.SleepFailed, errors.LoadFailed)
