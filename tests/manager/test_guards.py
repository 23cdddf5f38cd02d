"""One loop, one process, one manager per GPU; and the manager for synchronous callers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.manager import ThisMachine
from taskrouter.manager.blocking import BlockingManager
from taskrouter.memory.devices import DeviceInfo
from taskrouter.memory.ledger import FootprintLedger, Remembered
from taskrouter.types import CPU, GIB, DeviceId, DeviceReading, Footprint

from .stage import Stage, play, settle

A = {"a": {}, "b": {"vram_gb": 8}}


# --- one loop, one process --------------------------------------------------------------------------------------------


def test_another_loop_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")

        def elsewhere(work: Any) -> None:
            with pytest.raises(errors.WrongLoop, match="blocking"):
                asyncio.run(work)

        async with stage.manager.lease("a") as lease:
            thread = ThreadPoolExecutor(1)
            with thread:
                for work in (stage.manager.get_model("a"), model.chat("x"), lease.chat("x"), stage.manager.shutdown()):
                    thread.submit(elsewhere, work).result()
        assert (await model.chat("hello")).text

    play(Stage(tmp_path, A), main)


def test_a_context_carried_into_another_loop_does_not_carry_its_lease_along(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")

        def elsewhere() -> None:
            with pytest.raises(errors.WrongLoop):
                asyncio.run(model.chat("x"))

        async with stage.manager.lease("a"):
            await asyncio.to_thread(lambda: _in_a_thread(elsewhere))

    play(Stage(tmp_path, A), main)


def _in_a_thread(work: Any) -> None:
    import contextvars

    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(context.run, work).result()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_told_to_make_its_own(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            code = 1
            with contextlib.suppress(BaseException):
                asyncio.events._set_running_loop(None)
                code = asyncio.Runner().run(_child(stage.manager))
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0  # noqa: ASYNC222  (bounded by the child's alarm)
        assert (await model.chat("hello")).text

    play(Stage(tmp_path, A), main)


async def _child(manager: ModelManager) -> int:
    refused = 0
    for call in (manager.get_model("a"), manager.lease("a").__aenter__(), manager.shutdown()):
        try:
            await call
        except errors.Forked:
            refused += 1
    return 0 if refused == 3 else 2


def test_a_closed_manager_refuses_everything_that_needs_a_model(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        model = await stage.manager.get_model("a")
        await stage.manager.shutdown()
        for call in (
            stage.manager.get_model("a"),
            model.chat("x"),
            anext(model.stream_chat("x")),
            stage.manager.lease("a").__aenter__(),
            stage.manager.unload_model("a"),
            stage.manager.evict_lru_model(),
            stage.manager.set_selected_model("a", "a"),
            stage.manager.warmup_models(),
        ):
            with pytest.raises(errors.ManagerClosed):
                await call
        assert stage.manager.statistics().waiting == 0
        assert repr(model) == "<Model a → a>"

    play(Stage(tmp_path, A), main)


# --- one manager per GPU ----------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    infos = (DeviceInfo(DeviceId("cuda:0"), "Fake GPU", "GPU-fake-1", 10 * GIB), DeviceInfo(CPU, "RAM", "", 10 * GIB))
    from taskrouter.manager import machine

    monkeypatch.setattr(machine, "discover", lambda: infos)
    monkeypatch.setattr(machine, "observe", lambda devices, charged: {DeviceId("cuda:0"): DeviceReading()})


def manage(stage: Stage, **how: Any) -> ModelManager:
    return ModelManager(stage.file, registry=stage.registry, machine=ThisMachine(**how))


@pytest.mark.usefixtures("gpu")
def test_a_gpu_belongs_to_one_manager_until_that_shuts_down(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        first, second = manage(Stage(tmp_path / "one", A)), manage(Stage(tmp_path / "two", A))
        await first.get_model("a")
        with pytest.raises(errors.DeviceInUse, match="GPU-fake-1 is managed by another manager in this process"):
            await second.get_model("a")
        assert second.get_loaded_models() == {}
        await first.shutdown()
        await second.get_model("a")
        await second.shutdown()

    asyncio.run(main())


@pytest.mark.usefixtures("gpu")
def test_how_long_a_load_took_is_known_after_a_restart(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"a": {"vram_gb": 4, "bytes": "4GiB", "load_s": 0.25}})
    ledger = FootprintLedger()

    async def main() -> None:
        async with manage(stage) as manager:
            (key,) = manager.statistics().models
            ledger.put(key, "Fake GPU", Footprint(4 * GIB), 90.0)
            await manager.get_model("a")
            average = manager.statistics().models[key].load_s
            assert average == pytest.approx(0.8 * 90 + 0.2 * 0.25, abs=0.2)
            # It is written beside the loop.
            expected = Remembered(Footprint(4 * GIB), round(average, 3))
            for _ in range(1000):
                if ledger.find(key, "Fake GPU") == expected:
                    break
                await asyncio.sleep(0.01)
            assert ledger.find(key, "Fake GPU") == expected

    asyncio.run(main())


@pytest.mark.usefixtures("gpu")
def test_another_process_that_has_the_gpu_is_named(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        from taskrouter.memory.gpu_lock import gpu_lock

        lock = gpu_lock("GPU-fake-1")
        os.write(writing, b"x")
        time.sleep(60)
        lock.close()
        os._exit(0)
    try:
        assert os.read(reading, 1) == b"x"

        async def main() -> None:
            async with manage(Stage(tmp_path, A)) as manager:
                with pytest.raises(errors.DeviceInUse, match=f"process {pid}.*memory.share"):
                    await manager.get_model("a")

        asyncio.run(main())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_may_be_shared_where_the_file_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        first = manage(Stage(tmp_path / "one", A), share=True)
        second = manage(Stage(tmp_path / "two", A), share=True)
        await first.get_model("a")
        await second.get_model("a")
        await first.shutdown()
        await second.shutdown()

    asyncio.run(main())


# --- blocking ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def blocking(tmp_path: Path) -> Iterator[BlockingManager]:
    stage = Stage(
        tmp_path,
        {
            "a": {"max_concurrency": 1, "answer": "one two three"},
            "b": {"vram_gb": 8},
            "slow": {"hang": "call"},
            "many": {"answer": "word " * 200},
        },
    )
    with stage.manager.blocking() as manager:
        manager.stage = stage
        yield manager
    stage.check()
    assert not [thread for thread in threading.enumerate() if thread.name == "taskrouter-loop"]


def test_everything_that_is_awaited_blocks(blocking: BlockingManager) -> None:
    model = blocking.get_model("a")
    assert model.chat("hello").text == "one two three"
    with blocking.lease("a") as leased:
        assert leased.chat("hello").text == "one two three"
        assert leased.info["label"] == "a"
    assert list(blocking.loaded_models) == ["a"]
    assert blocking.loaded_models["a"].chat("hello").text == "one two three"
    assert blocking.get_lru_model() == "a"
    assert blocking.statistics().waiting == 0
    assert blocking.validate_memory_budget()["total_vram_gb"] == 10
    assert blocking.evict_lru_model() == "a"
    with pytest.raises(errors.UnknownTask):
        blocking.get_model("zzz")
    assert "blocking" in repr(blocking)
    assert "blocking" in repr(model)


def test_many_threads_may_use_it_at_once(blocking: BlockingManager) -> None:
    def work(number: int) -> str:
        for turn in range(20):
            task = "a" if (number + turn) % 2 else "b"
            text: str = blocking.get_model(task).chat("hello").text
            assert text
            blocking.statistics()
            blocking.get_loaded_models()
            assert isinstance(list(blocking.loaded_models), list)
        return "done"

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(8))) == ["done"] * 8


def test_a_stream_is_a_plain_iterator(blocking: BlockingManager) -> None:
    model = blocking.get_model("a")
    assert "".join(chunk.text for chunk in model.stream_chat("hello")) == "one two three"
    with model.stream_chat("hello") as chunks:
        assert next(chunks).text == "one "
    assert blocking.statistics().waiting == 0
    assert blocking.stage.leases() == 0
    with pytest.raises(errors.BadInput):
        model.stream_chat([])


def test_a_stream_that_is_dropped_stops_the_model(blocking: BlockingManager) -> None:
    model = blocking.get_model("many")
    for _ in model.stream_chat("hello"):
        break
    gc.collect()
    _eventually(lambda: "many" in blocking.stage.backend.labels("call-cancelled"))
    _eventually(lambda: blocking._on_loop(blocking.stage.leases) == 0)


def test_calls_inside_a_blocking_lease_use_it(blocking: BlockingManager) -> None:
    model = blocking.get_model("a")
    with blocking.lease("a", timeout=5) as leased:
        assert model.chat("hello").text
        with blocking.lease("a", timeout=5) as inner:
            assert inner.chat("hello").text
        with pytest.raises(errors.WouldDeadlock):
            blocking.unload_model("a")
        with pytest.raises(errors.WouldDeadlock):
            blocking.get_model("b", timeout=5)
        assert leased.chat("hello").text
    blocking.unload_model("a")


def test_a_blocking_lease_remembers_the_callers_line(blocking: BlockingManager) -> None:
    with blocking.lease("a"):
        ((_, (code, _), _),) = blocking.leases.values()
        assert code.co_filename == __file__


def test_ctrl_c_in_a_thread_gives_its_call_up(blocking: BlockingManager) -> None:
    model = blocking.get_model("slow")
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            model.chat("hello")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    _eventually(lambda: blocking.stage.backend.labels("call-cancelled") == ["slow"])
    _eventually(lambda: blocking._on_loop(blocking.stage.leases) == 0)


def test_threads_that_wait_get_an_error_when_it_shuts_down(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"slow": {"hang": "call", "max_concurrency": 1}})
    manager = stage.manager.blocking()
    model = manager.get_model("slow")
    with ThreadPoolExecutor(6) as threads:
        calls = [threads.submit(model.chat, "hello") for _ in range(4)]
        _eventually(lambda: manager.statistics().waiting == 3)
        ends = [threads.submit(manager.shutdown, drain_s=0.05) for _ in range(2)]
        for end in ends:
            end.result(timeout=20)
        for call in calls:
            assert isinstance(call.exception(timeout=5), errors.ManagerClosed)
    manager.shutdown()
    with pytest.raises(errors.ManagerClosed):
        model.chat("hello")
    assert manager.get_loaded_models() == {}
    stage.check()


def test_a_blocking_manager_of_a_bound_manager_is_refused_and_leaves_no_thread(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        await stage.manager.get_model("a")
        with pytest.raises(errors.WrongLoop):
            stage.manager.blocking()
        await settle()

    play(Stage(tmp_path, A), main)
    assert not [thread for thread in threading.enumerate() if thread.name == "taskrouter-loop"]


def _eventually(true: Any) -> None:
    """Threads can't be put on a virtual clock: look until it is so, for at most five seconds."""
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)
