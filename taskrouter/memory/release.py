"""Seeing that a process tree's memory is free again: an unload frees nothing before it is seen free.

On a GPU the driver gives a process's memory back some time after its end (up to about 1.5 s was seen). Where it says
which process holds what, the pids leaving its list are the proof; where it doesn't (a container, an old driver), the
device's total has to fall by most of what the tree took. Host RAM is free once the processes are reaped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import psutil

from taskrouter.memory.nvml import Nvml, NvmlError
from taskrouter.types import Charges, DeviceId

ENOUGH = 0.8
"""The share of what a tree took that its device's total must fall by: others take memory meanwhile."""


class Release:
    """What a process tree holds on GPUs, from before it ends until it is seen free. Methods block for milliseconds.

    ``alive``: the tree has not ended yet. Of one that has there is nothing to compare a total with: then only the
    driver's list counts.
    """

    def __init__(
        self,
        nvml: Nvml | None,
        uuids: Mapping[DeviceId, str],
        pids: Iterable[int],
        took: Charges,
        *,
        alive: bool = True,
    ) -> None:
        self._nvml = nvml
        self._uuids = uuids if nvml is not None else {}
        self._pids = frozenset(pids)
        self._took = took
        self._before = {device: self._used(uuid) if alive else None for device, uuid in self._uuids.items()}
        self._listed = {device for device, uuid in self._uuids.items() if self._held(uuid) is not None}

    def missing(self) -> Charges:
        """Bytes not yet seen free, per device; empty once all are."""
        found: dict[DeviceId, int] = {}
        for device, uuid in self._uuids.items():
            held = self._held(uuid)
            if held is not None:
                found[device] = held or self._took.get(device, 0)
            elif device not in self._listed:
                left = self._not_fallen(device, uuid)
                if left:
                    found[device] = left
        return {device: size for device, size in found.items() if size}

    def _held(self, uuid: str) -> int | None:
        """Bytes the driver says these processes hold (0: it won't say how many); ``None``: it lists none of them."""
        assert self._nvml is not None, "without NVML there are no GPUs to look at"
        try:
            ours = [process for process in self._nvml.processes(uuid) if process.pid in self._pids]
        except NvmlError:
            return None
        return sum(process.used or 0 for process in ours) if ours else None

    def _used(self, uuid: str) -> int | None:
        assert self._nvml is not None, "without NVML there are no GPUs to look at"
        try:
            return self._nvml.memory(uuid).used
        except NvmlError:
            return None

    def _not_fallen(self, device: DeviceId, uuid: str) -> int:
        before, now = self._before.get(device), self._used(uuid)
        if before is None or now is None:
            return 0
        took = self._took.get(device, 0)
        fallen = max(before - now, 0)
        return 0 if fallen >= ENOUGH * took else took - fallen


def tree_bytes(pids: Iterable[int]) -> int:
    """Host RAM of some processes together: proportional set sizes, so that what they share counts once."""
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_full_info().pss
        except (psutil.Error, AttributeError):
            continue
    return total


def gpu_bytes(nvml: Nvml | None, uuid: str, pids: Iterable[int]) -> int | None:
    """Bytes some processes hold on a GPU; ``None`` where the driver doesn't say."""
    if nvml is None or not uuid:
        return None
    mine = frozenset(pids)
    try:
        used = [process.used for process in nvml.processes(uuid) if process.pid in mine]
    except NvmlError:
        return None
    known = [size for size in used if size is not None]
    return sum(known) if known and len(known) == len(used) else None


def listens(pids: Iterable[int], port: int) -> bool:
    """Whether one of these processes listens on this TCP port."""
    for pid in pids:
        if pid == os.getpid():
            continue
        try:
            connections = psutil.Process(pid).net_connections(kind="tcp")
        except psutil.Error:
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            return True
    return False
