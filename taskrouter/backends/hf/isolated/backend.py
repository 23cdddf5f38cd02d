"""Transformers models with a process each: started, measured, ended. What runs in there is the in-process backend.

The preflight is the in-process one, in this process. A load is a start: the child imports torch (seconds), then loads,
beside any other load. It is ended for certain, and its memory with it: an unload, a cancelled load and a hang are all
a killed process tree.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace

from taskrouter.backends.base import START_TIMED_OUT, Asleep, LoadedModel, Preflight
from taskrouter.backends.engines.ending import Endings
from taskrouter.backends.engines.launch import Place
from taskrouter.backends.engines.places import look
from taskrouter.backends.engines.supervisor import Process, Supervisor, ended, last_words
from taskrouter.backends.hf.in_process import InProcess
from taskrouter.backends.hf.isolated.host import HostedModel
from taskrouter.backends.hf.isolated.model import IsolatedModel
from taskrouter.backends.hf.isolated.process import ModelProcess
from taskrouter.errors import LoadFailed, ModelDied, SleepFailed
from taskrouter.media.limits import MediaLimits
from taskrouter.memory.devices import CONTEXT_BYTES, discover
from taskrouter.memory.held import Held
from taskrouter.memory.nvml import open_nvml
from taskrouter.memory.release import gpu_bytes, tree_bytes
from taskrouter.types import CPU, Charges, DeviceId, Footprint, ModelKey, ModelRequest, Traits

START_S = 8.0
"""Seconds of a start beside reading the weights: a process, and torch and transformers imported."""
PROCESS_BYTES = CONTEXT_BYTES
"""What a process takes beside its model until it is measured: on a GPU a context, in RAM an interpreter and torch."""
PROGRAM = "taskrouter.backends.hf.isolated.child"


class Isolated:
    """Models in child processes, which neither outlive the manager nor take it along."""

    def __init__(self, limits: MediaLimits | None = None, supervisor: Supervisor | None = None) -> None:
        self.limits = limits if limits is not None else MediaLimits()
        self.supervisor = supervisor if supervisor is not None else Supervisor()
        self._within = InProcess(self.limits)
        self._endings = Endings()

    def traits(self, request: ModelRequest) -> Traits:
        """As in-process, but that loads don't wait for each other: what isn't thread-safe has a process of its own."""
        return replace(self._within.traits(request), serial_group=None, cancellable=True, start_s=START_S)

    async def preflight(self, request: ModelRequest) -> Preflight:
        """Check the request as in-process; what it needs counts the process."""
        await self.supervisor.prepare()
        found = await self._within.preflight(request)
        need = found.need
        if need is None:
            return found
        on_gpu = request.devices != (CPU,) and any(info.id != CPU for info in discover())
        ram = need.ram_bytes + (PROCESS_BYTES if on_gpu else 0)
        return replace(found, need=Footprint(need.device_bytes + PROCESS_BYTES, ram))

    async def load(self, request: ModelRequest, devices: tuple[DeviceId, ...], charges: Charges) -> LoadedModel:
        """Start the process and load there. Cancelled, it is killed at once."""
        places = await asyncio.to_thread(look, request.label, devices, charges)
        child = await self._start(request)
        process = child.process
        try:
            await child.order("prepare")
            base = await asyncio.to_thread(lambda: tree_bytes(process.pids()))
            left = {device: max(charges.get(device, 0) - _own(device, base), 0) for device in devices}
            hosted = await child.order("load", request, devices, left, self.limits)
            pids = await asyncio.to_thread(process.pids)
            measured = await asyncio.to_thread(measure, places, pids, hosted, base)
            process.note()
            return IsolatedModel(
                request, child, hosted, places, pids=frozenset(pids), measured=measured, base=base
            )  # fmt: skip
        except BaseException as error:
            await asyncio.shield(asyncio.ensure_future(child.end()))
            if isinstance(error, ModelDied):
                raise _died_loading(request.label, process) from None
            if isinstance(error, asyncio.CancelledError) and START_TIMED_OUT in error.args:
                raise LoadFailed(
                    f"{request.label}: its process was not ready within engines.transformers.start_timeout_s and was "
                    f"killed; raise that, or see what it waits for. {last_words(process)}"
                ) from None
            raise

    async def _start(self, request: ModelRequest) -> ModelProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = await self.supervisor.spawn(
                    request.label, [sys.executable, "-m", PROGRAM], environment(request), cwd=os.getcwd(),
                    stdin=theirs.fileno(),
                )  # fmt: skip
            except BaseException:
                ours.close()
                raise
        return ModelProcess(request, process, ours, self.limits)

    async def demote(self, model: LoadedModel, *, timeout_s: float) -> Asleep:
        """Have the weights moved to host RAM there, and look at what stays on the devices: a context at least."""
        assert isinstance(model, IsolatedModel)
        held = await asyncio.to_thread(_held, model)
        try:
            asleep = await model.process.order("demote", timeout_s)
        except ModelDied as error:
            raise SleepFailed(f"{model!r} could not be put to sleep: {error}") from error
        model.residue = await asyncio.to_thread(held.now)
        ram = await asyncio.to_thread(tree_bytes, model.pids)
        # Pinned memory is not on every driver's account of a process; that the weights are there is certain.
        return Asleep(max(ram, model.base + asleep.ram_bytes), model.residue)

    async def promote(self, model: LoadedModel, charges: Charges) -> None:
        """Have the weights moved back there."""
        assert isinstance(model, IsolatedModel)
        try:
            await model.process.order("promote", charges)
        except ModelDied as error:
            raise SleepFailed(f"{model!r} did not wake: {error}") from error
        model.residue = None

    async def unload(self, model: LoadedModel, *, timeout_s: float) -> Charges:
        """Kill the process, and see its memory free."""
        assert isinstance(model, IsolatedModel)
        missing = await self._endings.end(
            model.request.key, model.process.process, model.places, model.pids, model.took(),
            grace_s=0, timeout_s=timeout_s,
        )  # fmt: skip
        await model.process.hang_up()
        return missing

    async def residue(self, key: str) -> Charges:
        return await self._endings.residue(ModelKey(key))

    async def close(self) -> None:
        self._endings.forget()
        await self.supervisor.close()


def environment(request: ModelRequest) -> Mapping[str, str]:
    """Ours, with our own module path: the child runs this very code.

    What torch compiles stays where it would be without a temporary folder of the process's own, which goes with it.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    compiled = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
    safe = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    return {"TORCHINDUCTOR_CACHE_DIR": compiled, **os.environ, **safe, **request.env}


