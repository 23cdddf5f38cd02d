"""The machine as the manager sees it: its devices, what others use of them, whose they are, what models measured."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Mapping
from typing import Protocol

from taskrouter.memory.devices import DeviceInfo, discover, observe
from taskrouter.memory.gpu_lock import GpuLock, gpu_lock
from taskrouter.memory.ledger import FootprintLedger, Remembered
from taskrouter.types import CPU, DeviceId, DeviceReading, Footprint, ModelKey


class Machine(Protocol):
    """What the manager asks of a machine. Coroutines leave the event loop free."""

    @property
    def devices(self) -> tuple[DeviceInfo, ...]:
        """Its devices, GPUs first, ``cpu`` last. The first look may block for milliseconds."""

    def look(self, charged: Mapping[DeviceId, int]) -> Mapping[DeviceId, DeviceReading]:
        """What others use of each device now, and what is ours beside the models; unreadable devices are left out.

        May block for milliseconds.
        """

    async def take(self, placements: Iterable[tuple[DeviceId, ...]]) -> None:
        """Make these GPUs ours before the first load there; raises ``DeviceInUse``."""

    async def remembered(self, key: ModelKey) -> Remembered | None:
        """What this model was measured to take here, and how long its loads took."""

    async def remember(self, key: ModelKey, measured: Footprint, load_s: float) -> None:
        """Keep a measurement, and the seconds that its loads take by now."""

    def close(self) -> None:
        """Give the GPUs back."""


class ThisMachine:
    """The real one. ``share`` leaves GPUs to other processes too (their budgets are explicit then)."""

    def __init__(self, *, share: bool = False) -> None:
        self._share = share
        self._locks: dict[str, GpuLock] = {}
        self._ledger = FootprintLedger()

    @functools.cached_property
    def devices(self) -> tuple[DeviceInfo, ...]:
        return discover()

    @property
    def _kind(self) -> str:
        """What footprints are remembered for: the product name of the first device, or ``cpu``."""
        first = self.devices[0]
        return "cpu" if first.id == CPU else first.name

    def look(self, charged: Mapping[DeviceId, int]) -> Mapping[DeviceId, DeviceReading]:
        return observe(self.devices, charged)

    async def take(self, placements: Iterable[tuple[DeviceId, ...]]) -> None:
        if self._share:
            return
        wanted = {device for devices in placements for device in devices}
        for info in self.devices:
            if info.id in wanted and info.uuid and info.uuid not in self._locks:
                self._locks[info.uuid] = gpu_lock(info.uuid)

    async def remembered(self, key: ModelKey) -> Remembered | None:
        return await asyncio.to_thread(self._ledger.find, key, self._kind)

    async def remember(self, key: ModelKey, measured: Footprint, load_s: float) -> None:
        await asyncio.to_thread(self._ledger.put, key, self._kind, measured, load_s)

    def close(self) -> None:
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()


class StillMachine:
    """A machine made of numbers, where nobody else uses anything: for tests, and for machines that aren't here."""

    def __init__(self, devices: Mapping[str, int]) -> None:
        """``devices`` maps ids (``cuda:0``, ``cpu``) to bytes."""
        infos = [DeviceInfo(DeviceId(name), name, "", total) for name, total in devices.items() if name != CPU]
        self.devices: tuple[DeviceInfo, ...] = (*infos, DeviceInfo(CPU, "host RAM", "", devices.get(CPU, 1 << 40)))
        self.readings: dict[DeviceId, DeviceReading] = {}

    def look(self, charged: Mapping[DeviceId, int]) -> Mapping[DeviceId, DeviceReading]:
        return dict(self.readings)

    async def take(self, placements: Iterable[tuple[DeviceId, ...]]) -> None:
        return None

    async def remembered(self, key: ModelKey) -> Remembered | None:
        return None

    async def remember(self, key: ModelKey, measured: Footprint, load_s: float) -> None:
        return None

    def close(self) -> None:
        return None
