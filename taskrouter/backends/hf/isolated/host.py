"""What runs in a model's process: the in-process backend and one model of it, asked over a socket.

Each call is a task, as it is in the manager's own process; told to stop, it is cancelled, and says so once it has
ended. A reply goes out in the order in which it was made.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import traceback
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from taskrouter.backends.base import Asleep
from taskrouter.backends.hf.in_process import InProcess
from taskrouter.backends.hf.isolated.line import Line
from taskrouter.backends.hf.isolated.wire import Garbled, Message
from taskrouter.backends.hf.model import TransformersModel
from taskrouter.backends.hf.quiet import import_torchao
from taskrouter.backends.hf.threads import run_in_daemon
from taskrouter.errors import BadInput, CallFailed, ModelDied, TaskRouterError
from taskrouter.media.limits import MediaLimits
from taskrouter.types import CPU, Charges, DeviceId, Footprint, ModelRequest


@dataclass(frozen=True, slots=True)
class HostedModel:
    """What the manager's process must know of a model that was loaded here.

    ``reserved``: bytes that torch's allocator holds per device. The driver counts them too, and what it counts beside
    is the process's own.
    """

    measured: Footprint | None
    verbs: frozenset[str]
    info: Mapping[str, Any]
    reserved: Charges


class Host:
    """Serves one model until the other side hangs up. Methods without an underscore are what can be asked."""

    def __init__(self, end: socket.socket) -> None:
        self._gone = asyncio.Event()
        self._tasks: dict[int, asyncio.Task[Message]] = {}
        self._backend = InProcess()
        self._model: TransformersModel | None = None
        self._line = Line("the manager", end, asyncio.get_running_loop(), self._heard, self._gone.set)

    async def serve(self) -> None:
        """Answer until nobody is there to ask."""
        await self._gone.wait()

    async def prepare(self) -> None:
        """Import what loading needs."""
        await run_in_daemon("import", _import)

    async def load(
        self, request: ModelRequest, devices: tuple[DeviceId, ...], charges: Charges, limits: MediaLimits
    ) -> HostedModel:
        self._backend = InProcess(limits)
        loaded = await self._backend.load(request, devices, charges)
        assert isinstance(loaded, TransformersModel)
        self._model = loaded
        return HostedModel(loaded.measured, loaded.verbs, dict(loaded.info), _reserved(devices))

    async def call(self, verb: str, request: Any) -> Any:
        return await self._loaded().call(verb, request)

    async def demote(self, timeout_s: float) -> Asleep:
        return await self._backend.demote(self._loaded(), timeout_s=timeout_s)

    async def promote(self, charges: Charges) -> None:
        await self._backend.promote(self._loaded(), charges)

    def _loaded(self) -> TransformersModel:
        if self._model is None:
            raise ModelDied("nothing was loaded in this process")
        return self._model

    # --- messages -----

    def _heard(self, message: Message) -> None:
        number = message.number
        if message.what == "ping":
            self._line.send(Message("pong"))
        elif message.what == "stop":
            if number in self._tasks:
                self._tasks[number].cancel()
        else:
            task = self._tasks[number] = asyncio.get_running_loop().create_task(self._answer(message))
            task.add_done_callback(functools.partial(self._finished, number))

    def _finished(self, number: int, task: asyncio.Task[Message]) -> None:
        """Reply. Not in the task itself: one that is told to stop before it has begun never runs."""
        del self._tasks[number]
        self._line.send(Message("stopped", number) if task.cancelled() else task.result())

    async def _answer(self, message: Message) -> Message:
        number, about = message.number, message.body
        try:
            if isinstance(about, Garbled):
                raise BadInput(
                    f"the request can't be read in the model's process ({type(about.error).__name__}: {about.error}): "
                    "give it paths, bytes, images or arrays."
                )
            if message.what == "stream":
                await self._stream(number, *about)
                return Message("answer", number)
            return Message("answer", number, await getattr(self, message.what)(*about))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  (native code raises what it likes: it is raised where it was asked)
            return Message("failed", number, _told(error))

    async def _stream(self, number: int, verb: str, request: Any) -> None:
        stream = cast(AsyncGenerator[Any, None], self._loaded().stream(verb, request))
        async with contextlib.aclosing(stream) as pieces:
            async for piece in pieces:
                self._line.send(Message("piece", number, piece))


def _told(error: BaseException) -> tuple[TaskRouterError, str]:
    """An error as it can travel: itself without its cause, and the cause in words."""
    if not isinstance(error, TaskRouterError):
        return CallFailed(f"{type(error).__name__}: {error}"), "".join(traceback.format_exception(error))
    cause, error.__traceback__ = error.__cause__, None
    return error, "".join(traceback.format_exception(cause)) if cause is not None else ""


def _reserved(devices: tuple[DeviceId, ...]) -> Charges:
    import torch

    return {device: int(torch.cuda.memory_reserved(torch.device(device))) for device in devices if device != CPU}


def _import() -> None:
    import torch  # noqa: F401  (they take seconds, and RAM that is no model's)

    import_torchao()
    import transformers.modeling_utils  # noqa: F401


def leave() -> None:
    """End at once: threads that are inside torch would take an orderly end down with an abort."""
    os._exit(0)
