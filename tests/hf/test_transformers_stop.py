"""A load that is called off ends between two weights, frees what it read, and leaves Transformers as it was."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.hf.loading import LOAD_LOCK
from taskrouter.backends.hf.stopping import Stop, stoppable
from taskrouter.backends.hf.threads import run_stoppable
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import LoadFailed
from taskrouter.types import CPU

from .checkpoints import CHARGES, request, say

pytestmark = pytest.mark.anyio


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Do something at the n-th place where loading looks whether it goes on, before it looks."""

    def arrange(place: int, then: Callable[[], object]) -> None:
        seen = 0
        check = Stop.check

        def counted(stop: Stop) -> None:
            nonlocal seen
            seen += 1
            if seen == place:
                then()
                assert stop.wait(10)
            check(stop)

        monkeypatch.setattr(Stop, "check", counted)

    return arrange


def tensors() -> int:
    import torch

    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


@pytest.mark.slow
async def test_wherever_it_is_called_off_nothing_is_held_and_the_next_load_is_as_ever(
    backend: TransformersBackend,
    chat_folder: Path,
    stop_at: Callable[[int, Callable[[], object]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from transformers.utils import logging as hf_logging

    async def answer() -> str:
        model = await backend.load(request(chat_folder), (CPU,), CHARGES)
        text = (await model.call("chat", say("w1", max_tokens=5))).text
        assert await backend.unload(model, timeout_s=5) == {}
        return str(text)

    expected, before = await answer(), tensors()
    loop = asyncio.get_running_loop()
    places = 0
    for place in range(1, 100):
        load = loop.create_task(backend.load(request(chat_folder), (CPU,), CHARGES))
        stop_at(place, functools.partial(loop.call_soon_threadsafe, load.cancel))
        await asyncio.wait({load})
        monkeypatch.undo()
        if not load.cancelled():
            assert await backend.unload(load.result(), timeout_s=5) == {}
            break
        places += 1
        del load
        assert not LOAD_LOCK.locked()
        assert tensors() == before
        assert torch.get_default_dtype() is torch.float32
        assert hf_logging.set_tqdm_hook(None) is None
        assert await answer() == expected
    assert places > 20  # 20 tensors in the file, and the places around them


async def test_who_waits_for_another_load_to_end_is_called_off_at_once(
    backend: TransformersBackend, chat_folder: Path
) -> None:
    with LOAD_LOCK:
        load = asyncio.create_task(backend.load(request(chat_folder), (CPU,), CHARGES))
        await asyncio.sleep(0.2)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load


def test_bars_of_other_threads_and_hooks_of_others_are_left_alone() -> None:
    from transformers.utils import logging as hf_logging

    stop = Stop("a")
    stop.set()
    asked: list[str] = []

    def theirs(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        asked.append(kwargs["desc"])
        return factory(*args, **kwargs, disable=True)

    def elsewhere() -> None:
        asked.extend(hf_logging.tqdm("xyz", desc="other"))

    before = hf_logging.set_tqdm_hook(theirs)
    try:
        with stoppable(stop):
            other = threading.Thread(target=elsewhere)
            other.start()
            other.join()
            with (
                pytest.raises(LoadFailed, match="a: its load was called off"),
                hf_logging.tqdm("xyz", desc="own") as bar,
            ):
                bar.set_postfix(at=0)
                asked.extend(bar)
        assert hf_logging.set_tqdm_hook(theirs) is theirs
    finally:
        hf_logging.set_tqdm_hook(before)
    assert asked == ["other", "x", "y", "z", "own"]


def test_without_such_a_hook_a_load_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging as hf_logging

    monkeypatch.delattr(hf_logging, "set_tqdm_hook")
    stop = Stop("a")
    stop.set()
    with stoppable(stop):
        assert list(hf_logging.tqdm("xyz", disable=True)) == ["x", "y", "z"]


async def test_stopped_work_is_waited_for_and_its_late_result_handed_on_before_the_cancellation_is_raised() -> None:
    stop = threading.Event()
    got: list[int] = []

    def work() -> int:
        assert stop.wait(10)
        return 7

    running = asyncio.create_task(run_stoppable("w", work, stop, abandoned=got.append))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert got == [7]


async def test_work_that_does_not_stop_is_given_up_at_the_second_cancellation() -> None:
    go, came = threading.Event(), threading.Event()

    def stuck() -> int:
        go.wait()
        return 7

    running = asyncio.create_task(run_stoppable("w", stuck, threading.Event(), abandoned=lambda _: came.set()))
    await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=0.2)
    assert not done
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go.set()
    assert await asyncio.to_thread(came.wait, 5)
