"""What a model in a process of its own is charged: the model as it was measured there, and the process beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskrouter.backends.engines.launch import Place
from taskrouter.backends.hf.isolated import backend as isolated
from taskrouter.backends.hf.isolated.backend import PROCESS_BYTES, measure
from taskrouter.backends.hf.isolated.host import HostedModel
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.memory.devices import CONTEXT_BYTES, DeviceInfo
from taskrouter.types import CPU, GIB, MIB, Charges, DeviceId, Footprint
from tests.test_memory_release import Driver

from .checkpoints import request

GPU = DeviceId("cuda:0")
PID = 1 << 30
"""Of no process here: what it holds in RAM is nothing."""


def hosted(device_bytes: int, ram_bytes: int = 0, reserved: Charges | None = None) -> HostedModel:
    return HostedModel(Footprint(device_bytes, ram_bytes), frozenset({"chat"}), {}, reserved or {})


def place(device: DeviceId) -> Place:
    return Place(device, "" if device == CPU else "GPU-a", 80 * GIB, 70 * GIB, 8 * GIB)


def test_in_ram_the_process_counts_as_it_was_before_it_loaded() -> None:
    assert measure((place(CPU),), [PID], hosted(3 * GIB), 300 * MIB) == Footprint(3 * GIB + 300 * MIB)


@pytest.mark.parametrize(("lists", "beside"), [(True, 400 * MIB), (False, CONTEXT_BYTES)])
def test_on_a_gpu_what_the_driver_counts_beyond_the_allocator_is_the_process(
    monkeypatch: pytest.MonkeyPatch, lists: bool, beside: int
) -> None:
    driver = Driver(lists=lists)
    driver.held = {PID: 2 * GIB + 400 * MIB, PID + 1: GIB}
    monkeypatch.setattr(isolated, "open_nvml", lambda: driver)
    found = measure((place(GPU),), [PID], hosted(3 * GIB, 100 * MIB, {GPU: 2 * GIB}), 500 * MIB)
    assert found == Footprint(3 * GIB + beside, 600 * MIB)


@pytest.mark.anyio
@pytest.mark.parametrize(("there", "beside_in_ram"), [((), 0), ((DeviceInfo(GPU, "", "", 1),), PROCESS_BYTES)])
async def test_before_it_is_measured_a_process_is_estimated(
    chat_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: tuple[DeviceInfo, ...],
    beside_in_ram: int,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(isolated, "discover", lambda: there)
    backend = TransformersBackend()
    here = (await backend.preflight(request(chat_folder))).need
    apart = (await backend.preflight(request(chat_folder, isolation="process"))).need
    assert here is not None
    assert apart == Footprint(here.device_bytes + PROCESS_BYTES, here.ram_bytes + beside_in_ram)
    await backend.close()
