"""Sizes as people write them: ``22GiB``, ``512MiB``, ``1.5GB``."""

from __future__ import annotations

import math
import re

UNITS = {
    "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip

SIZE_PATTERN = r"^\s*[0-9]+(\.[0-9]+)?\s*([KkMmGgTt][Ii]?)?[Bb]\s*$"
EXAMPLE = "a size with its unit, such as 22GiB (2^30) or 22GB (10^9)"
LARGEST = 1 << 60

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of a size with a unit; raises ``ValueError`` saying what was expected."""
    match = _SIZE.fullmatch(text)
    unit = UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(EXAMPLE)
    size = float(match[1]) * unit
    if not math.isfinite(size) or size > LARGEST:
        raise ValueError("a size below 1 EiB")
    return int(size)
