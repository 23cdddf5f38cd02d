"""The stub's sleep, as vLLM and as SGLang have it, with what is dangerous about either.

``vllm``: ``POST /sleep`` (mode ``abort``, the default, would end what is under way; ``wait`` waits for it), ``POST
/wake_up``, ``GET /is_sleeping``. Health is well while it sleeps; calls wait until it wakes. From level 2 it wakes in
three steps (``wake_up?tags=weights``, ``collective_rpc`` of ``reload_weights``, ``wake_up?tags=kv_cache``); without the
second it answers nonsense.

``sglang``: ``POST /release_memory_occupation`` and ``/resume_memory_occupation``, ``GET /v1/loads``. It dies of being
released at work, of being resumed twice, and of anything it would have to compute while it sleeps: a call, or a health
check. A call whose caller has gone away is noticed ``linger`` seconds later.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, NoReturn

from tests.engines.stub_family import say
from tests.engines.stub_http import Connection

if TYPE_CHECKING:
    from tests.engines.stub import Stub

PATHS = {
    "vllm": {"/sleep": "sleep", "/wake_up": "wake", "/collective_rpc": "reload"},
    "sglang": {"/release_memory_occupation": "sleep", "/resume_memory_occupation": "wake"},
}


class Sleep:
    """Whether it sleeps, and what it then holds in RAM: ``weights`` bytes, touched."""

    def __init__(self, stub: Stub, manner: str, weights: int, linger: float) -> None:
        self.stub = stub
        self.manner = manner
        self.weights = weights
        self.linger = linger
        self.lingering = 0
        self.awake = asyncio.Event()
        self.awake.set()
        self.held = b""
        self.lost = False
        """Its weights were dropped, and not read again."""
        self.told: list[str] = []

    @property
    def asleep(self) -> bool:
        return not self.awake.is_set()

    async def answer(self, http: Connection, method: str, path: str, raw: bytes) -> bool:
        """Answer what is about sleep; whether it was."""
        what = PATHS.get(self.manner, {}).get(path)
        if method == "POST" and what is not None:
            await self.obey(http, what, raw)
        elif (self.manner, method, path) == ("vllm", "GET", "/is_sleeping"):
            http.answer(200, {"is_sleeping": self.asleep})
        elif (self.manner, method, path) == ("sglang", "GET", "/v1/loads"):
            at_work = self.stub.running + self.lingering
            http.answer(200, {"loads": [{"num_running_reqs": at_work, "num_waiting_reqs": 0}]})
        else:
            return False
        return True

    async def obey(self, http: Connection, what: str, raw: bytes) -> None:
        self.told.append(what)
        if (fault := self.stub.faults.take(f"{what}_exit")) is not None:
            self.die(fault.get("text", "told to"))
        if self.stub.faults.take(f"{what}_hang"):
            await asyncio.Future()
        if (fault := self.stub.faults.take(f"{what}_slow")) is not None:
            await asyncio.sleep(fault["seconds"])
        if (fault := self.stub.faults.take(f"{what}_status")) is not None:
            http.refuse(fault["status"], fault.get("message", "told to"))
            return
        if not self.stub.faults.take(f"{what}_lies"):
            if what == "reload":
                self.lost = self.lost and json.loads(raw)["method"] != "reload_weights"
            else:
                await (self.fall_asleep(http) if what == "sleep" else self.wake_up(http))
        http.answer(200, {"status": what})

    async def fall_asleep(self, http: Connection) -> None:
        if self.manner == "sglang" and self.stub.running + self.lingering:
            self.die("AssertionError: release_memory_occupation should be called only when server is idle.")
        if self.manner == "vllm" and "mode=wait" not in http.query:
            self.stub.abort()
        if self.stub.calls:
            await asyncio.wait(self.stub.calls)
        self.lost = "level=2" in http.query
        self.held = b"" if self.lost else bytes(range(256)) * (self.weights // 256)
        self.awake.clear()

    async def wake_up(self, http: Connection) -> None:
        if "tags=weights" in http.query:
            return  # room for them is made; it sleeps on
        if self.manner == "sglang" and not self.asleep:
            self.die("KeyError: 'kv_cache'")
        self.held = b""
        self.awake.set()

    async def before_computing(self) -> None:
        """What a call or SGLang's health check comes to while it sleeps."""
        if self.asleep and self.manner == "sglang":
            self.die("CUDA error: an illegal memory access was encountered")
        await self.awake.wait()

    def abandoned(self) -> None:
        if self.linger:
            self.lingering += 1
            asyncio.get_running_loop().call_later(self.linger, self.noticed)

    def noticed(self) -> None:
        self.lingering -= 1

    def die(self, text: str) -> NoReturn:
        say(text)
        os._exit(1)
