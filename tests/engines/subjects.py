"""The backends that the conformance suite holds to one contract, each with what is particular to it.

A subject says how its option is written, what it is asked and must answer, and how one makes its model die or hang.
Everything else is the same for all.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from taskrouter import ModelManager
from taskrouter.backends.engines import guardian, sglang, vllm
from taskrouter.backends.fake import FakeBackend
from taskrouter.backends.registry import Registry
from taskrouter.errors import CallFailed, ModelDied, TaskRouterError
from taskrouter.manager import Lease, StillMachine
from taskrouter.memory.ram import HostRam
from taskrouter.samples.manifest import demo_inputs, sample_dir
from taskrouter.types import GIB

STUB = Path(__file__).with_name("stub.py")
CLAIMS = [question for question in demo_inputs() if question.verb == "chat"]
SAMPLE = str(sample_dir("claims"))

Messages = list[dict[str, str]]


class Subject:
    """One backend. ``dies_with`` is the error its callers get when the model dies; ``start_s`` bounds one load."""

    name: str
    start_s = 20.0
    vram_gb = 3.0
    hang_timeout_s = 2.0
    dies_with: type[TaskRouterError] = ModelDied
    checks_context = True
    sleeps: tuple[str, ...] = ("auto",)
    """What an option may say of its sleep that makes a difference."""
    comes_back = True
    """Whether a model that died is loaded anew (in this process it can't die: only its call fails)."""

    def __init__(self, folder: Path, python: Callable[[str], str]) -> None:
        self.folder = folder
        self.python = python
        self.registry = Registry()

    def option(self) -> dict[str, Any]:
        raise NotImplementedError

    def engines(self) -> dict[str, Any]:
        return {}

    def manager(self) -> ModelManager:
        option = {"vram_gb": self.vram_gb, "max_concurrency": 4, **self.option()}
        tasks = {
            "ask": {"kind": "chat", "selected": "subject", "options": {"subject": option}, "max_wait_s": self.start_s},
            # Something else in the same room, that a sick neighbour must cost nothing.
            "other": {"kind": "chat", "selected": "other", "options": {"other": _other()}},
        }
        file = self.folder / "models.yaml"
        sections = {"engines": self.engines(), "inference": {"warmup_on_startup": False, "offload_threshold": 1.0}}
        file.write_text(json.dumps({"tasks": tasks, **sections}), encoding="utf-8")
        return ModelManager(file, registry=self.registry, machine=StillMachine({"cpu": 6 * GIB}))

    def questions(self) -> list[tuple[Messages, str]]:
        """What it is asked, and the answer it must give."""
        return [(question.messages or [], question.expected) for question in CLAIMS]

    def long(self) -> dict[str, Any]:
        """Arguments that make an answer take a while, to be cancelled in."""
        return {}

    def check_cache(self, info: Mapping[str, Any], measured: int) -> None:
        """What the model says of its KV cache, where it has one of its own."""

    async def idle(self, lease: Lease) -> bool:
        """Whether the model works on nothing, seen from outside."""
        return True

    has_process = False
    has_api = False
    """Whether others could reach it over HTTP."""

    async def die(self, lease: Lease) -> None:
        raise NotImplementedError

    def doomed(self, lease: Lease) -> Callable[[], None]:
        """What lets the model die later, without a lease."""
        raise NotImplementedError

    def hang(self, lease: Lease) -> AbstractAsyncContextManager[None]:
        """Within, the model answers nothing."""
        raise NotImplementedError

    def refusing_to_sleep(self, lease: Lease) -> AbstractAsyncContextManager[None]:
        """Within, the model can't be put to sleep."""
        raise NotImplementedError

    def memory(self, lease: Lease) -> int:
        """Bytes it takes wherever it is."""
        return psutil.Process().memory_info().rss

    def left(self) -> list[str]:
        """What is still there when everything should be gone."""
        return []


def _other() -> dict[str, Any]:
    return {"model_id": "other", "framework": "fake", "vram_gb": 0.1, "engine_args": {"bytes": "1MiB"}}


class Fake(Subject):
    name = "fake"
    script: Mapping[str, Any] = {"bytes": "1GiB", "call_s": 0.05, "can_sleep": True, "sleep_ram": "1GiB"}
    checks_context = False

    def __init__(self, folder: Path, python: Callable[[str], str]) -> None:
        super().__init__(folder, python)
        self.backend = FakeBackend()
        self.registry.register("fake", self.backend)

    def option(self) -> dict[str, Any]:
        return {"model_id": "m", "framework": "fake", "engine_args": {**self.script}}

    def questions(self) -> list[tuple[Messages, str]]:
        return [([{"role": "user", "content": text}], f"subject: {text}") for text in ("one", "two three", "four")]

    async def idle(self, lease: Lease) -> bool:
        return not any(model.active for model in self.backend._models if model.label == "subject")

    async def die(self, lease: Lease) -> None:
        self.backend.kill("subject")

    def doomed(self, lease: Lease) -> Callable[[], None]:
        return lambda: self.backend.kill("subject")

    @asynccontextmanager
    async def hang(self, lease: Lease) -> AsyncIterator[None]:
        model = next(model for model in self.backend._models if model.label == "subject" and not model.unloaded)
        script, model.script = model.script, _hanging(model.script)
        try:
            yield
        finally:
            model.script = script
            self.backend.resume("subject")

    @asynccontextmanager
    async def refusing_to_sleep(self, lease: Lease) -> AsyncIterator[None]:
        model = next(model for model in self.backend._models if model.label == "subject" and not model.unloaded)
        script, model.script = model.script, dataclasses.replace(model.script, fail="sleep")
        yield
        model.script = script

    def memory(self, lease: Lease) -> int:
        return sum(self.backend.in_use.values())

    def left(self) -> list[str]:
        return [repr(hold) for hold in self.backend._holds if hold.label == "subject"]


def _hanging(script: Any) -> Any:
    return dataclasses.replace(script, hang="call")


class Transformers(Subject):
    name = "transformers"
    start_s = 60.0
    dies_with = CallFailed
    comes_back = False

    def option(self) -> dict[str, Any]:
        return {"model_id": SAMPLE, "framework": "transformers", "max_concurrency": 1}

    async def die(self, lease: Lease) -> None:
        """The nearest there is: whatever computes the next answer fails."""
        module = lease.raw
        real = module.generate

        def fail(*_: Any, **__: Any) -> None:
            module.generate = real
            raise RuntimeError("a kernel failed")

        module.generate = fail

    @asynccontextmanager
    async def hang(self, lease: Lease) -> AsyncIterator[None]:
        module = lease.raw
        real, go_on = module.generate, threading.Event()

        def wait(*args: Any, **more: Any) -> Any:
            go_on.wait(60)
            return real(*args, **more)

        module.generate = wait
        # A raw reference kept beyond the lease would keep the memory too.
        there = weakref.ref(module)
        del module
        try:
            yield
        finally:
            go_on.set()
            if (module := there()) is not None:
                module.generate = real

    @asynccontextmanager
    async def refusing_to_sleep(self, lease: Lease) -> AsyncIterator[None]:
        """No RAM is free, as far as anybody can see."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(HostRam, "available", lambda _: 0)
            yield


class Engine(Subject):
    """A child process, killed and stopped by its pids."""

    framework: str
    venv: str | None = None
    has_process = True
    has_api = True

    def __init__(self, folder: Path, python: Callable[[str], str]) -> None:
        super().__init__(folder, python)
        self.interpreter = python(self.venv) if self.venv else sys.executable
        self.temporary = set(Path(tempfile.gettempdir()).glob("taskrouter-*"))
        self.seen: set[int] = set()
        self.segments: set[int] = set()

    def engines(self) -> dict[str, Any]:
        python = {"python": self.interpreter} if self.venv else {}
        return {self.framework: {"hang_timeout_s": self.hang_timeout_s, "start_timeout_s": self.start_s, **python}}

    def pids(self, lease: Lease) -> list[int]:
        pid = int(lease.info["pid"])
        pids = [pid, *guardian.descendants(pid)]
        self.seen.update(pids)
        for each in pids:
            self.segments |= guardian.segments(each)
        return pids

    async def die(self, lease: Lease) -> None:
        self.doomed(lease)()

    def doomed(self, lease: Lease) -> Callable[[], None]:
        pid = self.pids(lease)[0]
        return lambda: os.kill(pid, signal.SIGKILL)

    @asynccontextmanager
    async def hang(self, lease: Lease) -> AsyncIterator[None]:
        for pid in self.pids(lease):
            os.kill(pid, signal.SIGSTOP)
        yield  # nobody lets it go on: it is killed as it is

    def memory(self, lease: Lease) -> int:
        return sum(_own_bytes(pid) for pid in self.pids(lease))

    def left(self) -> list[str]:
        """Processes, temporary folders, shared memory. Zombies of ours would be left too: the guardian reaps them."""
        pids = [pid for pid in self.seen if not guardian.is_zombie(pid)]
        found = [f"process {pid}" for pid in pids]
        found += [str(path) for path in set(Path(tempfile.gettempdir()).glob("taskrouter-*")) - self.temporary]
        found += [entry.path for entry in os.scandir("/dev/shm") if entry.inode() in self.segments]
        return found


def _own_bytes(pid: int) -> int:
    """A process's share of memory without the files it maps.

    Its share of a library halves while the engine of another test maps it too: 100 MB and more of vLLM's.
    """
    shares = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(shares[name].split()[0]) * 1024 for name in ("Pss_Anon", "Pss_Shmem"))


class Isolated(Engine):
    """Transformers in a child: what it answers is the in-process model's, how it dies is an engine's."""

    name = "isolated"
    framework = "transformers"
    has_api = False
    start_s = 60.0

    def option(self) -> dict[str, Any]:
        return {"model_id": SAMPLE, "framework": "transformers", "isolation": "process", "max_concurrency": 1}

    def refusing_to_sleep(self, lease: Lease) -> AbstractAsyncContextManager[None]:
        pytest.skip("why it refuses is decided in its process, as it is in-process")


class Command(Engine):
    """The stub: it speaks the API, is a tree of three processes, and answers its question back."""

    name = framework = "command"
    checks_context = False

    def option(self) -> dict[str, Any]:
        words = ["--port", "{port}", "--api-key", "{api_key}", "--ready-after", "0.3", "--token-s", "0.02"]
        words += ["--sleeps", "vllm", "--weights", str(32 << 20)]
        calls = {"sleep": "POST /sleep?level=1&mode=wait", "wake": "POST /wake_up"}
        command = [sys.executable, str(STUB), *words]
        return {"model_id": "stub", "framework": "command", "command": command, "sleep_calls": calls}

    @asynccontextmanager
    async def refusing_to_sleep(self, lease: Lease) -> AsyncIterator[None]:
        await lease.request("/stub/fault", {"name": "sleep_status", "status": 500, "times": 1})
        yield

    def questions(self) -> list[tuple[Messages, str]]:
        return [([{"role": "user", "content": text}], f"stub heard: {text}") for text in ("one", "two three", "four")]

    async def idle(self, lease: Lease) -> bool:
        return not (await lease.request("/stub/state"))["running"]


class Packaged(Engine):
    """An engine that builds a KV cache from its grant, and says how large it is. ``sleep``: where its path stands.

    On the CPU their own servers take the calls, stop to serve, and free nothing.
    """

    sleep: tuple[ModuleType, str]

    @asynccontextmanager
    async def refusing_to_sleep(self, lease: Lease) -> AsyncIterator[None]:
        module, path = self.sleep
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "SLEEP", path)
            yield

    def check_cache(self, info: Mapping[str, Any], measured: int) -> None:
        tokens, size = info["kv_cache_tokens"], info["kv_cache_bytes"]
        # 3 layers × 3 heads × 32 values, keys and values, in float32; whole blocks at most beside it.
        per_token = 3 * 3 * 32 * 2 * 4
        assert tokens > 10_000
        assert abs(size - tokens * per_token) <= 0.02 * size
        assert measured > size + GIB // 2


class Vllm(Packaged):
    name = framework = venv = "vllm"
    sleep = (vllm, "/sleep?level=7")
    sleeps = ("auto", "discard")
    start_s = 240.0
    hang_timeout_s = 6.0

    def option(self) -> dict[str, Any]:
        return {
            "model_id": SAMPLE,
            "framework": "vllm",
            "max_context": 256,
            "dtype": "float32",
            "engine_args": {"enforce-eager": True},
            # On GPUs its development paths are opened for it to be put to sleep by.
            "env": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_SERVER_DEV_MODE": "1"},
        }

    def long(self) -> dict[str, Any]:
        return {"max_tokens": 200, "extra": {"ignore_eos": True}}

    async def idle(self, lease: Lease) -> bool:
        # Beside the lease's own turn: the metrics are no JSON.
        status, text = await lease.resident.model.api.get("/metrics", 5)  # type: ignore[union-attr]
        assert status == 200
        running = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
        return bool(running) and all(line.endswith(" 0.0") for line in running)


class Sglang(Packaged):
    name = framework = venv = "sglang"
    sleep = (sglang, "/no_such_path")
    start_s = 240.0
    hang_timeout_s = 8.0

    def option(self) -> dict[str, Any]:
        return {"model_id": SAMPLE, "framework": "sglang", "max_context": 256, "dtype": "float32"}

    def long(self) -> dict[str, Any]:
        return {"max_tokens": 200, "extra": {"ignore_eos": True}}

    async def idle(self, lease: Lease) -> bool:
        said = await lease.request("/v1/loads")
        return all(not each["num_running_reqs"] and not each["num_waiting_reqs"] for each in said["loads"])


SUBJECTS: dict[str, type[Subject]] = {each.name: each for each in (Fake, Transformers, Isolated, Command, Vllm, Sglang)}


async def until(condition: Callable[[], Any], bound_s: float = 20.0) -> None:
    """Wait for something that is seen, not announced."""
    end = time.monotonic() + bound_s
    while not await _value(condition()):
        assert time.monotonic() < end, "it took too long"
        await asyncio.sleep(0.02)


async def _value(answer: Any) -> Any:
    return await answer if asyncio.iscoroutine(answer) else answer
