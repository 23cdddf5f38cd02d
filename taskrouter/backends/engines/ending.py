"""The end of a process tree that served a model: killed for certain, and its memory seen free."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from taskrouter.backends.engines.launch import Place
from taskrouter.backends.engines.supervisor import Process
from taskrouter.memory.nvml import open_nvml
from taskrouter.memory.release import Release
from taskrouter.types import Charges, ModelKey

LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class _Left:
    """What an end left behind: processes that can't be killed, or GPU memory that was not seen free."""

    pids: tuple[int, ...]
    charges: Charges
    release: Release


class Endings:
    """Ends trees, and keeps in sight what they left behind."""

    def __init__(self) -> None:
        self._left: dict[ModelKey, _Left] = {}

    async def end(
        self,
        key: ModelKey,
        process: Process,
        places: tuple[Place, ...],
        pids: Iterable[int],
        took: Charges,
        *,
        grace_s: float,
        timeout_s: float,
    ) -> Charges:
        """Stop a tree and see its memory free, for at most ``timeout_s`` seconds; answers what is still missing.

        ``pids`` are its processes when it was ready, ``took`` what it held on its devices; it may take ``grace_s`` to
        end by itself (0: it is killed at once).
        """
        until = time.monotonic() + timeout_s
        uuids = {place.device: place.uuid for place in places if place.on_gpu and place.uuid}
        nvml = await asyncio.to_thread(open_nvml) if uuids else None
        # Of one that has died the pids are known from when it was measured.
        everybody = {*pids, *await asyncio.to_thread(process.pids)}
        alive = not process.exited.done()
        release = await asyncio.to_thread(functools.partial(Release, nvml, uuids, everybody, took, alive=alive))
        left = await process.stop(min(grace_s, timeout_s / 2)) if grace_s else await process.kill()
        missing: Charges = took if left else await asyncio.to_thread(release.missing)
        while missing and not left and time.monotonic() < until:
            await asyncio.sleep(LOOK_EVERY_S)
            missing = await asyncio.to_thread(release.missing)
        if missing:
            self._left[key] = _Left(tuple(left), took, release)
        return missing

    async def residue(self, key: ModelKey) -> Charges:
        """Look again at what the end of this model's tree left behind."""
        left = self._left.get(key)
        if left is None:
            return {}
        if any(psutil.pid_exists(pid) for pid in left.pids):
            return left.charges
        missing = await asyncio.to_thread(left.release.missing)
        if not missing:
            del self._left[key]
        return missing

    def forget(self) -> None:
        self._left.clear()
