"""The how-to pages as tests read them: their code blocks, their tables, and commands run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


def page(name: str) -> str:
    """The text of a page under docs/."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks whose info string is just this, such as ``python`` or ``yaml problems``."""
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def named_files(text: str) -> dict[str, str]:
    """The blocks that are whole files: those whose first line is a comment with the file's name."""
    found = {}
    for body in re.findall(r"^```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        first = re.match(r"# ([\w./-]+\.\w+)\n", body)
        if first:
            found[first[1]] = body
    return found


def rows(text: str, heading: str) -> list[tuple[str, ...]]:
    """The rows of all tables whose first column is headed so."""
    found: list[tuple[str, ...]] = []
    for table in re.findall(rf"^\| {re.escape(heading)} \|.*\n\|[-|: ]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        found += [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.strip().split("\n")]
    return found


def quoted(cell: str) -> list[str]:
    """What stands in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def fits(pattern: str, text: str) -> bool:
    """Whether a text is what a page shows; ``…`` stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), text) is not None


class Command(NamedTuple):
    """A command of a page, how it ends, and the lines its output must have."""

    command: str
    code: int
    lines: tuple[str, ...]


def commands(text: str) -> list[Command]:
    """The commands of the ``console`` blocks, in their order."""
    found = []
    for block in blocks(text, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.rstrip("\n").split("\n")
            says = re.search(r"# exit code (\d+)$", command)
            found.append(Command(command, int(says[1]) if says else 0, tuple(lines)))
    return found


def run_command(example: Command, cache: Path) -> None:
    """Run a command of a page from the root of the checkout; fails where it does anything else than the page says."""
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        ["bash", "-c", f'taskrouter() {{ "$PYTHON" -m taskrouter "$@"; }}; {example.command}'],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == example.code, done.stdout
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    for line in example.lines:
        assert any(fits(line, real) for real in printed), f"{line!r} is not in\n{done.stdout}"
