"""The backend of every engine: start it, see it ready, give it back. What differs is the adapter's.

A start, in order: a free port; the process under its guardian; its health path answers 200, from a port that one of its
own processes listens on; one token is computed, so that no caller pays for what an engine does on its first request.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import tempfile
from dataclasses import replace
from typing import Any

from taskrouter.backends.base import START_TIMED_OUT, Asleep, LoadedModel, Preflight
from taskrouter.backends.engines import sleeping
from taskrouter.backends.engines.adapter import Adapter, KvCache
from taskrouter.backends.engines.api import Api, Broken
from taskrouter.backends.engines.ending import Endings
from taskrouter.backends.engines.interpreter import clean_environment
from taskrouter.backends.engines.launch import Checkpoint, Launch, Place, Start
from taskrouter.backends.engines.model import EngineModel
from taskrouter.backends.engines.outside import is_open
from taskrouter.backends.engines.places import look
from taskrouter.backends.engines.supervisor import Process, Supervisor, ended, last_words
from taskrouter.errors import LoadFailed, OutOfMemory
from taskrouter.memory.ledger import FootprintLedger, default_path
from taskrouter.memory.nvml import open_nvml
from taskrouter.memory.release import gpu_bytes, listens, tree_bytes
from taskrouter.types import CPU, Charges, DeviceId, Footprint, ModelKey, ModelRequest, Traits

POLL_S = 0.02
HEALTH_BOUND_S = 5.0
PORT_TRIES = 4
OUTPUT_BOUND_S = 1.0

_PORT_TAKEN = re.compile(r"address already in use|\[Errno 98\]|port \d+ is (already )?(in use|occupied)", re.IGNORECASE)
_NO_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|No available memory for the cache blocks|not enough memory|cannot allocate memory"
    r"|Free memory on device .* is less than desired|larger than the available KV cache memory",
    re.IGNORECASE,
)


class PortTaken(Exception):
    """Somebody else got the port between our choice and the engine's bind; or so it says."""


class EngineBackend:
    """The ``Backend`` of one kind of engine."""

    def __init__(self, adapter: Adapter, supervisor: Supervisor | None = None) -> None:
        self.adapter = adapter
        self.supervisor = supervisor if supervisor is not None else Supervisor()
        self.endings = Endings()
        self._beyond = FootprintLedger(default_path().with_name("engines-beyond.json"))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.adapter.framework}>"

    def traits(self, request: ModelRequest) -> Traits:
        return self.adapter.traits(request)

    def infers(self, request: ModelRequest, path: str) -> bool:
        """Whether this path of the model's own server may be asked for by callers from outside: it only computes."""
        return is_open(path, self.adapter.inference, self.adapter.controls(request))

    async def preflight(self, request: ModelRequest) -> Preflight:
        await self.supervisor.prepare()
        return await self.adapter.preflight(request, self.supervisor)

    async def load(self, request: ModelRequest, devices: tuple[DeviceId, ...], charges: Charges) -> LoadedModel:
        """Start the engine; a port that somebody else took meanwhile is replaced by another."""
        checkpoint = await self.adapter.examine(request)
        granted = await asyncio.to_thread(look, request.label, devices, charges)
        places = await asyncio.to_thread(self._within, request.key, granted)
        for left in reversed(range(PORT_TRIES)):
            try:
                return await self._start(request, checkpoint, places, granted)
            except PortTaken as error:
                if not left:
                    text = (
                        f"{request.label}: {PORT_TRIES} ports in a row were taken before its engine had them. {error}"
                    )
                    raise LoadFailed(text) from error
        raise AssertionError("the last try returns or raises")

    async def _start(
        self, request: ModelRequest, checkpoint: Checkpoint, places: tuple[Place, ...], granted: tuple[Place, ...]
    ) -> EngineModel:
        start = Start(places, free_port(), _name(request.label), secrets.token_hex(24))
        launch = self.adapter.launch(request, checkpoint, start)
        process = await self.supervisor.spawn(
            request.label, launch.argv, environment(request, launch), cwd=request.base_dir, secret=start.api_key
        )
        api: Api | None = None
        try:
            api = Api(request.label, start.port, start.api_key)
            name = self.adapter.model_name(request, start)
            await self._become_ready(request, process, api, name, start.port)
            kv_cache = await self.adapter.kv_cache(api, checkpoint, process.output.lines())
            measured = await asyncio.to_thread(measure, process, places, kv_cache)
            await asyncio.to_thread(self._learn, request.key, places, measured)
            if measured is not None and self.adapter.fills_grant:
                # What it was told it may take counts, not what it happens to hold: the rest is for its busiest moment.
                grant = min(place.granted for place in granted)
                measured = replace(measured, device_bytes=max(measured.device_bytes, grant))
            process.note()
            pids = await asyncio.to_thread(process.pids)
            return EngineModel(
                request, self.adapter, process, api, name, places, pids=pids, measured=measured, kv_cache=kv_cache,
                weight_bytes=checkpoint.weight_bytes, showing=checkpoint.showing,
            )  # fmt: skip
        except BaseException as error:
            await asyncio.shield(asyncio.ensure_future(_give_up(process, api)))
            if isinstance(error, asyncio.CancelledError) and START_TIMED_OUT in error.args:
                raise LoadFailed(
                    f"{request.label}: its engine was not ready within engines.{self.adapter.framework}."
                    f"start_timeout_s; raise that, or see what it waits for. {last_words(process)}"
                ) from None
            raise

    async def _become_ready(self, request: ModelRequest, process: Process, api: Api, name: str, port: int) -> None:
        ready = self.adapter.ready(request)
        while not await api.healthy(ready, HEALTH_BOUND_S):
            await asyncio.wait({process.exited}, timeout=POLL_S)
            if process.exited.done():
                raise await _died_starting(request.label, process)
        pids = await asyncio.to_thread(process.pids)
        if process.exited.done():
            raise await _died_starting(request.label, process)
        if not await asyncio.to_thread(listens, pids, port):
            raise PortTaken(f"somebody else answers on port {port}")
        warm_up = asyncio.ensure_future(api.try_out(*self.adapter.warm_up(request, name)))
        either: set[asyncio.Future[Any]] = {warm_up, process.exited}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            warm_up.cancel()
        await asyncio.wait({warm_up})
        error = None if warm_up.cancelled() else warm_up.exception()
        if isinstance(error, Broken):
            await asyncio.wait({process.exited}, timeout=OUTPUT_BOUND_S)
        if process.exited.done():
            raise await _died_starting(request.label, process)
        if error is not None:
            text = f"{request.label} can't be served by its engine: {error}. {last_words(process)}"
            raise LoadFailed(text) from error

    def _within(self, key: ModelKey, places: tuple[Place, ...]) -> tuple[Place, ...]:
        """The grants less what this engine took beyond what it was told, last time.

        Else the books and the engine would drive each other up: what was measured is the next grant, an engine told to
        fill that takes as much more again.
        """
        beyond = self._beyond.get(key, _kind(places))
        if beyond is None:
            return places
        return tuple(replace(place, granted=max(place.granted - beyond.device_bytes, 0)) for place in places)

    def _learn(self, key: ModelKey, places: tuple[Place, ...], measured: Footprint | None) -> None:
        if measured is not None:
            beyond = max(measured.device_bytes - min(place.granted for place in places), 0)
            self._beyond.put(key, _kind(places), Footprint(beyond))

    async def demote(self, model: LoadedModel, *, timeout_s: float) -> Asleep:
        """Tell the engine to sleep, and see its devices free."""
        assert isinstance(model, EngineModel), model
        return await sleeping.demote(model, self.adapter, timeout_s=timeout_s)

    async def promote(self, model: LoadedModel, charges: Charges) -> None:
        """Tell the engine to wake, and let it compute a token."""
        assert isinstance(model, EngineModel), model
        await sleeping.promote(model, self.adapter, charges)

    async def unload(self, model: LoadedModel, *, timeout_s: float) -> Charges:
        """Stop the engine, kill what is left of its tree, and see its memory free."""
        assert isinstance(model, EngineModel), model
        await model.api.close()
        return await self.endings.end(
            model.request.key, model.process, model.places, model.pids, model.took(),
            grace_s=self.adapter.stop_grace_s, timeout_s=timeout_s,
        )  # fmt: skip

    async def residue(self, key: str) -> Charges:
        return await self.endings.residue(ModelKey(key))

    async def close(self) -> None:
        self.endings.forget()
        await self.supervisor.close()


