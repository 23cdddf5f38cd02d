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
async def fake_manager() -> AsyncIterator[ModelManager]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "models.yaml"
        path.write_text(FILE, encoding="utf-8")
        async with ModelManager(path, machine=StillMachine({"cuda:0": 24 * GIB})) as manager:
            yield manager
