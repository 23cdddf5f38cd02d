"""A manager on a machine made of numbers, with the scripted backend, in virtual time: no test here sleeps."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from taskrouter import ModelManager
from taskrouter.backends.fake import FakeBackend
from taskrouter.backends.registry import Registry
from taskrouter.config.schema import OptionFields
from taskrouter.manager import StillMachine
from taskrouter.types import GIB, DeviceId, DeviceReading, ModelKey
from tests.fake_backend.stage import VirtualLoop

T = TypeVar("T")
GPU = DeviceId("cuda:0")
ONE = {"cuda:0": 10 * GIB}
TASK_KEYS = frozenset({"kind", "max_wait_s", "priority"})


class Loop(VirtualLoop):
    """What goes to a thread is done in place: a clock that jumps must not run ahead of threads."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def option(name: str, /, vram_gb: float = 4, **keys: Any) -> dict[str, Any]:
    """An option under the fake framework; what is no key of an option scripts the fake."""
    known = {key: value for key, value in keys.items() if key in OptionFields.model_fields}
    script = {"bytes": int(vram_gb * GIB), **{key: value for key, value in keys.items() if key not in known}}
    return {"model_id": name, "framework": "fake", "vram_gb": vram_gb, "engine_args": script, **known}


def task(name: str, /, **keys: Any) -> dict[str, Any]:
    """A task with one option, named as the task."""
    outer = {key: keys.pop(key) for key in TASK_KEYS & keys.keys()}
    return {"selected": name, "options": {name: option(name, **keys)}, **outer}


class Stage:
    """A manager and everything around it. ``tasks`` maps a name to the keys of its only option, or to a whole task."""

    def __init__(
        self,
        folder: Path,
        tasks: Mapping[str, Any],
        *,
        machine: Mapping[str, int] | None = None,
        environ: Mapping[str, str] | None = None,
        **sections: Any,
    ) -> None:
        whole = {name: dict(t) if "options" in t else task(name, **t) for name, t in tasks.items()}
        sections.setdefault("inference", {}).setdefault("offload_threshold", 1.0)
        self.file = folder / "models.yaml"
        self.file.write_text(json.dumps({"tasks": whole, **sections}), encoding="utf-8")
        sizes = dict(ONE if machine is None else machine)
        self.backend = FakeBackend(capacity=sizes)
        self.machine = StillMachine(sizes)
        self.registry = Registry()
        self.registry.register("fake", self.backend)
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")
        self.manager = ModelManager(
            self.file, registry=self.registry, machine=self.machine, tracer_provider=provider, environ=environ
        )

    def others_use(self, gib: float, device: DeviceId = GPU) -> None:
        """Other processes take so much of the device."""
        self.machine.readings[device] = DeviceReading(foreign=int(gib * GIB))

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def leases(self) -> int:
        """Leases held on any model."""
        return sum(status.leases for status in self.manager.statistics().models.values())

    def state(self, name: str) -> str:
        """The state of the model of this label."""
        models = self.manager.statistics().models.values()
        return next(status.state.value for status in models if status.label == name)

    def tasks(self) -> set[asyncio.Task[Any]]:
        """The tasks a manager at rest has: one that observes, and one for each resident model that watches it."""
        performer = self.manager.performer
        if performer is None:
            return set()
        return {t for t in performer._tasks if t.get_name().split()[0] in ("taskrouter-observe", "watch")}

    def cancellable(self, key: ModelKey) -> bool:
        """Whether a load of this model may be cancelled."""
        request = self.manager._requests[key]
        return self.backend.traits(request).cancellable

    def check(self) -> None:
        """Nothing is left, and no promise was broken on the way."""
        self.manager._core.check()
        seen = self.manager.statistics()
        assert all(not status.leases and not status.claims for status in seen.models.values()), seen.models
        assert seen.waiting == 0
        assert not self.manager.leases
        if self.manager.performer is not None:
            assert not self.manager.performer._waiters
            assert not self.manager.performer._tasks
            assert not self.manager.performer._loads
        gc.collect()
        assert self.backend.in_use == {}
        assert self.backend.overcommitted == []
        assert self.backend.labels("unload-busy") == []
        assert self.backend.labels("sleep-busy") == []
        assert self.backend.labels("call-asleep") == []


def play(stage: Stage, main: Callable[[Stage], Coroutine[Any, Any, T]]) -> T:
    """Run ``main`` in virtual time, shut the manager down, and see that nothing is left."""

    async def whole() -> T:
        try:
            return await main(stage)
        finally:
            await stage.manager.shutdown()
            await settle()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

    with asyncio.Runner(loop_factory=Loop) as runner:
        answer = runner.run(whole())
    stage.check()
    return answer


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)


def now() -> float:
    return round(asyncio.get_running_loop().time(), 6)


async def until(moment: float) -> None:
    """Let everything happen that happens before this moment."""
    await asyncio.sleep(moment - asyncio.get_running_loop().time())


def spawn(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Another caller: not one that holds what this one holds."""
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())


THREE = {"a": {"vram_gb": 4}, "b": {"vram_gb": 4}, "c": {"vram_gb": 4}}
CLAUDE = {
    "selected": "claude",
    "options": {
        "claude": {
            "model_id": "claude-sonnet-4-5",
            "framework": "external_api",
            "provider": "anthropic",
            "api_endpoint": "https://api.anthropic.com",
            "requires_api_key": True,
        },
        "local": option("local"),
    },
}
