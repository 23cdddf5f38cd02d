"""Transformers in this process (the manager's, or a model's own): chat, embeddings, what is seen or heard in media.

Models are loaded one at a time by daemon threads, called in a thread of their own each, and given back when unloaded:
the storages are seen dead, not merely let go. Nothing heavy is imported here; ``preflight`` and ``load`` import
torch.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from taskrouter.backends.base import Asleep, LoadedModel, Preflight
from taskrouter.backends.hf.arena import why_stays
from taskrouter.backends.hf.examine import examine
from taskrouter.backends.hf.failures import forget_frames, out_of_memory
from taskrouter.backends.hf.families import LACKS
from taskrouter.backends.hf.loading import load_parts
from taskrouter.backends.hf.model import TransformersModel
from taskrouter.backends.hf.stopping import Stop
from taskrouter.backends.hf.storages import StorageRef, bytes_by_device, give_back, still_alive
from taskrouter.backends.hf.threads import run_in_daemon, run_stoppable
from taskrouter.errors import OutOfMemory, SleepFailed
from taskrouter.media.limits import MediaLimits
from taskrouter.types import Charges, DeviceId, ModelKey, ModelRequest, Traits

logger = logging.getLogger(__name__)

_TRAITS = Traits(serial_group="transformers", cancellable=True, slots=1, start_s=2.0)
_LOOK_EVERY_S = 0.02


class InProcess:
    """Models beside the caller. ``limits`` guard the images and sounds they are given."""

    def __init__(self, limits: MediaLimits | None = None) -> None:
        self.limits = limits if limits is not None else MediaLimits()
        self._left_behind: dict[ModelKey, tuple[StorageRef, ...]] = {}

    def traits(self, request: ModelRequest) -> Traits:
        """One load at a time; one operation at a time, as far as preflight doesn't find that it can do several."""
        return replace(_TRAITS, can_sleep=why_stays(request) is None)

    async def preflight(self, request: ModelRequest) -> Preflight:
        """Check the request, fetching what isn't in the cache; the event loop stays free."""
        checkpoint = await run_in_daemon(f"preflight:{request.label}", lambda: examine(request))
        slots = request.batch if checkpoint.shares_passes else 1
        lacks = LACKS.get(checkpoint.family, {})
        return Preflight(checkpoint.need, checkpoint.verbs, lacks, checkpoint.context, slots)

    async def load(self, request: ModelRequest, devices: tuple[DeviceId, ...], charges: Charges) -> LoadedModel:
        """Load in a daemon thread. Cancelled, it stops between two weights, and frees what it had read."""
        stop = Stop(request.label)
        # By itself: should the files be gone from the cache they are fetched, which can't be stopped but left alone.
        checkpoint = await run_in_daemon(f"examine:{request.label}", lambda: examine(request))

        def work() -> TransformersModel:
            parts = load_parts(request, checkpoint, devices, charges, stop)
            return TransformersModel(request, checkpoint, parts, self.limits)

        return await run_stoppable(f"load:{request.label}", work, stop, abandoned=_drop)

    async def demote(self, model: LoadedModel, *, timeout_s: float) -> Asleep:
        """Copy the weights to host RAM in a daemon thread, and watch the storages on the devices die."""
        assert isinstance(model, TransformersModel)
        try:
            await _settled(model.rested(), timeout_s)
            # Nobody waits any more: what the thread comes to is dropped, as it is with a load.
            drop = functools.partial(_drop_asleep, model)
            ram_bytes, left = await run_in_daemon(f"sleep:{model.key}", model.sleep, abandoned=drop)
        except Exception as error:
            forget_frames(error, note=False)  # they hold the weights
            raise SleepFailed(f"{model!r} could not be put to sleep: {error}") from error
        await self._watch(left, timeout_s)
        alive = still_alive(left)
        model.keep_in_sight(alive)
        if alive:
            # Unloading it says what is left behind, and goes on to watch it; waking it would take as much again.
            raise SleepFailed(f"{model!r}: something still refers to its weights ({bytes_by_device(alive)} bytes)")
        return Asleep(ram_bytes)

    async def promote(self, model: LoadedModel, charges: Charges) -> None:
        """Copy the weights back in a daemon thread."""
        assert isinstance(model, TransformersModel)
        try:
            await run_in_daemon(f"wake:{model.key}", model.wake)
        except Exception as error:
            kind = OutOfMemory if out_of_memory(error) else SleepFailed
            forget_frames(error, note=False)
            await run_in_daemon("give back", lambda: give_back(collect=True))
            raise kind(f"{model!r} did not wake: {error}") from error
        await run_in_daemon("give back", lambda: give_back(collect=False))

    async def unload(self, model: LoadedModel, *, timeout_s: float) -> Charges:
        """Drop the model and watch its storages die; what is still held after ``timeout_s`` is the answer."""
        if not isinstance(model, TransformersModel):
            raise TypeError(f"{model!r} was not loaded by this backend")
        rested = model.rested()
        storages = model.release()
        key = model.key
        del model
        try:
            await _settled(rested, timeout_s)
            await self._watch(storages, timeout_s)
        except Exception:
            # A driver in an error state can't empty its cache; what matters is what is still alive.
            logger.exception("giving back the memory of %s went wrong", key)
        finally:
            alive = still_alive(storages)
            if alive:
                self._left_behind[key] = (*self._left_behind.get(key, ()), *alive)
        return bytes_by_device(alive)

    async def residue(self, key: str) -> Charges:
        """Look again at what an unload of this model left behind."""
        left = still_alive(self._left_behind.get(ModelKey(key), ()))
        if left:
            self._left_behind[ModelKey(key)] = left
        elif self._left_behind.pop(ModelKey(key), ()):
            await run_in_daemon("give back", lambda: give_back(collect=False))
        return bytes_by_device(left)

    async def close(self) -> None:
        """Forget what was left behind."""
        self._left_behind.clear()

    async def _watch(self, storages: Sequence[StorageRef], timeout_s: float) -> None:
        """Wait for storages to die, and give their memory back."""
        until = time.monotonic() + timeout_s
        alive = still_alive(storages)
        if alive:
            # Reference cycles. Collecting holds the GIL while it walks the whole heap, so only where it is needed.
            await run_in_daemon("collect", lambda: give_back(collect=True))
            alive = still_alive(storages)
        while alive and time.monotonic() < until:
            await asyncio.sleep(_LOOK_EVERY_S)
            alive = still_alive(storages)
        await run_in_daemon("give back", lambda: give_back(collect=False))


async def _settled(outcome: Future[None], timeout_s: float) -> None:
    await asyncio.wait({asyncio.wrap_future(outcome)}, timeout=timeout_s)


def _drop(model: TransformersModel) -> None:
    model.release()
    give_back(collect=True)


def _drop_asleep(model: TransformersModel, _: object) -> None:
    _drop(model)
