"""Swap-in from host RAM on a GPU, against a plain ``copy_`` of the same bytes from pinned memory (goal: ≥ 0.8).

``python -m bench.gpu.swap_in``
"""

from __future__ import annotations

import sys

from bench.measure import show
from bench.sleep import rows


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print("there is no GPU here that torch can use; nothing was measured", file=sys.stderr)
        return 1
    torch.zeros(1, device="cuda:0")  # a context, so that memory is pinned
    show(f"swap-in on {torch.cuda.get_device_name(0)}", rows("cuda:0"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
