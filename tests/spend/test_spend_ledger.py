"""The spend ledger in one process: what it counts, when it is on disk, and that nobody's call fails for it."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from taskrouter.spend import SpendLedger, SpendUnreadable, Spent, default_path, file, read_spent

pytestmark = pytest.mark.anyio

MIDNIGHT = 1_800_057_600.0
"""2027-01-16 00:00:00 UTC."""


class Clock:
    """A clock that tests set."""

    def __init__(self, now: float = MIDNIGHT - 60) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spend.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ledger(path: Path, clock: Clock) -> AsyncIterator[SpendLedger]:
    async with aclosing_ledger(SpendLedger(path, clock=clock)) as opened:
        yield opened


@asynccontextmanager
async def aclosing_ledger(ledger: SpendLedger) -> AsyncIterator[SpendLedger]:
    try:
        yield ledger
    finally:
        await ledger.close()


async def spend(
    ledger: SpendLedger, usd: float = 0.5, *, provider: str = "anthropic", task: str = "claims", option: str = "best",
    model_id: str = "m-1", tokens: int = 3,
) -> None:  # fmt: skip
    await ledger.record(
        provider=provider, task=task, option=option, model_id=model_id, input_tokens=tokens, output_tokens=1, usd=usd
    )


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody else's transaction, which no other can be beside."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert {record.levelno for record in caplog.records} <= {logging.WARNING}
    assert {record.name for record in caplog.records} <= {"taskrouter"}
    return [record.getMessage() for record in caplog.records]


def database(path: Path, *statements: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


# --- counting ---------------------------------------------------------------------------------------------------------


async def test_what_is_recorded_is_counted_and_on_disk(ledger: SpendLedger, path: Path) -> None:
    await spend(ledger, 0.25)
    await spend(ledger, 0.5)
    await spend(ledger, 2.0, provider="openai", model_id="g")
    assert ledger.spent_today("anthropic") == 0.75
    assert ledger.spent_today("openai") == 2.0
    assert ledger.spent_today("google") == 0.0
    expected = [
        Spent("2027-01-15", "openai", "claims", "best", "g", 1, 3, 1, 2.0),
        Spent("2027-01-15", "anthropic", "claims", "best", "m-1", 2, 6, 2, 0.75),
    ]
    assert ledger.report() == read_spent(path) == expected
    assert "3 commits, 0 requests in memory" in repr(ledger)


@pytest.mark.parametrize(("usd", "times", "total"), [(1e-8, 1000, 1e-5), (0.1, 10, 1.0), (3.75e-8, 999, 3.74625e-5)])
async def test_sums_are_exact(ledger: SpendLedger, usd: float, times: int, total: float) -> None:
    assert sum([usd] * times) != total or usd == 3.75e-8, "what floats alone would make of it"
    await asyncio.gather(*[spend(ledger, usd) for _ in range(times)])
    assert ledger.spent_today("anthropic") == total
    assert [(spent.requests, spent.usd) for spent in ledger.report()] == [(times, total)]


@pytest.mark.parametrize("usd", [-0.01, math.nan, math.inf, 1e5])
async def test_dollars_that_are_none_are_refused_and_not_counted(ledger: SpendLedger, usd: float) -> None:
    with pytest.raises(ValueError, match="anthropic costs from 0 to"):
        await spend(ledger, usd)
    with pytest.raises(ValueError, match="-1 tokens"):
        await spend(ledger, tokens=-1)
    assert (ledger.spent_today("anthropic"), ledger.report()) == (0, [])


async def test_names_of_any_kind_are_kept_and_a_lone_surrogate_harms_nobody(ledger: SpendLedger) -> None:
    await asyncio.gather(spend(ledger, task="ça; DROP TABLE spent"), spend(ledger, task="\ud800"))
    assert {spent.task for spent in ledger.report()} == {"ça; DROP TABLE spent", "?"}


async def test_the_report_is_sorted_by_day_and_dollars_and_begins_where_it_is_told(
    ledger: SpendLedger, clock: Clock
) -> None:
    for day in range(3):
        clock.now = MIDNIGHT + day * 86400
        await spend(ledger, 0.25, option="cheap")
        await spend(ledger, 0.5, option="best")
    found = [(spent.day, spent.option) for spent in ledger.report(since_day="2027-01-17")]
    assert found == [(f"2027-01-{day}", option) for day in (18, 17) for option in ("best", "cheap")]
    assert len(ledger.report()) == 6


async def test_a_clock_that_passes_midnight_and_jumps_back_counts_for_its_day(
    ledger: SpendLedger, clock: Clock
) -> None:
    await spend(ledger, 0.25)
    clock.now = MIDNIGHT
    assert ledger.spent_today("anthropic") == 0
    await spend(ledger, 0.5)
    assert ledger.spent_today("anthropic") == 0.5
    clock.now = MIDNIGHT - 1
    assert ledger.spent_today("anthropic") == 0.25
    await spend(ledger, 1.0)
    assert ledger.spent_today("anthropic") == 1.25
    clock.now = 0.0
    assert ledger.spent_today("anthropic") == 0
    assert [(spent.day, spent.usd) for spent in ledger.report()] == [("2027-01-16", 0.5), ("2027-01-15", 1.25)]


# --- one thread, many callers -----------------------------------------------------------------------------------------


async def test_records_made_while_one_is_written_are_one_transaction(ledger: SpendLedger, path: Path) -> None:
    await spend(ledger, 0.5)
    with locked(path) as other:
        waiting = [asyncio.ensure_future(spend(ledger, 0.25)) for _ in range(100)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        assert ledger.spent_today("anthropic") == 25.5, "counted before it is committed"
        assert [spent.usd for spent in ledger.report()] == [25.5]
        other.execute("COMMIT")
    await asyncio.gather(*waiting)
    assert ledger.spent_today("anthropic") == 25.5
    assert ledger.commits <= 3, "the first, perhaps one that began before all had come, and the rest"


@pytest.mark.slow
async def test_ten_thousand_concurrent_records_lose_nothing(ledger: SpendLedger, path: Path) -> None:
    await asyncio.gather(*[spend(ledger, 0.0001, option=f"o{n % 7}") for n in range(10_000)])
    assert ledger.spent_today("anthropic") == 1.0
    found = read_spent(path)
    assert sum(spent.requests for spent in found) == 10_000
    assert sum(spent.input_tokens for spent in found) == 30_000


async def test_a_cancelled_caller_loses_nothing(ledger: SpendLedger, path: Path) -> None:
    await spend(ledger, 0.25)
    with locked(path) as other:
        caller = asyncio.ensure_future(spend(ledger, 0.5))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        other.execute("COMMIT")
    await ledger.close()
    assert [(spent.requests, spent.usd) for spent in read_spent(path)] == [(2, 0.75)]


def test_loops_that_come_and_go_and_loops_in_threads_share_a_ledger(path: Path) -> None:
    ledger = SpendLedger(path)
    for _ in range(3):
        asyncio.run(spend(ledger, 0.25))
    threads = [threading.Thread(target=lambda: asyncio.run(spend(ledger, 0.25))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.spent_today("anthropic") == 2.75
    asyncio.run(ledger.close())
    assert [spent.requests for spent in read_spent(path)] == [11]


def test_a_loop_that_is_closed_before_the_commit_harms_nobody(path: Path) -> None:
    ledger = SpendLedger(path)
    asyncio.run(spend(ledger, 0.25))
    with locked(path) as other:
        loop = asyncio.new_event_loop()
        caller = loop.create_task(spend(ledger, 0.5))
        loop.run_until_complete(asyncio.sleep(0))
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(caller)
        loop.close()
        other.execute("COMMIT")
    asyncio.run(spend(ledger, 0.25))
    assert ledger.spent_today("anthropic") == 1.0
    asyncio.run(ledger.close())


async def test_spend_seen_from_a_thread_never_shrinks_nor_counts_twice(ledger: SpendLedger) -> None:
    seen: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(ledger.spent_today("anthropic"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(300):
        await spend(ledger, 0.25)
    stop.set()
    watcher.join()
    assert seen == sorted(seen)
    assert seen[-1] <= ledger.spent_today("anthropic") == 75.0


async def test_closing_is_idempotent_and_a_later_record_opens_the_file_again(ledger: SpendLedger, path: Path) -> None:
    await ledger.close()
    assert not path.parent.exists()
    await spend(ledger, 0.25)
    await asyncio.gather(ledger.close(), ledger.close(), spend(ledger, 0.25))
    await ledger.close()
    assert sorted(found.name for found in path.parent.iterdir()) == ["spend.db", "spend.db.lock"]
    assert ledger.spent_today("anthropic") == 0.5
    await spend(ledger, 0.25)
    assert ledger.spent_today("anthropic") == 0.75


async def test_a_forgotten_ledger_ends_its_thread_and_closes_its_files(path: Path) -> None:
    ledger = SpendLedger(path)
    await spend(ledger)
    assert ledger.spent_today("anthropic") == 0.5
    assert "taskrouter-spend" in {thread.name for thread in threading.enumerate()}
    del ledger
    gc.collect()
    assert "taskrouter-spend" not in {thread.name for thread in threading.enumerate()}
    assert sorted(found.name for found in path.parent.iterdir()) == ["spend.db", "spend.db.lock"]


async def test_the_log_is_folded_into_the_file_as_it_grows(
    ledger: SpendLedger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskrouter.spend.writer.CHECKPOINT_EVERY", 10)
    for _ in range(100):
        await spend(ledger, 0.25)
        await asyncio.to_thread(lambda: None)  # the thread's turn, as there is while a call waits for its provider
    # A hundred commits of a page each, unless it was folded meanwhile; on a busy machine the thread comes late.
    assert path.with_name("spend.db-wal").stat().st_size < 80 * 4200


# --- the file ---------------------------------------------------------------------------------------------------------


async def test_reading_creates_nothing(ledger: SpendLedger, path: Path) -> None:
    assert ledger.spent_today("anthropic") == 0
    assert ledger.report() == read_spent(path) == []
    await ledger.close()
    assert not path.parent.exists()


async def test_the_folder_and_the_files_are_their_owners_alone(ledger: SpendLedger, path: Path) -> None:
    await spend(ledger)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()}
    assert modes == dict.fromkeys(("spend.db", "spend.db.lock", "spend.db-wal", "spend.db-shm"), 0o600)


async def test_commits_go_to_a_log_that_survives_the_process(ledger: SpendLedger, path: Path) -> None:
    await spend(ledger)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA user_version").fetchone() == (file.VERSION,)


def test_the_file_is_in_the_users_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_path() == SpendLedger().path == tmp_path / "taskrouter" / "spend.db"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local" / "state" / "taskrouter" / "spend.db"


def whole(path: Path) -> bytes:
    """What a real file holds, with enough rows for several pages."""

    async def fill() -> None:
        ledger = SpendLedger(path)
        await asyncio.gather(*[spend(ledger, option=f"option-{n}" * 10) for n in range(200)])
        await ledger.close()

    asyncio.run(fill())
    return path.read_bytes()


DAMAGE = [
    "no database",
    "cut in its header",
    "cut in its pages",
    "a page of noise",
    "another version",
    "another format",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_set_aside_with_one_warning_and_a_new_one_is_begun(
    path: Path, caplog: pytest.LogCaptureFixture, clock: Clock, damage: str
) -> None:
    real = whole(path)
    bad = {
        "no database": b"tasks:\n" * 1000,
        "cut in its header": real[:60],
        "cut in its pages": real[: len(real) // 2],
        "a page of noise": real[:4096] + bytes(range(256)) * 16 + real[8192:],
        "another version": real[:18] + b"\x09\x09" + real[20:],
        "another format": real[:44] + b"\0\0\0\x09" + real[48:],
    }[damage]
    path.write_bytes(bad)
    path.with_name("spend.db-wal").write_bytes(b"its log")

    async def use() -> None:
        async with aclosing_ledger(SpendLedger(path, clock=clock)) as ledger:
            assert ledger.spent_today("anthropic") == 0
            assert path.read_bytes() == bad, "who only reads leaves it"
            await spend(ledger, 0.25)
            await spend(ledger, 0.25)
            assert ledger.set_aside == path.with_name(f"spend.db.damaged-{int(clock.now)}")
            assert ledger.set_aside.read_bytes() == bad
            assert ledger.spent_today("anthropic") == 0.5
            (said,) = warnings(caplog)
            assert str(path) in said
            assert str(ledger.set_aside) in said

    asyncio.run(use())
    assert [spent.requests for spent in read_spent(path)] == [2]


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE notes (text)"],
        ["PRAGMA user_version = 1"],
        ["CREATE TABLE spent (day, provider, usd)", "PRAGMA user_version = 1"],
        [file.TABLE],
    ],
)
async def test_a_database_of_something_else_is_set_aside(
    ledger: SpendLedger, path: Path, caplog: pytest.LogCaptureFixture, statements: list[str]
) -> None:
    database(path, *statements)
    with pytest.raises(SpendUnreadable, match="no database of spend"):
        read_spent(path)
    await spend(ledger)
    assert ledger.set_aside is not None
    assert len(warnings(caplog)) == 1
    assert ledger.spent_today("anthropic") == 0.5


async def test_what_is_set_aside_twice_in_a_second_keeps_both(path: Path, clock: Clock) -> None:
    for _ in range(2):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"noise" * 1000)
        async with aclosing_ledger(SpendLedger(path, clock=clock)) as ledger:
            await spend(ledger)
    assert len([found for found in path.parent.iterdir() if "damaged" in found.name]) == 2


async def test_the_log_of_a_damaged_file_goes_with_it(path: Path, clock: Clock) -> None:
    path.parent.mkdir()
    path.write_bytes(b"noise" * 1000)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).write_bytes(b"its")
    aside = file._set_aside(path, now=5)
    assert {found.name for found in path.parent.iterdir()} == {aside.name + suffix for suffix in ("", "-wal", "-shm")}


async def test_a_file_damaged_while_it_is_open_is_set_aside_too(
    ledger: SpendLedger, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await spend(ledger, 0.25)
    database(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as opened:  # writing to it in place, as a failing disk would
        opened.write(bytes(8192))
    await spend(ledger, 0.5)
    assert ledger.set_aside is not None
    assert ledger.spent_today("anthropic") == 0.5
    assert len(warnings(caplog)) == 1


async def test_an_empty_file_is_begun_and_not_set_aside(ledger: SpendLedger, path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert ledger.spent_today("anthropic") == 0
    await spend(ledger)
    assert ledger.set_aside is None
    assert ledger.spent_today("anthropic") == 0.5


async def test_a_file_that_is_removed_or_replaced_is_begun_again(ledger: SpendLedger, path: Path) -> None:
    await spend(ledger, 0.25)
    assert ledger.spent_today("anthropic") == 0.25
    path.rename(path.with_name("elsewhere.db"))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    assert ledger.spent_today("anthropic") == 0
    await spend(ledger, 0.5)
    assert ledger.spent_today("anthropic") == 0.5


async def test_what_was_written_to_a_file_that_is_set_aside_meanwhile_goes_to_the_new_one(
    ledger: SpendLedger, path: Path
) -> None:
    await spend(ledger, 0.25)
    with locked(path) as other:
        waiting = asyncio.ensure_future(spend(ledger, 0.5))
        await asyncio.sleep(0)
        file._set_aside(path, now=5)  # as another process does that finds it damaged
        other.execute("COMMIT")
        await waiting
    assert ledger.spent_today("anthropic") == 0.5
    assert [(spent.requests, spent.usd) for spent in read_spent(path)] == [(1, 0.5)]
    assert ledger.set_aside is None


def test_a_report_of_a_damaged_file_is_what_is_in_memory_and_says_so(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    real = whole(path)
    path.write_bytes(real[:4096] + bytes(range(256)) * 16 + real[8192:])
    ledger = SpendLedger(path)
    assert ledger.report() == []
    assert len(warnings(caplog)) == 1
    assert ledger.set_aside is None
    with pytest.raises(SpendUnreadable, match="the next call to a provider sets it aside"):
        read_spent(path)


@pytest.mark.parametrize("first", ["record", "spent_today", "report"])
async def test_a_file_of_a_newer_schema_is_left_alone_and_spend_is_kept_in_memory(
    ledger: SpendLedger, path: Path, caplog: pytest.LogCaptureFixture, first: str
) -> None:
    database(path, "CREATE TABLE spent (everything)", f"PRAGMA user_version = {file.VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(SpendUnreadable, match="a newer taskrouter wrote it"):
        read_spent(path)
    if first != "record":
        assert not getattr(ledger, first)(*(["anthropic"] if first == "spent_today" else []))
    await spend(ledger, 0.25)
    await spend(ledger, 0.25)
    assert ledger.spent_today("anthropic") == 0.5
    assert [(spent.requests, spent.usd) for spent in ledger.report()] == [(2, 0.5)]
    await ledger.close()
    assert ledger.set_aside is None
    assert path.read_bytes() == before
    (said,) = warnings(caplog)
    assert "in memory only" in said


# --- a disk that refuses ----------------------------------------------------------------------------------------------


async def test_a_folder_that_cannot_be_made_is_said_once_and_the_spend_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "state" / "spend.db"
    async with aclosing_ledger(SpendLedger(path)) as ledger:
        assert ledger.spent_today("anthropic") == 0
        for _ in range(3):
            await spend(ledger, 0.25)
        assert ledger.spent_today("anthropic") == 0.75
        assert [(spent.requests, spent.usd) for spent in ledger.report()] == [(3, 0.75)]
        assert len(warnings(caplog)) == 1
        assert "3 requests in memory" in repr(ledger)
        (tmp_path / "file").unlink()
        await spend(ledger, 0.25)
        assert ledger.spent_today("anthropic") == 1.0
        assert [(spent.requests, spent.usd) for spent in read_spent(path)] == [(4, 1.0)]
        assert len(warnings(caplog)) == 1


async def test_a_lock_held_for_too_long_is_waited_out_and_the_spend_is_written_later(
    ledger: SpendLedger, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "BUSY_TIMEOUT_S", 0.02)
    await spend(ledger, 0.25)
    with locked(path):
        await spend(ledger, 0.5)
        await spend(ledger, 0.5)
        assert ledger.spent_today("anthropic") == 1.25
        (said,) = warnings(caplog)
        assert "locked" in said
    await ledger.close()
    assert [(spent.requests, spent.usd) for spent in read_spent(path)] == [(3, 1.25)]


async def test_each_trouble_that_follows_a_success_is_said_again(
    ledger: SpendLedger, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "BUSY_TIMEOUT_S", 0.02)
    for _ in range(2):
        await spend(ledger, 0.25)
        with locked(path):
            await spend(ledger, 0.25)
    await spend(ledger, 0.25)
    assert len(warnings(caplog)) == 2
    assert ledger.spent_today("anthropic") == 1.25


async def test_whoever_opens_the_file_and_hangs_is_waited_for_only_so_long(
    ledger: SpendLedger, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "BUSY_TIMEOUT_S", 0.02)
    path.parent.mkdir()
    with file._locked(path):
        await spend(ledger, 0.25)
    assert not path.exists()
    assert len(warnings(caplog)) == 1
    await spend(ledger, 0.25)
    assert [(spent.requests, spent.usd) for spent in read_spent(path)] == [(2, 0.5)]


async def test_where_the_file_cannot_be_read_what_is_known_of_it_counts(
    ledger: SpendLedger, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await spend(ledger, 0.25)
    assert ledger.spent_today("anthropic") == 0.25
    await spend(ledger, 0.5)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(file, "identity", refuse)
    assert ledger.spent_today("anthropic") == ledger.spent_today("anthropic") == 0.75
    assert ledger.spent_today("openai") == 0
    assert ledger.report() == []
    assert len(warnings(caplog)) == 1
    with pytest.raises(SpendUnreadable, match="permissions"):
        read_spent(path)


async def test_where_no_thread_can_be_started_the_spend_counts(
    ledger: SpendLedger, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        await spend(ledger, 0.25)
    assert ledger.spent_today("anthropic") == 0.25
    assert len(warnings(caplog)) == 1
    await spend(ledger, 0.25)
    assert [(spent.requests, spent.usd) for spent in read_spent(path)] == [(2, 0.5)]
