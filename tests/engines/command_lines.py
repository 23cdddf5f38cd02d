"""What the tests of command lines share: options, placements, checkpoints, and an engine's own parser."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskrouter.backends.engines.interpreter import PARSERS, clean_environment
from taskrouter.backends.engines.launch import Checkpoint, Launch, Place, Start
from taskrouter.types import CPU, GIB, DeviceId, ModelKey, ModelRequest

FLAGS_FROM = 3
"""Where an engine's own words begin."""
SEVEN_B = Checkpoint("/models/seven", 14 * GIB, kv_bytes_per_token=128 * 1024, ceiling=131_072)
SMALL = Checkpoint("/models/small", GIB, kv_bytes_per_token=16 * 1024, ceiling=4096)
FIRST = Place(DeviceId("cuda:0"), "GPU-11111111-aaaa", 80 * GIB, 79 * GIB, 24 * GIB)
SECOND = Place(DeviceId("cuda:1"), "GPU-22222222-bbbb", 80 * GIB, 60 * GIB, 24 * GIB)
RAM = Place(CPU, "", 32 * GIB, 24 * GIB, 6 * GIB)


@dataclass(frozen=True)
class Line:
    """One option, and what of its command line is its own."""

    name: str
    expected: str
    keys: dict[str, Any] = field(default_factory=dict)
    places: tuple[Place, ...] = (FIRST,)
    checkpoint: Checkpoint = SEVEN_B
    env: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def request(framework: str, **keys: Any) -> ModelRequest:
    return ModelRequest(ModelKey("m#1"), "m", framework, "org/seven", **keys)


def start(*places: Place) -> Start:
    return Start(places, 4321, "m", "secret-key")


def parse(python: str, engine: str, lines: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """What the engine's own parser says of each line, by the script that the product asks."""
    ran = subprocess.run(
        [python, str(Path(__file__).with_name("parse_lines.py")), str(PARSERS / f"{engine}.py"), json.dumps(lines)],
        env={**clean_environment(), "CUDA_VISIBLE_DEVICES": "", "HOME": os.environ["HOME"], "HF_HUB_OFFLINE": "0"},
        cwd="/", capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    answers = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"ok"')]
    assert len(answers) == len(lines), ran.stdout + ran.stderr
    return answers


def own_words(launch: Launch) -> list[str]:
    return list(launch.argv[FLAGS_FROM:])


def tight(word: str) -> str:
    """A word without the blanks of its JSON, so that a whole line can be written as one text."""
    return word.replace('": ', '":').replace(", ", ",") if word.startswith("{") else word
