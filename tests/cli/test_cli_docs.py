"""docs/cli.md says what is so: its commands are run as they stand, its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from taskrouter.cli.budget import WORDS
from taskrouter.cli.exits import Exit
from tests.pages import Command, commands, page, run_command

TEXT = page("cli.md")


def test_the_tables_name_every_exit_code_and_every_way_to_fit() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", TEXT, re.MULTILINE)
    assert {row for row in rows if row.isdigit()} == {str(int(code)) for code in Exit}
    assert set(WORDS.values()) <= set(rows)


def test_every_command_has_an_example() -> None:
    assert {re.search(r"taskrouter (\w+)", example.command)[1] for example in commands(TEXT)} == {  # type: ignore[index]
        "demo",
        "engines",
        "run",
        "schema",
        "validate",
    }


@pytest.mark.slow
@pytest.mark.parametrize("example", commands(TEXT), ids=lambda example: example.command[:60])
def test_a_command_of_the_page_does_what_the_page_says(example: Command, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    run_command(example, tmp_path)
