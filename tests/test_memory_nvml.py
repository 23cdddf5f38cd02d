"""The driver's binding, played by a stand-in with its names, its versions and its errors."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from taskrouter.memory import devices as devices_module
from taskrouter.memory.devices import CONTEXT_BYTES, DeviceInfo, DeviceWatch
from taskrouter.memory.nvml import GpuMemory, GpuProcess, NvmlError, open_nvml
from taskrouter.memory.ram import HostRam
from taskrouter.types import GIB, DeviceId, DeviceReading


class Failure(Exception):
    """What stands for NVMLError."""


class NotSupported(Failure):
    """An old driver."""


class Binding(ModuleType):
    """``pynvml`` with one GPU."""

    NVMLError = Failure
    NVMLError_NotSupported = NotSupported
    NVMLError_FunctionNotFound = NotSupported
    nvmlMemory_v2 = 2

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.old = self.lost = self.absent = False

    def nvmlInit(self) -> None:
        if self.absent:
            raise Failure("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        if self.lost:
            raise Failure("GPU is lost")
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"handle {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return f"handle of {uuid}"

    def nvmlDeviceGetUUID(self, handle: str) -> bytes:
        return b"GPU-0"

    def nvmlDeviceGetName(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle: str, version: int = 1) -> Any:
        if version == 2 and self.old:
            raise NotSupported
        return SimpleNamespace(total=100, used=30, reserved=5)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        sizes = (7, None, (1 << 64) - 1)
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in enumerate(sizes)]


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> Binding:
    made = Binding()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


@pytest.mark.usefixtures("binding")
def test_memory_is_what_programs_can_have_and_unknown_sizes_are_none() -> None:
    nvml = open_nvml()
    assert nvml is not None
    assert nvml.uuids() == ("GPU-0",)
    assert nvml.name("GPU-0") == "handle 0"
    assert nvml.memory("GPU-0") == GpuMemory(total=95, used=30)
    assert nvml.processes("GPU-0") == (GpuProcess(0, 7), GpuProcess(1, None), GpuProcess(2, None))
    assert nvml.name("MIG-1") == "handle of MIG-1"


def test_an_old_driver_and_a_lost_gpu_are_coped_with(binding: Binding) -> None:
    nvml = open_nvml()
    assert nvml is not None
    binding.old = True
    assert nvml.memory("GPU-0") == GpuMemory(total=100, used=30)
    binding.lost = True
    with pytest.raises(NvmlError, match="GPU is lost"):
        nvml.uuids()


def test_no_driver_is_no_nvml(binding: Binding) -> None:
    binding.absent = True
    assert open_nvml() is None


# --- torch.cuda in its place ------------------------------------------------------------------------------------------


class Cuda:
    """``torch.cuda`` with one GPU of 24 GiB, 10 of them in use, 3 of those cached or allocated by this process."""

    def device_count(self) -> int:
        return 1

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(name="L4", uuid="0-1", total_memory=24 * GIB)

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return 14 * GIB, 24 * GIB

    def memory_reserved(self, index: int) -> int:
        return 3 * GIB

    def is_initialized(self) -> bool:
        return True


def test_without_nvml_a_process_that_uses_torch_sees_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices_module, "_cuda", Cuda)
    watch = DeviceWatch(nvml=None, ram=HostRam())
    gpu = DeviceInfo(DeviceId("cuda:0"), "L4", "GPU-0-1", 24 * GIB)
    assert watch.discover()[0] == gpu
    overhead = CONTEXT_BYTES + GIB
    assert watch.observe([gpu], {gpu.id: 2 * GIB}) == {gpu.id: DeviceReading(8 * GIB - overhead, overhead)}


def test_a_gpu_that_torch_no_longer_sees_keeps_its_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices_module, "_cuda", lambda: None)
    gpu = DeviceInfo(DeviceId("cuda:0"), "L4", "GPU-0-1", 24 * GIB)
    assert DeviceWatch(nvml=None, ram=HostRam()).observe([gpu], {}) == {}


def test_this_machines_devices_can_be_read() -> None:
    found = devices_module.discover()
    assert found[-1].id == "cpu"
    assert set(devices_module.observe(found, {})) <= {device.id for device in found}
