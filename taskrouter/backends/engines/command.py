"""``framework: command``: any program that serves the OpenAI API on a port it is told.

In each word of ``command``, ``{port}``, ``{model_id}``, ``{device}`` (``cpu``, or the GPUs' UUIDs, comma-separated) and
``{api_key}`` (random for each start) are filled in. It must listen on 127.0.0.1 itself and run in the foreground: what
a daemon starts for it is nobody's child here, so it could be neither measured nor stopped.

``sleep_calls`` tell it to sleep and to wake: sent as they stand, a POST with an empty JSON object as its body. What it
has moved to RAM when it answers is taken at its word, and measured.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskrouter.backends.base import Preflight
from taskrouter.backends.engines.adapter import SLEEP_BOUND_S, KvCache
from taskrouter.backends.engines.api import Api
from taskrouter.backends.engines.backend import EngineBackend
from taskrouter.backends.engines.launch import Checkpoint, Launch, Start
from taskrouter.backends.engines.openai import CHAT
from taskrouter.backends.engines.supervisor import Supervisor
from taskrouter.backends.showing import OF_VIDEOS, showing_of, spelled
from taskrouter.backends.sleep import why_awake
from taskrouter.errors import PreflightFailed, SleepFailed
from taskrouter.memory.estimate import working_bytes
from taskrouter.types import CPU, Footprint, ModelRequest, Traits

INFERENCE = frozenset(
    {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/moderations", "/v1/classify", "/v1/score"}
    | {"/v1/rerank", "/v1/reranking", "/v1/tokenize", "/v1/detokenize", "/tokenize", "/detokenize", "/classify"}
    | {"/score", "/rerank", "/reranking", "/pooling", "/extras/tokenize", "/extras/detokenize"}
)
"""What servers of that API compute and forget. Not all below /v1: some load and unload models there, by a POST to
``/v1/models`` or ``/v1/model/load``."""
FIELDS = ("port", "model_id", "device", "api_key")
_FIELD = re.compile(r"\{([a-z_]+)\}")
_ANYWHERE = Traits(exclusive_on_device=True, cancellable=True, start_s=10.0)
_ON_CPU = Traits(cancellable=True, start_s=10.0)


class CommandAdapter:
    """Knows nothing of the program but its command line."""

    framework = "command"
    stop_grace_s = 3.0
    fills_grant = False
    inference = INFERENCE

    def traits(self, request: ModelRequest) -> Traits:
        # Its program may profile a GPU, as vLLM and SGLang do: nothing else may start or be freed there meanwhile.
        traits = _ON_CPU if request.devices == (CPU,) else _ANYWHERE
        return replace(traits, can_sleep=self.why_awake(request) is None)

    def why_awake(self, request: ModelRequest) -> str | None:
        return why_awake(request) or (None if request.sleep_calls else "its option has no sleep_calls")

    def controls(self, request: ModelRequest) -> frozenset[str]:
        return frozenset(_told(call)[1].partition("?")[0] for call in (request.sleep_calls or {}).values())

    async def sleep(self, api: Api, request: ModelRequest) -> None:
        await self._tell(api, request, "sleep")

    async def wake(self, api: Api, request: ModelRequest) -> None:
        await self._tell(api, request, "wake")

    async def _tell(self, api: Api, request: ModelRequest, what: str) -> None:
        if request.sleep_calls is None:
            raise SleepFailed(f"{request.label} can't sleep: {self.why_awake(request)}")
        method, path = _told(request.sleep_calls[what])
        await api.tell(method, path, SLEEP_BOUND_S)

    def ready(self, request: ModelRequest) -> str:
        return request.health or "/health"

    def health(self, request: ModelRequest) -> str:
        return request.health or "/health"

    def verbs(self, request: ModelRequest) -> frozenset[str]:
        return frozenset()

    async def preflight(self, request: ModelRequest, supervisor: Supervisor) -> Preflight:
        """Check the template, and that its program is there. What it needs is declared, or else its file's size."""
        idle = [name for name in ("quantization", "dtype", "max_context", "revision") if getattr(request, name)]
        idle += [f"engine_args.{key}" for key in request.engine_args if spelled(key) not in OF_VIDEOS]
        idle += ["trust_remote_code"] * request.trust_remote_code
        showing_of(request)
        if idle:
            raise PreflightFailed(
                f"{request.label}: {', '.join(idle)} would do nothing under framework command: what its program is "
                "told stands in `command`."
            )
        if not request.command:
            raise PreflightFailed(f'{request.label}: write the command to run, such as [program, --port, "{{port}}"]')
        unknown = sorted({name for word in request.command for name in _FIELD.findall(word)} - set(FIELDS))
        if unknown:
            raise PreflightFailed(
                f"{request.label}: command has {{{unknown[0]}}}, which nothing fills in; there are "
                f"{', '.join('{' + name + '}' for name in FIELDS)}."
            )
        if not any("{port}" in word for word in request.command):
            raise PreflightFailed(
                f'{request.label}: command says nowhere which port to listen on; write "{{port}}" where its program '
                "takes one."
            )
        program = request.command[0]
        if _which(program, request.base_dir) is None:
            raise PreflightFailed(
                f"{request.label}: there is no program {program!r} that can be run; install it, or correct `command`."
            )
        size = await asyncio.to_thread(_size, request.model_id)
        return Preflight(Footprint(size + working_bytes(size)) if size else None)

    async def examine(self, request: ModelRequest) -> Checkpoint:
        return Checkpoint(request.model_id, 0, showing=showing_of(request))

    def launch(self, request: ModelRequest, checkpoint: Checkpoint, start: Start) -> Launch:
        device = ",".join(place.uuid or place.device for place in start.places) if start.on_gpu else "cpu"
        filled = {"port": str(start.port), "model_id": request.model_id, "device": device, "api_key": start.api_key}
        words = [_FIELD.sub(lambda found: filled.get(found[1], found[0]), word) for word in request.command]
        program = _which(words[0], request.base_dir) or words[0]
        env = {"CUDA_VISIBLE_DEVICES": device if start.on_gpu else ""} if _named(start) else {}
        return Launch((program, *words[1:]), env)

    def model_name(self, request: ModelRequest, start: Start) -> str:
        return request.model_id

    def warm_up(self, request: ModelRequest, name: str) -> tuple[str, Mapping[str, Any]]:
        return CHAT, {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}

    async def kv_cache(self, api: Api, checkpoint: Checkpoint, lines: list[str]) -> KvCache | None:
        return None

    async def progress(self, api: Api) -> object:
        return None


class CommandBackend(EngineBackend):
    """The backend for ``framework: command``."""

    def __init__(self) -> None:
        super().__init__(CommandAdapter())


def _told(call: str) -> tuple[str, str]:
    method, _, path = call.partition(" ")
    return method, path


def _named(start: Start) -> bool:
    """Whether the devices are known by UUID, or none is to be used."""
    return not start.on_gpu or all(place.uuid for place in start.places)


def _which(program: str, base_dir: str) -> str | None:
    """The program's absolute path: on the PATH, or relative to the file's folder."""
    if "/" in program:
        return shutil.which(str(Path(base_dir) / os.path.expanduser(program)))
    return shutil.which(program)


def _size(model_id: str) -> int:
    """Bytes of a model that is a file or a folder here; 0 where it is neither."""
    path = Path(model_id)
    if path.is_file():
        return path.stat().st_size
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return 0
