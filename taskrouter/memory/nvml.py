"""The seam to the NVIDIA driver: what NVML says of each GPU, without a CUDA context.

Everything above this file sees the small ``Nvml`` protocol, so two GPUs, a container that hides process ids, or a
driver that lies can be simulated at the outermost edge.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")


class NvmlError(Exception):
    """The driver refused to answer; the message is its own."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """One GPU's memory in bytes. ``total`` is what programs can have: the driver's own reserve is taken off."""

    total: int
    used: int


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process on a GPU; ``used`` is ``None`` where the driver won't say (containers, some display drivers)."""

    pid: int
    used: int | None


class Nvml(Protocol):
    """What is asked of the driver. Every method may block for milliseconds and raises ``NvmlError``."""

    def uuids(self) -> tuple[str, ...]:
        """The GPUs' UUIDs, in NVML's (PCI bus) order."""

    def name(self, uuid: str) -> str:
        """The product's name."""

    def memory(self, uuid: str) -> GpuMemory:
        """Bytes in use by anybody, and in all. A MIG slice's UUID is answered too."""

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        """The processes that compute there."""


class Driver:
    """NVML through nvidia-ml-py. Made by ``open_nvml``; handles are looked up once per UUID."""

    def __init__(self, pynvml: Any) -> None:
        self._nvml = pynvml
        self._handles: dict[str, Any] = {}

    def uuids(self) -> tuple[str, ...]:
        def read() -> tuple[str, ...]:
            found = []
            for index in range(self._nvml.nvmlDeviceGetCount()):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                uuid = _text(self._nvml.nvmlDeviceGetUUID(handle))
                self._handles[uuid] = handle
                found.append(uuid)
            return tuple(found)

        return self._ask(read)

    def name(self, uuid: str) -> str:
        return self._ask(lambda: _text(self._nvml.nvmlDeviceGetName(self._handle(uuid))))

    def memory(self, uuid: str) -> GpuMemory:
        def read() -> GpuMemory:
            handle = self._handle(uuid)
            try:
                info = self._nvml.nvmlDeviceGetMemoryInfo(handle, version=self._nvml.nvmlMemory_v2)
            except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
                # Drivers before 510 know only the first version, which counts the reserve as used.
                info = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                return GpuMemory(total=int(info.total), used=int(info.used))
            return GpuMemory(total=int(info.total) - int(info.reserved), used=int(info.used))

        return self._ask(read)

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        def read() -> tuple[GpuProcess, ...]:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle(uuid))
            return tuple(GpuProcess(int(each.pid), _bytes(each.usedGpuMemory)) for each in running)

        return self._ask(read)

    def _handle(self, uuid: str) -> Any:
        if uuid not in self._handles:
            self._handles[uuid] = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        return self._handles[uuid]

    def _ask(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except self._nvml.NVMLError as error:
            self._handles.clear()
            raise NvmlError(str(error)) from error


def open_nvml() -> Nvml | None:
    """Start NVML; ``None`` where there is no NVIDIA driver. Creates no CUDA context."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.debug("no NVML here: %s", error)
        return None
    return Driver(pynvml)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _bytes(value: int | None) -> int | None:
    # NVML_VALUE_NOT_AVAILABLE is all ones, which some versions of the binding pass through.
    return None if value is None or value >= (1 << 63) else int(value)
