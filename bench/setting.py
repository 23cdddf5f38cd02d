"""A manager over fake models, for benches that measure the manager and not a model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from taskrouter.manager import ModelManager, StillMachine
from taskrouter.types import GIB

FILE = """
tasks:
  hot: {selected: a, options: {a: {model_id: hot, framework: fake, vram_gb: 1}}}
  cold: {selected: b, options: {b: {model_id: cold, framework: fake, vram_gb: 1}}}
memory: {devices: {cuda:0: {budget: 24GiB}}}
"""


@contextlib.asynccontextmanager
async def fake_manager(known: int = 2, *, recorded: bool = False) -> AsyncIterator[ModelManager]:
    """``known`` models stand in the file; two of them are ever used. ``recorded``: ``record_trace`` is on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "models.yaml"
        others = "".join(f"      o{n}: {{model_id: o{n}, framework: fake}}\n" for n in range(known - 2))
        many = f"  many:\n    selected: o0\n    options:\n{others}" if others else ""
        trace = "telemetry: {record_trace: trace.jsonl}\n" if recorded else ""
        path.write_text(FILE.replace("memory:", many + "memory:") + trace, encoding="utf-8")
        async with ModelManager(path, machine=StillMachine({"cuda:0": 24 * GIB})) as manager:
            yield manager
