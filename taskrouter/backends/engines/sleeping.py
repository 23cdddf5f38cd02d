"""Engines that sleep: told to over HTTP, seen to have given their memory back, and proved by one token once awake.

Nothing is sent twice (SGLang dies of that), and nothing while a health check of ours is under way. An engine that
refuses goes on as it was; after a silence or a broken connection nobody knows what it is, and it is unloaded next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from taskrouter.backends.base import Asleep
from taskrouter.backends.engines.adapter import SLEEP_BOUND_S, Adapter
from taskrouter.backends.engines.api import Broken
from taskrouter.backends.engines.model import DEATH_BOUND_S, EngineModel, Rest
from taskrouter.errors import OutOfMemory, SleepFailed, TaskRouterError
from taskrouter.memory.devices import discover, free_bytes
from taskrouter.memory.held import Held
from taskrouter.memory.nvml import open_nvml
from taskrouter.memory.ram import HostRam
from taskrouter.memory.release import tree_bytes
from taskrouter.types import GIB, Charges

TOKEN_BOUND_S = 30.0
OUTPUT_BOUND_S = 1.0
LOOK_EVERY_S = 0.1
STILL_LOOKS = 3
"""Memory has come back when so many looks in a row find the same, and less than before."""


async def demote(model: EngineModel, adapter: Adapter, *, timeout_s: float) -> Asleep:
    """Put an idle engine to sleep, and see its devices free. Raises ``SleepFailed``."""
    label = model.request.label
    if model.rest is not Rest.AWAKE:
        raise SleepFailed(f"{label} can't be put to sleep: it is {model.rest.value}")
    await model.look_away()
    try:
        held, ram = await asyncio.to_thread(_look, model)
    except SleepFailed:
        model.rest = Rest.AWAKE
        raise
    await _obeyed(model, adapter.sleep(model.api, model.request), "be put to sleep", SLEEP_BOUND_S, Rest.AWAKE)
    model.rest = Rest.ASLEEP
    model.residue = await _settled(held, timeout_s)
    if model.residue and not _less(model.residue, held):
        raise SleepFailed(
            f"{label} was put to sleep and gave nothing back within {timeout_s:g} s: "
            f"{sum(model.residue.values()) / GIB:.2f} GiB are still held"
        )
    after = await asyncio.to_thread(lambda: tree_bytes(model.process.pids()))
    if _keeps_nothing(model):
        return Asleep(after, model.residue)
    # Pinned memory is not on every driver's account of a process; that the weights are there is certain.
    return Asleep(max(after, ram + model.weight_bytes), model.residue)


async def promote(model: EngineModel, adapter: Adapter, charges: Charges) -> None:
    """Wake an engine, and let it compute a token. Raises ``OutOfMemory`` (it sleeps on) or ``SleepFailed``."""
    if model.rest is not Rest.ASLEEP:
        raise SleepFailed(f"{model.request.label} can't be woken: it is {model.rest.value}")
    await asyncio.to_thread(_check_room, model, charges)
    model.rest = Rest.BETWEEN
    # Reading its weights anew is bounded by who waits for that, as a start is.
    bound_s = None if _keeps_nothing(model) else SLEEP_BOUND_S
    await _obeyed(model, adapter.wake(model.api, model.request), "be woken", bound_s, Rest.ASLEEP)
    first = model.api.try_out(*adapter.warm_up(model.request, model.name))
    await _obeyed(model, first, "compute anything once awake", TOKEN_BOUND_S, Rest.BETWEEN)
    model.residue = {}
    model.rest = Rest.AWAKE


async def _obeyed(
    model: EngineModel, work: Coroutine[Any, Any, None], what: str, bound_s: float | None, refused: Rest
) -> None:
    """Let the engine do as it is told, while it lives and within the bound; ``refused``: what it is where it won't."""
    label, exited = model.request.label, model.process.exited
    done = asyncio.ensure_future(work)
    either: set[asyncio.Future[Any]] = {done, exited}
    try:
        await asyncio.wait(either, timeout=bound_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        done.cancel()
    await asyncio.wait({done})
    error = None if done.cancelled() else done.exception()
    if isinstance(error, Broken) and not exited.done():
        await asyncio.wait({exited}, timeout=DEATH_BOUND_S)
    if exited.done():
        # Its last words may still be on their way.
        await asyncio.to_thread(model.process.output.join, OUTPUT_BOUND_S)
        raise SleepFailed(f"{label} couldn't {what}: {model.death()}") from error
    if done.cancelled():
        raise SleepFailed(f"{label} couldn't {what} within {bound_s or 0:g} s")
    if error is not None:
        if isinstance(error, TaskRouterError):
            model.rest = refused
        raise SleepFailed(f"{label} couldn't {what}: {error}") from error


def _keeps_nothing(model: EngineModel) -> bool:
    """Whether it drops its weights, and reads them anew when it wakes."""
    return model.request.sleep == "discard"


def _look(model: EngineModel) -> tuple[Held, int]:
    """What its tree holds on GPUs and in RAM. Blocks for milliseconds. Raises ``SleepFailed`` where RAM is short."""
    free = HostRam().available()
    if free < model.weight_bytes and not _keeps_nothing(model):
        raise SleepFailed(
            f"{model.request.label} can't be put to sleep: its weights take {model.weight_bytes / GIB:.2f} GiB of RAM, "
            f"and {free / GIB:.2f} GiB are free"
        )
    uuids = {place.device: place.uuid for place in model.places if place.on_gpu and place.uuid}
    pids = model.process.pids()
    nvml = open_nvml() if uuids else None
    return Held(nvml, uuids, {*model.pids, *pids}, model.took()), tree_bytes(pids)


async def _settled(held: Held, timeout_s: float) -> Charges:
    """What stays on its GPUs, once that is less than before and doesn't change any more."""
    until, same = time.monotonic() + timeout_s, 0
    last = await asyncio.to_thread(held.now)
    while last and (same < STILL_LOOKS or not _less(last, held)) and time.monotonic() < until:
        await asyncio.sleep(LOOK_EVERY_S)
        now = await asyncio.to_thread(held.now)
        same, last = (same + 1 if now == last else 0), now
    return last


def _less(now: Charges, held: Held) -> bool:
    return sum(now.values()) < sum(held.before.values())


def _check_room(model: EngineModel, charges: Charges) -> None:
    """See that what it takes beside what it kept is really free. Blocks for milliseconds. Raises ``OutOfMemory``."""
    there = {info.id: info for info in discover()}
    for place in model.places:
        info = there.get(place.device)
        free = free_bytes(info) if info is not None and place.on_gpu else None
        need = charges.get(place.device, 0) - model.residue.get(place.device, 0)
        if free is not None and free < need:
            raise OutOfMemory(
                f"{model.request.label} wakes with {need / GIB:.2f} GiB more on {place.device}, but only "
                f"{free / GIB:.2f} GiB are really free there: somebody else took it. Try again, or lower "
                f"memory.devices.{place.device}.budget."
            )
