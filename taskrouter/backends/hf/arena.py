"""A sleeping model's weights: every storage once, in one stretch of host RAM, and back again.

The tensors stay the objects they are (tied weights, buffers that aren't saved, views: whatever refers to them goes on
referring to them); only what they point at changes. The stretch is pinned where CUDA is, by registering it: torch's
pinned allocator would round it up to a power of two, and keep it. It is touched before it is filled, as huge pages
where the system has them: page after page, the kernel would zero it more slowly than it is copied.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import sys
from dataclasses import dataclass
from typing import Any

from taskrouter.backends.hf.storages import StorageRef, storages_of
from taskrouter.backends.sleep import why_awake
from taskrouter.memory.ram import HostRam
from taskrouter.types import GIB, ModelRequest

logger = logging.getLogger("taskrouter")

QUANTIZED = "its weights are quantized, and not all of them, or of what points at them, can be seen from outside"
NOT_QUANTIZED_LOADED = (None, "none", "gguf")
"""What an option may say of quantization whose weights are plain tensors all the same: a GGUF is expanded on load."""
HUGE_PAGE = 2 << 20
MADV_HUGEPAGE = 14
ALIGNMENT = 512
"""Bytes; what CUDA's copies and torch's allocator like their addresses to be a multiple of."""


@dataclass(slots=True)
class _Piece:
    """One storage: on which device it was, and where its bytes are in the arena."""

    device: Any
    start: int
    bytes: int


@dataclass(slots=True)
class _View:
    """One tensor: into which storage it looks, and how."""

    tensor: Any
    piece: int
    offset: int
    size: Any
    stride: Any


class Arena:
    """A module asleep. ``bytes`` is the host RAM it takes."""

    def __init__(self, module: Any) -> None:
        """Copy all weights; the module is as it was until ``let_go``. Blocks. Raises ``MemoryError`` or torch's own.

        What is free is asked first: the kernel promises more RAM than it has, and kills who uses it.
        """
        import torch

        self._pieces: list[_Piece] = []
        self._views: list[_View] = []
        places: dict[tuple[Any, int], int] = {}
        sources: list[Any] = []
        self.bytes = 0
        for tensor in (*module.parameters(), *module.buffers()):
            storage = tensor.untyped_storage()
            if storage.device.type == "meta":
                continue
            place = places.setdefault((storage.device, storage.data_ptr()), len(sources)) if storage.nbytes() else -1
            if place == len(sources):
                sources.append(storage)
                self._pieces.append(_Piece(storage.device, self.bytes, storage.nbytes()))
                self.bytes += -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
            if place >= 0:
                self._views.append(_View(tensor, place, tensor.storage_offset(), tensor.size(), tensor.stride()))
        free = HostRam().available()
        if free < self.bytes:
            raise MemoryError(f"it takes {self.bytes / GIB:.2f} GiB of RAM, and {free / GIB:.2f} GiB are free")
        self._host = torch.empty(self.bytes, dtype=torch.uint8)
        _touch(self._host)
        self._pinned = _pin(self._host)
        try:
            for piece, storage in zip(self._pieces, sources, strict=True):
                self._bytes_of(piece).copy_(_flat(storage), non_blocking=self._pinned)
            _wait(self._pieces)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Arena {self.bytes} bytes, {'pinned' if self._pinned else 'pageable'}>"

    def let_go(self) -> None:
        """Let the tensors point at nothing: their devices' bytes are free once nobody else refers to them."""
        import torch

        for view in self._views:
            view.tensor.data = torch.empty(0, dtype=view.tensor.dtype, device=view.tensor.device)

    def storage(self) -> tuple[StorageRef, ...]:
        """A weak reference to the stretch itself: what must die when the model is unloaded asleep."""
        import torch

        holder = torch.nn.Module()
        holder.register_buffer("host", self._host)
        return storages_of(holder)

    def wake(self) -> None:
        """Copy all back and let the tensors point there. Blocks. On an error (no room) the model is still asleep."""
        import torch

        fresh = [torch.empty(piece.bytes, dtype=torch.uint8, device=piece.device) for piece in self._pieces]
        for piece, target in zip(self._pieces, fresh, strict=True):
            target.copy_(self._bytes_of(piece), non_blocking=self._pinned)
        _wait(self._pieces)
        for view in self._views:
            tensor = torch.empty(0, dtype=view.tensor.dtype, device=self._pieces[view.piece].device)
            tensor.set_(fresh[view.piece].untyped_storage(), view.offset, view.size, view.stride)
            view.tensor.data = tensor

    def close(self) -> None:
        """Give the stretch back. Idempotent."""
        host, self._host = self._host, None
        self._views = []
        if host is not None and self._pinned:
            _unpin(host)

    def _bytes_of(self, piece: _Piece) -> Any:
        return self._host[piece.start : piece.start + piece.bytes]


def why_stays(request: ModelRequest) -> str | None:
    """Why an option's model never sleeps, as far as the option says; ``None``: nothing speaks against it. Pure."""
    return why_awake(request) or (None if request.quantization in NOT_QUANTIZED_LOADED else QUANTIZED)


def why_not(module: Any) -> str | None:
    """Why a loaded module's weights can't be moved; ``None``: they can.

    What quantizes them may keep some in other places than parameters and buffers (bitsandbytes), or remember where they
    are on the device (the kernels of GPTQ); and a checkpoint may be quantized though its option doesn't say so.
    """
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if getattr(module, "hf_quantizer", None) is not None:
        return QUANTIZED
    for tensor in (*module.parameters(), *module.buffers()):
        if is_traceable_wrapper_subclass(tensor):
            return QUANTIZED
    return None


def _touch(host: Any) -> None:
    """Have the kernel back the stretch with pages, several threads at once; huge ones, which are fewer to ask for."""
    start = -(-host.data_ptr() // HUGE_PAGE) * HUGE_PAGE
    length = (host.data_ptr() + host.nbytes - start) // HUGE_PAGE * HUGE_PAGE
    madvise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    if madvise is not None and length > 0:
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_HUGEPAGE)
    host[:: mmap.PAGESIZE].zero_()


def _flat(storage: Any) -> Any:
    import torch

    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _wait(pieces: list[_Piece]) -> None:
    import torch

    for device in {piece.device for piece in pieces if piece.device.type == "cuda"}:
        torch.cuda.synchronize(device)


def _pin(host: Any) -> bool:
    """Page-lock the stretch where CUDA is in use; without it copies are slower, and right all the same."""
    import torch

    if not torch.cuda.is_initialized() or not host.nbytes:
        return False
    code = int(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), host.nbytes, 0))
    if code:
        logger.info("host RAM could not be pinned for a sleeping model (CUDA error %d): waking will be slower", code)
    return code == 0


def _unpin(host: Any) -> None:
    import torch

    torch.cuda.cudart().cudaHostUnregister(host.data_ptr())
