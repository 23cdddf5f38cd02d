"""``taskrouter spend``: tables and JSON of what was spent, and nothing created by looking."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from taskrouter.cli.spend import dollars
from taskrouter.spend import SpendLedger
from taskrouter.spend.file import VERSION
from taskrouter.spend.grouping import first_day

from .stage import Cli

DAY_S = 86400
NOTHING = {"requests": 0, "input_tokens": 0, "output_tokens": 0, "usd": 0.0}


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "taskrouter" / "spend.db"


@pytest.fixture
def today() -> float:
    """Noon of today, Unix time: the same day for the test and the command, unless midnight falls between them."""
    return time.time() // DAY_S * DAY_S + DAY_S / 2


def fill(path: Path, today: float) -> None:
    """Three requests today, one three days ago, one a month ago."""
    now = today

    async def spend() -> None:
        nonlocal now
        ledger = SpendLedger(path, clock=lambda: now)
        for days_ago, provider, task, option, usd in (
            (0, "anthropic", "claims", "best", 0.25),
            (0, "anthropic", "claims", "best", 1.25),
            (0, "openai", "claims", "[cheap]", 1e-8),
            (3, "anthropic", "summary", "best", 2000.0),
            (30, "google", "summary", "long", 0.125),
        ):
            now = today - days_ago * DAY_S
            await ledger.record(
                provider=provider, task=task, option=option, model_id=f"{provider}-1",
                input_tokens=1000, output_tokens=10, usd=usd,
            )  # fmt: skip
        await ledger.close()

    asyncio.run(spend())


def test_nothing_spent_is_said_and_creates_no_file(cli: Cli, tmp_path: Path, path: Path) -> None:
    result = cli("spend")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("nothing was spent since ")
    assert str(path) in result.out
    data = cli("spend", "--json").data
    assert (data["ok"], data["spend"], data["total"], data["file"]) == (True, [], NOTHING, str(path))
    assert cli("spend", "--file", tmp_path / "other.db").code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_without_a_call_in_these_days_says_so(cli: Cli, path: Path, today: float) -> None:
    fill(path, today - 365 * DAY_S)
    result = cli("spend")
    assert result.code == 0
    assert "holds no call to a provider" in result.out


def test_people_get_a_table_with_a_line_for_each_option_and_the_total(cli: Cli, path: Path, today: float) -> None:
    fill(path, today)
    result = cli("spend")
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert " ".join(lines[0]) == "task option provider model requests input tokens output tokens spent"
    assert lines[1:] == [
        ["summary", "best", "anthropic", "anthropic-1", "1", "1,000", "10", "$2,000.00"],
        ["claims", "best", "anthropic", "anthropic-1", "2", "2,000", "20", "$1.50"],
        ["claims", "[cheap]", "openai", "openai-1", "1", "1,000", "10", "<$0.000001"],
        ["total", "4", "4,000", "40", "$2,001.50"],
        ["since", first_day(7, now=today), "(UTC),", "from", str(path)],
    ]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("provider", [{"provider": "anthropic"}, {"provider": "google"}, {"provider": "openai"}]),
        ("task", [{"task": "summary"}, {"task": "claims"}]),
        ("day", [{"day": 0}, {"day": 3}, {"day": 30}]),
        (
            "option",
            [
                {"task": "summary", "option": "best", "provider": "anthropic", "model_id": "anthropic-1"},
                {"task": "claims", "option": "best", "provider": "anthropic", "model_id": "anthropic-1"},
                {"task": "summary", "option": "long", "provider": "google", "model_id": "google-1"},
                {"task": "claims", "option": "[cheap]", "provider": "openai", "model_id": "openai-1"},
            ],
        ),
    ],
)
def test_programs_get_objects_and_the_total(
    cli: Cli, path: Path, today: float, by: str, expected: list[dict[str, Any]]
) -> None:
    fill(path, today)
    data = cli("spend", "--days", 31, "--by", by, "--json").data
    figures = {"requests", "input_tokens", "output_tokens", "usd"}
    names = [{key: value for key, value in row.items() if key not in figures} for row in data["spend"]]
    if by == "day":
        expected = [{"day": first_day(row["day"] + 1, now=today)} for row in expected]
    assert names == expected
    assert data["by"] == by
    assert data["since"] == first_day(31, now=today)
    assert data["total"] == {"requests": 5, "input_tokens": 5000, "output_tokens": 50, "usd": 2001.62500001}
    assert sum(row["requests"] for row in data["spend"]) == 5


def test_today_is_one_day_and_a_million_days_are_all(cli: Cli, path: Path, today: float) -> None:
    fill(path, today)
    assert cli("spend", "--days", 1, "--json").data["total"]["requests"] == 3
    assert cli("spend", "--days", 10**6, "--json").data["total"]["requests"] == 5
    assert cli("spend", "--days", 0).code == 2
    assert cli("spend", "--by", "weather").code == 2


def test_another_ledger_is_read_where_it_is_named(cli: Cli, tmp_path: Path, path: Path, today: float) -> None:
    fill(tmp_path / "elsewhere.db", today)
    assert cli("spend", "--file", tmp_path / "elsewhere.db", "--json").data["total"]["requests"] == 4
    assert not path.exists()


@pytest.mark.parametrize("bad", [b"tasks:\n" * 100, None])
def test_a_ledger_that_cannot_be_read_is_an_error_and_stays_as_it_is(cli: Cli, path: Path, bad: bytes | None) -> None:
    path.parent.mkdir(parents=True)
    if bad is not None:
        path.write_bytes(bad)
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = path.read_bytes()
    result = cli("spend", "--json")
    assert (result.code, result.data["error"]["type"]) == (1, "SpendUnreadable")
    assert str(path) in result.err
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == ["spend.db"]


@pytest.mark.parametrize(
    ("usd", "text"),
    [(0, "$0.00"), (1234.5, "$1,234.50"), (0.5, "$0.5000"), (0.00125, "$0.001250"), (1e-8, "<$0.000001")],
)
def test_small_sums_keep_their_digits(usd: float, text: str) -> None:
    assert dollars(usd) == text
