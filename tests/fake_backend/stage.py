"""A loop that waits for nothing, and what the tests of the fake backend do on it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from taskrouter.backends.base import LoadedModel
from taskrouter.backends.fake import FakeBackend, FakeModel
from taskrouter.types import GIB, DeviceId, ModelKey, ModelRequest
from taskrouter.verbs import ChatRequest

T = TypeVar("T")
GPU = DeviceId("cuda:0")
ASK = ChatRequest(({"role": "user", "content": "how are you"},))


class VirtualLoop(asyncio.SelectorEventLoop):
    """Waits for nothing: where it would sleep, its clock jumps. Waiting for ever is a failure, not a hang."""

    def __init__(self) -> None:
        self.now = 0.0
        loop = self

        class Selector(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
                ready = super().select(0)
                if not ready and timeout is None:
                    raise AssertionError("everybody waits, and nothing will ever happen")
                loop.now += 0.0 if ready else timeout or 0.0
                return ready

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


def now() -> float:
    return round(asyncio.get_running_loop().time(), 6)


async def until(moment: float) -> None:
    """Let everything happen that happens before this moment."""
    await asyncio.sleep(moment - asyncio.get_running_loop().time())


def request(label: str = "small", **engine_args: Any) -> ModelRequest:
    return ModelRequest(ModelKey(label + "#1"), label, "fake", "none", engine_args=engine_args)


async def load(backend: FakeBackend, wanted: ModelRequest) -> FakeModel:
    model: LoadedModel = await backend.load(wanted, (GPU,), {GPU: GIB})
    assert isinstance(model, FakeModel)
    return model


def check_free(backend: FakeBackend) -> None:
    assert backend.in_use == {}
    assert backend.overcommitted == []
