"""docs/cli.md says what is so: its commands are run as they stand, its tables are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from taskrouter.cli.budget import WORDS
from taskrouter.cli.exits import Exit

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


class Example(NamedTuple):
    """A command, how it ends, and the lines its output must have; ``…`` stands for anything."""

    command: str
    code: int
    lines: tuple[str, ...]


def examples() -> list[Example]:
    found = []
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.rstrip("\n").split("\n")
            says = re.search(r"# exit code (\d+)$", command)
            found.append(Example(command, int(says[1]) if says else 0, tuple(lines)))
    return found


def test_the_tables_name_every_exit_code_and_every_way_to_fit() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", TEXT, re.MULTILINE)
    assert {row for row in rows if row.isdigit()} == {str(int(code)) for code in Exit}
    assert set(WORDS.values()) <= set(rows)


def test_every_command_has_an_example() -> None:
    assert {re.search(r"taskrouter (\w+)", example.command)[1] for example in examples()} == {  # type: ignore[index]
        "demo",
        "run",
        "schema",
        "validate",
    }


@pytest.mark.slow
@pytest.mark.parametrize("example", examples(), ids=lambda example: example.command[:60])
def test_a_command_of_the_page_does_what_the_page_says(example: Example, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", f'taskrouter() {{ "$PYTHON" -m taskrouter "$@"; }}; {example.command}'],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == example.code, done.stdout
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    for line in example.lines:
        pattern = ".*".join(map(re.escape, line.split("…")))
        assert any(re.fullmatch(pattern, real) for real in printed), f"{line!r} is not in\n{done.stdout}"
