"""What vLLM and SGLang have in common: a Python package with an interpreter of its own that serves hub checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from taskrouter.backends.base import Preflight
from taskrouter.backends.engines.adapter import GENERATIVE, POOLING, KvCache
from taskrouter.backends.engines.api import Api
from taskrouter.backends.engines.files import find
from taskrouter.backends.engines.interpreter import check_arguments, installed, python_of
from taskrouter.backends.engines.launch import Checkpoint, Launch, Place, Start
from taskrouter.backends.engines.openai import COMPLETIONS, EMBEDDINGS
from taskrouter.backends.engines.supervisor import Supervisor
from taskrouter.backends.sleep import why_awake
from taskrouter.memory.devices import DeviceInfo, discover
from taskrouter.types import CPU, Footprint, ModelRequest, Traits

STRETCHES = frozenset(
    {"max_model_len", "context_length", "hf_overrides", "hf_config_path", "rope_scaling", "rope_parameters"}
    | {"json_model_override_args", "model_loader_extra_config", "config"}
)
"""Arguments by which a model may be given another context than its configuration says."""


class HubAdapter:
    """Preflight and start of such an engine; what it is told and what it says are its own module's."""

    framework: str
    distributions: tuple[str, ...]
    """Names under which the engine's package is distributed."""
    flags_from: int
    """Where in its command line the words begin that its parser reads."""
    stop_grace_s = 3.0
    fills_grant = True
    inference: frozenset[str]
    launcher: Callable[..., Launch]
    needer: Callable[..., int]

    def traits(self, request: ModelRequest) -> Traits:
        # Engines profile the device while they start: nothing else may start or be freed there meanwhile.
        may = self.why_awake(request) is None
        keeps = request.sleep != "discard"
        return Traits(exclusive_on_device=True, cancellable=True, can_sleep=may, keeps_weights=keeps, start_s=30.0)

    def why_awake(self, request: ModelRequest) -> str | None:
        return why_awake(request)

    def ready(self, request: ModelRequest) -> str:
        return "/health"

    def health(self, request: ModelRequest) -> str:
        return "/health"

    def pooling(self, request: ModelRequest) -> bool:
        """Whether the option starts the engine for vectors instead of text."""
        raise NotImplementedError

    def verbs(self, request: ModelRequest) -> frozenset[str]:
        return POOLING if self.pooling(request) else GENERATIVE

    def lacks(self, request: ModelRequest) -> Mapping[str, str]:
        """What it can't be asked as the option starts it, and why."""
        return {}

    async def preflight(self, request: ModelRequest, supervisor: Supervisor) -> Preflight:
        """The interpreter has the engine; the files are whole; the engine's own parser takes the arguments."""
        engine = await installed(request, self.distributions, supervisor)
        checkpoint = await self.examine(request)
        devices = await asyncio.to_thread(discover)
        start = Start(_nominal(request, devices), 1, "model", "key")
        launch = self._launch(request, checkpoint, start, engine.python)
        await check_arguments(request, engine, launch, launch.argv[self.flags_from :], supervisor)
        need = type(self).needer(request, checkpoint, on_gpu=start.on_gpu, max_concurrency=request.max_concurrency)
        lacks = {**checkpoint.lacks, **self.lacks(request)}
        if checkpoint.showing is not None:
            # It is shown pictures of a video: whether it can be asked about one is whether it can about those.
            lacks.pop("video", "")
            if "image" in lacks:
                lacks["video"] = lacks["image"]
        return Preflight(Footprint(need), self.verbs(request), lacks, _context(request, checkpoint))

    async def examine(self, request: ModelRequest) -> Checkpoint:
        return await asyncio.to_thread(find, request)

    def launch(self, request: ModelRequest, checkpoint: Checkpoint, start: Start) -> Launch:
        return self._launch(request, checkpoint, start, python_of(request))

    def _launch(self, request: ModelRequest, checkpoint: Checkpoint, start: Start, python: str) -> Launch:
        return type(self).launcher(request, checkpoint, start, python=python, max_concurrency=request.max_concurrency)

    def model_name(self, request: ModelRequest, start: Start) -> str:
        return start.name

    def warm_up(self, request: ModelRequest, name: str) -> tuple[str, Mapping[str, Any]]:
        if self.pooling(request):
            return EMBEDDINGS, {"model": name, "input": ["hi"]}
        return COMPLETIONS, {"model": name, "prompt": "hi", "max_tokens": 1, "temperature": 0}

    async def kv_cache(self, api: Api, checkpoint: Checkpoint, lines: list[str]) -> KvCache | None:
        raise NotImplementedError

    async def progress(self, api: Api) -> object:
        raise NotImplementedError

    def controls(self, request: ModelRequest) -> frozenset[str]:
        raise NotImplementedError

    async def sleep(self, api: Api, request: ModelRequest) -> None:
        raise NotImplementedError

    async def wake(self, api: Api, request: ModelRequest) -> None:
        raise NotImplementedError


def _context(request: ModelRequest, checkpoint: Checkpoint) -> int | None:
    """The most tokens of a request; ``None`` where the engine's own arguments may have changed that."""
    if isinstance(request.max_context, int):
        return request.max_context
    said = {name.replace("-", "_").lstrip("_") for name in request.engine_args}
    return None if said & STRETCHES else checkpoint.ceiling


def _nominal(request: ModelRequest, devices: tuple[DeviceInfo, ...]) -> tuple[Place, ...]:
    """A placement to check a command line with, before there is one: as many whole devices as the option spans."""
    gpus = [info for info in devices if info.id != CPU]
    named = request.devices if not isinstance(request.devices, int) else None
    on_cpu = named == ("cpu",) or (named is None and not gpus)
    count = len(named) if named is not None else 1 if on_cpu else int(request.devices)  # type: ignore[arg-type]
    info = devices[-1] if on_cpu else (gpus or devices)[0]
    uuid = "" if on_cpu else info.uuid or "GPU-0"
    return tuple(Place(info.id, uuid, info.total, info.total, info.total) for _ in range(count))
