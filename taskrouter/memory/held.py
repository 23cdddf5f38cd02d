"""What a process tree still holds on GPUs after it gave memory back and lives on: the residue of a sleep.

Where the driver says which process holds what, that is it. Where it doesn't (a container, an old driver), it is what
the tree held less what the device's total fell by, and at least a CUDA context: neighbours that free memory at the same
time would make it look like less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from taskrouter.memory.nvml import Nvml, NvmlError
from taskrouter.memory.release import gpu_bytes
from taskrouter.types import GIB, Charges, DeviceId

CONTEXT_LEAST = int(0.3 * GIB)
"""A CUDA context with loaded kernels: 0.3 to 0.6 GiB a process were seen."""


class Held:
    """What a tree holds on GPUs, from before it gives memory back. Methods block for milliseconds.

    ``took`` is what it held before, for devices whose driver won't say it.
    """

    def __init__(self, nvml: Nvml | None, uuids: Mapping[DeviceId, str], pids: Iterable[int], took: Charges) -> None:
        self._nvml = nvml
        self._uuids = uuids if nvml is not None else {}
        self._pids = frozenset(pids)
        self._took = took
        self._used = {device: self._total(uuid) for device, uuid in self._uuids.items()}
        self.before = self.now()

    def now(self) -> Charges:
        """Bytes held on each GPU; a device nobody can say anything of is left out."""
        found: dict[DeviceId, int] = {}
        for device, uuid in self._uuids.items():
            held = gpu_bytes(self._nvml, uuid, self._pids)
            if held is None:
                held = self._by_total(device, uuid)
            if held is not None:
                found[device] = held
        return found

    def _by_total(self, device: DeviceId, uuid: str) -> int | None:
        before, now = self._used.get(device), self._total(uuid)
        if before is None or now is None:
            return None
        return max(self._took.get(device, 0) - max(before - now, 0), CONTEXT_LEAST)

    def _total(self, uuid: str) -> int | None:
        assert self._nvml is not None, "without NVML there are no GPUs to look at"
        try:
            return self._nvml.memory(uuid).used
        except NvmlError:
            return None
