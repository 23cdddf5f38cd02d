"""Run the benches named on the command line, or all of them."""

from __future__ import annotations

import asyncio
import importlib
import sys

BENCHES = (
    "core",
    "lease",
    "herd",
    "loading",
    "isolation",
    "engines",
    "routed",
    "sleep",
    "batching",
    "activations",
    "policies",
    "simulate",
    "answering",
    "frames",
    "gateway",
    "gateway_loading",
)


def main() -> int:
    names = sys.argv[1:] or list(BENCHES)
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    for name in names:
        asyncio.run(importlib.import_module(f"bench.{name}").main())
    return 0


if __name__ == "__main__":
    sys.exit(main())
