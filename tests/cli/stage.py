"""A command run in this process: its exit code and what it printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAKE = """
tasks:
  look:
    kind: image_classification
    selected: eyes
    options:
      eyes: {model_id: eyes, framework: fake, engine_args: {bytes: 3MiB, answer: {cat: 0.75, dog: 0.2, emu: 0.05}}}
      blind: {model_id: blind, framework: fake, engine_args: {bytes: 1MiB, fail: error}}
      slow: {model_id: slow, framework: fake, engine_args: {bytes: 1MiB, hang: load}}
  say:
    kind: chat
    selected: parrot
    options:
      parrot: {model_id: parrot, framework: fake, engine_args: {bytes: 2MiB}}
      giant: {model_id: giant, framework: fake, vram_gb: 500000, engine_args: {bytes: 1MiB}}
"""
"""Two tasks that need nothing real."""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Result]


def write(folder: Path, text: str | bytes = FAKE, name: str = "models.yaml") -> Path:
    """A file in this folder."""
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path
