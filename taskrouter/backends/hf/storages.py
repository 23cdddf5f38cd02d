"""A model's storages: how many bytes they are, and whether they are dead.

A storage counts once however many tensors share it (tied weights), and buffers count also where they aren't saved. On
the CPU a loaded checkpoint is mapped from its file, so the size of its storages, not a difference of RSS, is what it
takes.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from taskrouter.types import CPU, Charges, DeviceId


@dataclass(frozen=True, slots=True)
class StorageRef:
    """One storage, not kept alive: where it is, its bytes, and a weak reference."""

    device: DeviceId
    bytes: int
    weak: Any

    @property
    def alive(self) -> bool:
        return not self.weak.expired()


def storages_of(module: Any) -> tuple[StorageRef, ...]:
    """Refer weakly to each storage under a module's parameters and buffers, and under what quantizes those."""
    from torch.multiprocessing.reductions import StorageWeakRef

    found: dict[tuple[DeviceId, int], StorageRef] = {}
    for tensor in _tensors(module):
        storage = tensor.untyped_storage()
        if storage.device.type == "meta" or not storage.nbytes():
            continue
        device = device_id(storage.device)
        found.setdefault((device, storage.data_ptr()), StorageRef(device, storage.nbytes(), StorageWeakRef(storage)))
    return tuple(found.values())


def _tensors(module: Any) -> Iterator[Any]:
    for tensor in (*module.parameters(), *module.buffers()):
        yield from _plain(tensor)
        yield from _beside(tensor)


def _plain(tensor: Any) -> Iterator[Any]:
    """The tensors that hold a tensor's data: torchao's have no storage, but values and scales that do."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain(getattr(tensor, name))


def _beside(holder: Any, depth: int = 2) -> Iterator[Any]:
    """What bitsandbytes hangs on a weight: its scales, of which some are quantized and have scales of their own."""
    import torch

    for value in vars(holder).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif depth and type(value).__name__ == "QuantState":
            yield from _beside(value, depth - 1)


def device_id(device: Any) -> DeviceId:
    """Our name of a ``torch.device``."""
    return CPU if device.type == "cpu" else DeviceId(f"{device.type}:{device.index or 0}")


def bytes_by_device(storages: Iterable[StorageRef]) -> Charges:
    """Sum bytes per device."""
    summed: Counter[DeviceId] = Counter()
    for storage in storages:
        summed[storage.device] += storage.bytes
    return dict(summed)


def still_alive(storages: Sequence[StorageRef]) -> tuple[StorageRef, ...]:
    """Those that something still refers to."""
    return tuple(storage for storage in storages if storage.alive)


def give_back(*, collect: bool) -> None:
    """Return freed memory to the system and the driver; ``collect``: first break reference cycles, holding the GIL."""
    if collect:
        gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    _trim()


def _trim() -> None:
    # glibc keeps freed heap pages; other C libraries have no such call.
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