def measure(places: tuple[Place, ...], pids: list[int], hosted: HostedModel, base: int) -> Footprint | None:
    """What the model was measured to take there, with what its process takes beside. Blocks for milliseconds.

    ``base``: its RAM before it loaded. On a GPU that is what the driver says beyond torch's allocator, a context.
    """
    within = hosted.measured
    if within is None:
        return None
    ram = tree_bytes(pids)
    if places[0].device == CPU:
        return Footprint(max(ram, base + within.device_bytes))
    nvml = open_nvml()
    beside = []
    for place in places:
        size = gpu_bytes(nvml, place.uuid, pids)
        beside.append(CONTEXT_BYTES if size is None else max(size - hosted.reserved.get(place.device, 0), 0))
    return Footprint(within.device_bytes + max(beside), max(ram, base + within.ram_bytes))


def _own(device: DeviceId, base: int) -> int:
    """What the process itself takes of a grant."""
    return base if device == CPU else CONTEXT_BYTES


def _held(model: IsolatedModel) -> Held:
    uuids = {place.device: place.uuid for place in model.places if place.on_gpu and place.uuid}
    return Held(open_nvml() if uuids else None, uuids, model.pids, model.took())


def _died_loading(label: str, process: Process) -> LoadFailed:
    how = ended(process.exited.result()) if process.exited.done() else "was ended"
    hint = " (which the kernel does when RAM runs out)" if "SIGKILL" in how else ""
    return LoadFailed(f"{label}: its process {how}{hint} while it loaded. {last_words(process, 20)}")
