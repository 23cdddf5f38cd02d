"""What devices exist, and how much of each is used by others and by ourselves.

GPUs are seen through NVML where there is one (driver-wide, and no CUDA context is created), else through
``torch.cuda`` if this process has imported torch anyway. ``cuda:N`` is the N-th *visible* GPU:
``CUDA_VISIBLE_DEVICES`` is resolved to UUIDs, because its order is not NVML's. The ``cpu`` device always exists: RAM
under the cgroup's limit.

For each device ``used = foreign + overhead + what models are charged``:

1. The driver says which process holds what: ``own`` is the sum over this process and its descendants, ``foreign`` is
   the rest of what is used, ``overhead`` is what of ``own`` no model is charged for.
2. It doesn't (a container, an old driver), or our processes aren't among those it lists though they must be: only the
   total is known. ``overhead`` is then estimated, and ``foreign = used − charged − overhead``.

A device that can't be read, or whose numbers can't be true, is left out of the answer and logged once: whoever keeps
the books keeps its last reading.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from taskrouter.memory.nvml import GpuMemory, Nvml, NvmlError, open_nvml
from taskrouter.memory.ram import HostRam, Ram, family
from taskrouter.types import CPU, MIB, DeviceId, DeviceReading

logger = logging.getLogger(__name__)

CONTEXT_BYTES = 512 * MIB
"""A CUDA context costs 0.3–0.6 GB per process; used only where the driver doesn't say what we hold."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device: its id here, its product name, its UUID (empty for ``cpu``) and its bytes."""

    id: DeviceId
    name: str
    uuid: str
    total: int


class DeviceWatch:
    """Looks at the machine. Holds no books; remembers only which troubles it has already logged.

    ``nvml=None`` means a machine without NVML. Methods block for milliseconds: call them in a thread.
    """

    def __init__(self, *, nvml: Nvml | None, ram: Ram) -> None:
        self._nvml = nvml
        self._ram = ram
        self._complained: set[str] = set()

    def discover(self) -> tuple[DeviceInfo, ...]:
        """List the devices, GPUs first; ``cpu`` is always the last."""
        cpu = DeviceInfo(CPU, "host RAM", "", self._ram.read().total)
        try:
            gpus = self._gpus()
        except NvmlError as error:
            self._complain("discover", f"the NVIDIA driver does not answer, so no GPU is used: {error}")
            gpus = ()
        return (*gpus, cpu)

    def observe(self, devices: Iterable[DeviceInfo], charged: Mapping[DeviceId, int]) -> dict[DeviceId, DeviceReading]:
        """Read each device; ``charged`` is what models are charged there. Those that can't be read are left out."""
        readings: dict[DeviceId, DeviceReading] = {}
        pids: frozenset[int] | None = None
        for device in devices:
            mine = charged.get(device.id, 0)
            if device.id == CPU:
                readings[CPU] = self._observe_ram(mine)
                continue
            pids = frozenset(process.pid for process in family()) if pids is None else pids
            reading = self._observe_gpu(device, mine, pids)
            if reading is not None:
                readings[device.id] = reading
        return readings

    def free(self, device: DeviceInfo) -> int | None:
        """Bytes that are free on a device now; ``None`` where that can't be read."""
        if device.id == CPU:
            return self._ram.read().available
        memory, _ = self._gpu_use(device, frozenset())
        return None if memory is None else max(memory.total - memory.used, 0)

    def _gpus(self) -> tuple[DeviceInfo, ...]:
        if self._nvml is None:
            return _torch_gpus()
        uuids = self._nvml.uuids()
        names = {uuid: self._nvml.name(uuid) for uuid in uuids}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if len(set(names.values())) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            self._complain(
                "order",
                "there are GPUs of different kinds: set CUDA_DEVICE_ORDER=PCI_BUS_ID, or CUDA numbers them its own way",
            )
        chosen = resolve_visible(visible, uuids)
        found = []
        for index, uuid in enumerate(chosen):
            name = names[uuid] if uuid in names else self._nvml.name(uuid)
            total = self._nvml.memory(uuid).total
            found.append(DeviceInfo(DeviceId(f"cuda:{index}"), name, uuid, total))
        return tuple(found)

    def _observe_ram(self, charged: int) -> DeviceReading:
        ram = self._ram.read()
        # Weights loaded on the CPU are mapped files: their pages are cache, so only anonymous memory is taken off
        # `used`; but they are resident, so what is ours beside the models is judged by the resident size.
        used = ram.total - ram.available
        return DeviceReading(max(used - ram.own_anonymous, 0), max(ram.own_resident - charged, 0))

    def _observe_gpu(self, device: DeviceInfo, charged: int, pids: frozenset[int]) -> DeviceReading | None:
        memory, own = self._gpu_use(device, pids)
        if memory is None:
            return None
        if not 0 <= memory.used <= memory.total:
            self._complain(
                device.uuid,
                f"{device.id} ({device.name}) reports {memory.used} of {memory.total} bytes used, which can't be: "
                "keeping the last reading",
            )
            return None
        self._complained.discard(device.uuid)
        if own is None:
            overhead = min(_own_estimate(device, charged), max(memory.used - charged, 0))
            return DeviceReading(max(memory.used - charged - overhead, 0), overhead)
        return DeviceReading(max(memory.used - own, 0), max(own - charged, 0))

    def _gpu_use(self, device: DeviceInfo, pids: frozenset[int]) -> tuple[GpuMemory | None, int | None]:
        """Bytes used in all, and by us (``None``: not known)."""
        if self._nvml is None:
            return _torch_memory(device), None
        try:
            memory = self._nvml.memory(device.uuid)
            everybody = self._nvml.processes(device.uuid)
        except NvmlError as error:
            self._complain(device.uuid, f"{device.id} ({device.name}) can't be read, keeping the last reading: {error}")
            return None, None
        ours = [process for process in everybody if process.pid in pids]
        known = [process.used for process in ours if process.used is not None]
        # A pid that doesn't exist here is numbered by another pid namespace: then ours would not be recognised either.
        strangers = any(process.pid not in pids and not psutil.pid_exists(process.pid) for process in everybody)
        if len(known) < len(ours) or strangers or (not ours and _must_be_there()):
            return memory, None
        return memory, sum(known)

    def _complain(self, key: str, message: str) -> None:
        if key not in self._complained:
            self._complained.add(key)
            logger.warning("%s", message)