def environment(request: ModelRequest, launch: Launch) -> dict[str, str]:
    """Ours, less what belongs to our own interpreter, with the engine's and then the option's.

    What torch compiles stays where it would be without a temporary folder of the engine's own, which goes with it.
    """
    compiled = {"TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"}
    return {**compiled, **clean_environment(), **launch.env, **request.env}


def measure(process: Process, places: tuple[Place, ...], kv_cache: KvCache | None) -> Footprint | None:
    """What an engine takes: on GPUs as the driver says, its whole tree; in RAM by proportional set size.

    On the ``cpu`` device its KV cache is allocated and not yet touched, so it is added. Blocks for milliseconds.
    """
    pids = process.pids()
    ram = tree_bytes(pids)
    if places[0].device == CPU:
        return Footprint(ram + (kv_cache.bytes if kv_cache is not None else 0)) if ram else None
    nvml = open_nvml()
    sizes = [gpu_bytes(nvml, place.uuid, pids) for place in places]
    known = [size for size in sizes if size is not None]
    return Footprint(max(known), ram) if len(known) == len(sizes) else None


def free_port() -> int:
    """A TCP port on loopback that nobody has just now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def _kind(places: tuple[Place, ...]) -> str:
    return "gpu" if places[0].on_gpu else "cpu"


def _name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._/-]+", "-", label) or "model"


async def _give_up(process: Process, api: Api | None) -> None:
    await process.kill()
    await asyncio.to_thread(process.output.join, OUTPUT_BOUND_S)
    if api is not None:
        await api.close()


async def _died_starting(label: str, process: Process) -> Exception:
    """What an engine that ended before it was ready died of."""
    await process.kill()
    await asyncio.to_thread(process.output.join, OUTPUT_BOUND_S)
    said = "\n".join(process.output.lines()[-200:])
    if _PORT_TAKEN.search(said):
        return PortTaken(last_words(process))
    text = f"{label}: its engine {ended(process.exited.result())} while it started. {last_words(process, 20)}"
    return OutOfMemory(text) if _NO_MEMORY.search(said) else LoadFailed(text)
