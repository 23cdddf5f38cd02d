"""One safetensors file's header: exact sizes without reading a weight.

The format: eight bytes of little-endian length, that many bytes of JSON naming each tensor's dtype, shape and place,
then the tensors without a gap. A file shorter than its header promises was cut off.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from taskrouter.errors import CheckpointCorrupt

MOST_HEADER_BYTES = 100_000_000
"""The format's own bound on the header."""

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits per value of each dtype the format knows."""

FLOATS = frozenset(name for name in BITS if name.startswith(("F", "BF")))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its file describes it; ``bytes`` is what it takes there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_header(file: Path) -> tuple[TensorInfo, ...]:
    """List a safetensors file's tensors. Raises ``CheckpointCorrupt`` for what can't be one, ``OSError`` as it is."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start.startswith(b"version "):
            raise _corrupt(file, "is a git-lfs pointer, not the weights. Run `git lfs pull` in its folder")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise _corrupt(file, f"is cut off: {size} bytes don't even hold its header. Download it again")
        if length > MOST_HEADER_BYTES:
            raise _corrupt(file, "is no safetensors file (its header would be larger than the format allows)")
        header = stream.read(length)
    try:
        described = json.loads(header)
        described.pop("__metadata__", None)
        tensors = tuple(_tensor(name, entry) for name, entry in described.items())
        end = max((int(entry["data_offsets"][1]) for entry in described.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise _corrupt(file, f"has an unreadable header ({error}). Download it again") from error
    if size != 8 + length + end:
        what = "is cut off" if size < 8 + length + end else "is too long"
        raise _corrupt(file, f"{what}: its header describes {8 + length + end} bytes, it has {size}. Download it again")
    return tensors


def _tensor(name: str, entry: dict[str, object]) -> TensorInfo:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(offsets, list)):
        raise TypeError(f"tensor {name} is not described")
    begin, end = offsets
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"tensor {name} has a nonsensical size")
    if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
        raise ValueError(f"tensor {name}: {end - begin} bytes don't hold {shape} of {dtype}")
    return TensorInfo(name, dtype, tuple(shape), end - begin)


def _corrupt(file: Path, what: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(f"{file} {what}.")