def resolve_visible(visible: str | None, uuids: tuple[str, ...]) -> tuple[str, ...]:
    """Turn ``CUDA_VISIBLE_DEVICES`` into UUIDs, by CUDA's rules.

    Numbers count GPUs in bus order, UUIDs may be shortened to what is unique, and the first entry that names nothing
    ends the list; a GPU named twice makes it empty. MIG slices (``MIG-…``) are passed on as they are.
    """
    if visible is None:
        return uuids
    chosen: list[str] = []
    for token in (part.strip() for part in visible.split(",")):
        if token.startswith("MIG-"):
            matches: tuple[str, ...] = (token,)
        elif token.isdigit():
            matches = uuids[int(token) : int(token) + 1]
        else:
            matches = tuple(uuid for uuid in uuids if token and uuid.startswith(token))
        if len(matches) != 1:
            break
        if matches[0] in chosen:
            return ()
        chosen.append(matches[0])
    return tuple(chosen)


def _cuda() -> Any:
    """``torch.cuda`` if this process has torch and a usable GPU; never imports torch."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_available() else None


def _torch_gpus() -> tuple[DeviceInfo, ...]:
    cuda = _cuda()
    if cuda is None:
        return ()
    found = []
    for index in range(cuda.device_count()):
        properties = cuda.get_device_properties(index)
        uuid = f"GPU-{properties.uuid}" if hasattr(properties, "uuid") else f"index-{index}"
        found.append(DeviceInfo(DeviceId(f"cuda:{index}"), properties.name, uuid, int(properties.total_memory)))
    return tuple(found)


def _torch_memory(device: DeviceInfo) -> GpuMemory | None:
    cuda = _cuda()
    if cuda is None:
        return None
    free, total = cuda.mem_get_info(_index(device))
    return GpuMemory(total=total, used=total - free)


def _must_be_there() -> bool:
    """Whether this process holds a CUDA context: a driver that doesn't list it then doesn't know pids as we do."""
    cuda = _cuda()
    return cuda is not None and cuda.is_initialized()


def _own_estimate(device: DeviceInfo, charged: int) -> int:
    if not _must_be_there():
        return 0
    return CONTEXT_BYTES + max(int(_cuda().memory_reserved(_index(device))) - charged, 0)


def _index(device: DeviceInfo) -> int:
    return int(device.id.removeprefix("cuda:"))


@functools.cache
def _this_machine() -> DeviceWatch:
    return DeviceWatch(nvml=open_nvml(), ram=HostRam())


def discover() -> tuple[DeviceInfo, ...]:
    """List this machine's devices, GPUs first and ``cpu`` last. Blocks for milliseconds."""
    return _this_machine().discover()


def free_bytes(device: DeviceInfo) -> int | None:
    """Bytes that are free on a device now, whoever asks; ``None`` where that can't be read. Blocks for milliseconds."""
    return _this_machine().free(device)


def observe(devices: Iterable[DeviceInfo], charged: Mapping[DeviceId, int]) -> dict[DeviceId, DeviceReading]:
    """Read this machine's devices; see the module's text for the rules. Blocks for milliseconds."""
    return _this_machine().observe(devices, charged)
