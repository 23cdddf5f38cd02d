"""Devices as NVML, a container or a lying driver would show them, with no GPU in the machine."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from taskrouter.memory import devices as devices_module
from taskrouter.memory.devices import CONTEXT_BYTES, DeviceInfo, DeviceWatch, resolve_visible
from taskrouter.memory.nvml import GpuMemory, GpuProcess, NvmlError
from taskrouter.memory.ram import HostRam, RamReading
from taskrouter.types import CPU, GIB, DeviceId, DeviceReading

GPU0, GPU1 = "GPU-aaaa-0", "GPU-bbbb-1"
CUDA0, CUDA1 = DeviceId("cuda:0"), DeviceId("cuda:1")
OTHER = 1  # init is always there, and never ours


class FakeNvml:
    """A driver with two GPUs, whose numbers a test sets."""

    def __init__(self) -> None:
        self.order: tuple[str, ...] = (GPU0, GPU1)
        self.names = {GPU0: "H100", GPU1: "H100"}
        self.used = {GPU0: 0, GPU1: 0}
        self.total = {GPU0: 80 * GIB, GPU1: 24 * GIB}
        self.running: dict[str, tuple[GpuProcess, ...]] = {}
        self.broken = False

    def uuids(self) -> tuple[str, ...]:
        self._check()
        return self.order

    def name(self, uuid: str) -> str:
        return self.names[uuid]

    def memory(self, uuid: str) -> GpuMemory:
        self._check()
        return GpuMemory(self.total[uuid], self.used[uuid])

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        self._check()
        return self.running.get(uuid, ())

    def _check(self) -> None:
        if self.broken:
            raise NvmlError("GPU is lost")


class FakeRam:
    def __init__(self, reading: RamReading) -> None:
        self.reading = reading

    def read(self) -> RamReading:
        return self.reading


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml()


@pytest.fixture
def watch(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> DeviceWatch:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return DeviceWatch(nvml=nvml, ram=FakeRam(RamReading(16 * GIB, 10 * GIB, 2 * GIB, GIB)))


@pytest.fixture
def using_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        def is_initialized(self) -> bool:
            return True

        def memory_reserved(self, index: int) -> int:
            return 5 * GIB

    monkeypatch.setattr(devices_module, "_cuda", Cuda)


def test_visible_order_names_the_devices_and_cpu_comes_last(
    watch: DeviceWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert watch.discover() == (
        DeviceInfo(CUDA0, "H100", GPU1, 24 * GIB),
        DeviceInfo(CUDA1, "H100", GPU0, 80 * GIB),
        DeviceInfo(CPU, "host RAM", "", 16 * GIB),
    )


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, (GPU0, GPU1)),
        ("", ()),
        ("-1", ()),
        ("1", (GPU1,)),
        ("GPU-bb,0", (GPU1, GPU0)),
        ("GPU-", ()),
        ("0,7,1", (GPU0,)),
        ("0,0", ()),
        ("MIG-77", ("MIG-77",)),
    ],
)
def test_visible_devices_follow_cudas_rules(visible: str | None, expected: tuple[str, ...]) -> None:
    assert resolve_visible(visible, (GPU0, GPU1)) == expected


def test_a_machine_without_nvml_has_only_its_cpu() -> None:
    watch = DeviceWatch(nvml=None, ram=FakeRam(RamReading(4, 3, 2, 1)))
    assert [device.id for device in watch.discover()] == [CPU]


def test_a_driver_that_does_not_answer_leaves_the_cpu_and_says_so(
    watch: DeviceWatch, nvml: FakeNvml, caplog: pytest.LogCaptureFixture
) -> None:
    nvml.broken = True
    assert [device.id for device in watch.discover()] == [CPU]
    assert "GPU is lost" in caplog.text


def test_mixed_gpus_without_a_fixed_order_are_warned_about(
    watch: DeviceWatch, nvml: FakeNvml, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.names[GPU1] = "T4"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    watch.discover()
    assert not caplog.records
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    watch.discover()
    assert "CUDA_DEVICE_ORDER" in caplog.text


def test_what_the_driver_gives_per_process_splits_foreign_from_our_own(watch: DeviceWatch, nvml: FakeNvml) -> None:
    nvml.used[GPU0] = 30 * GIB
    nvml.running[GPU0] = (GpuProcess(os.getpid(), 12 * GIB), GpuProcess(OTHER, 17 * GIB))
    reading = watch.observe(watch.discover(), {CUDA0: 11 * GIB})
    # 1 GiB belongs to nobody the driver lists: it isn't ours, so it is foreign.
    assert reading[CUDA0] == DeviceReading(foreign=18 * GIB, overhead=GIB)
    assert reading[CUDA1] == DeviceReading(0, 0)


def test_a_charge_above_what_is_used_makes_nothing_negative(watch: DeviceWatch, nvml: FakeNvml) -> None:
    nvml.used[GPU0] = 2 * GIB
    nvml.running[GPU0] = (GpuProcess(os.getpid(), 2 * GIB),)
    assert watch.observe(watch.discover(), {CUDA0: 9 * GIB})[CUDA0] == DeviceReading(0, 0)


@pytest.mark.usefixtures("using_cuda")
@pytest.mark.parametrize(
    "running",
    [
        (GpuProcess(os.getpid(), None),),  # the driver knows and won't say
        (),  # a container: our pid isn't listed
        (GpuProcess(2**22 + 1, 9 * GIB),),  # pids of another namespace
    ],
)
def test_without_bytes_per_process_only_totals_count(
    watch: DeviceWatch, nvml: FakeNvml, running: tuple[GpuProcess, ...]
) -> None:
    nvml.used[GPU0] = 20 * GIB
    nvml.running[GPU0] = running
    overhead = CONTEXT_BYTES + GIB  # torch has reserved 5 GiB, 4 are charged
    expected = DeviceReading(foreign=16 * GIB - overhead, overhead=overhead)
    assert watch.observe(watch.discover()[:1], {CUDA0: 4 * GIB}) == {CUDA0: expected}


@pytest.mark.usefixtures("using_cuda")
def test_the_estimate_of_our_own_never_exceeds_what_is_used(watch: DeviceWatch, nvml: FakeNvml) -> None:
    nvml.used[GPU0] = 4 * GIB + 100
    assert watch.observe(watch.discover()[:1], {CUDA0: 4 * GIB}) == {CUDA0: DeviceReading(0, 100)}


def test_a_gpu_that_stops_answering_keeps_its_last_reading_and_is_logged_once(
    watch: DeviceWatch, nvml: FakeNvml, caplog: pytest.LogCaptureFixture
) -> None:
    found = watch.discover()
    nvml.broken = True
    for _ in range(3):
        assert set(watch.observe(found, {})) == {CPU}
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2  # one for each GPU
    assert "cuda:0" in caplog.text
    assert "GPU is lost" in caplog.text


def test_numbers_that_cannot_be_true_are_not_believed(
    watch: DeviceWatch, nvml: FakeNvml, caplog: pytest.LogCaptureFixture
) -> None:
    found = watch.discover()
    nvml.used[GPU1] = 25 * GIB
    assert CUDA1 not in watch.observe(found, {})
    assert "can't be" in caplog.text
    nvml.used[GPU1] = GIB
    assert watch.observe(found, {})[CUDA1] == DeviceReading(GIB, 0)


def test_ram_of_models_is_neither_foreign_nor_overhead() -> None:
    # 6 GiB used, 1 of them ours and not droppable; 2 GiB resident, half of it mapped weights.
    watch = DeviceWatch(nvml=None, ram=FakeRam(RamReading(16 * GIB, 10 * GIB, 2 * GIB, GIB)))
    cpu = watch.discover()
    assert watch.observe(cpu, {CPU: GIB}) == {CPU: DeviceReading(foreign=5 * GIB, overhead=GIB)}
    assert watch.observe(cpu, {CPU: 3 * GIB}) == {CPU: DeviceReading(foreign=5 * GIB, overhead=0)}


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_a_cgroup_v2_limit_binds_from_any_ancestor_and_page_cache_is_free(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self", cgroup="0::/pod/app\n")
    stat = f"anon 5\ninactive_file {GIB // 4}\nactive_file {GIB // 4}\n"
    _write(tmp_path / "sys/fs/cgroup/pod", memory__max=str(GIB), memory__current=str(GIB - 1000), memory__stat=stat)
    _write(tmp_path / "sys/fs/cgroup/pod/app", memory__max="max", memory__current="7", memory__stat="")
    ram = HostRam(tmp_path)
    assert ram.total() == GIB
    assert ram.available() == GIB // 2 + 1000


def test_a_cgroup_v1_limit_binds_where_the_container_sees_only_its_own_root(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self", cgroup="9:cpu,cpuacct:/x\n4:memory:/docker/0123\n")
    stat = f"inactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file 0\n"
    memory = tmp_path / "sys/fs/cgroup/memory"
    _write(memory, memory__limit_in_bytes=str(2 * GIB), memory__usage_in_bytes=str(2 * GIB), memory__stat=stat)
    assert HostRam(tmp_path).total() == 2 * GIB
    assert HostRam(tmp_path).available() == GIB


@pytest.mark.parametrize("limit", ["9223372036854771712", "max"])
def test_no_limit_means_the_machines_ram(tmp_path: Path, limit: str) -> None:
    _write(tmp_path / "proc/self", cgroup="0::/\n")
    _write(tmp_path / "sys/fs/cgroup", memory__max=limit, memory__current="5", memory__stat="")
    assert HostRam(tmp_path).total() == HostRam(tmp_path / "nowhere").total() > 0


def test_this_machine_reads_as_itself() -> None:
    reading = HostRam().read()
    assert 0 < reading.own_anonymous <= reading.own_resident < reading.total
    assert reading.available <= reading.total
