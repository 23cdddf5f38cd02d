"""The file that spend is kept in: one SQLite table, a row for each day, provider, task, option and model.

1. **Writers create and repair, readers never do.** Reading a file that isn't there finds nothing and leaves nothing.
2. A file is created, checked and set aside under an flock on ``spend.db.lock`` only. Whoever finds damage looks again
   under that lock: by then another process may have begun a new file, which is not damaged.
3. The file itself is never opened but by SQLite: closing any other descriptor of it would drop the POSIX locks that
   SQLite holds on it in this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from taskrouter.errors import TaskRouterError
from taskrouter.folders import state_folder
from taskrouter.spend.books import Spent, merged

logger = logging.getLogger("taskrouter")

VERSION = 1
BUSY_TIMEOUT_S = 5.0
"""How long a writer waits for another process's transaction, or for the lock of rule 2."""
READ_TIMEOUT_S = 0.1
"""Readers wait only while another process opens or closes the file; an event loop may be waiting for this one."""

TABLE = """CREATE TABLE spent (
  day TEXT NOT NULL,
  provider TEXT NOT NULL,
  task TEXT NOT NULL,
  option TEXT NOT NULL,
  model_id TEXT NOT NULL,
  requests INTEGER NOT NULL CHECK (requests >= 0),
  input_tokens INTEGER NOT NULL CHECK (input_tokens >= 0),
  output_tokens INTEGER NOT NULL CHECK (output_tokens >= 0),
  usd_pico INTEGER NOT NULL CHECK (usd_pico >= 0),
  PRIMARY KEY (day, provider, task, option, model_id)
) WITHOUT ROWID"""

ADD = """INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (day, provider, task, option, model_id) DO UPDATE SET
  requests = requests + excluded.requests,
  input_tokens = input_tokens + excluded.input_tokens,
  output_tokens = output_tokens + excluded.output_tokens,
  usd_pico = min(usd_pico + excluded.usd_pico, 9223372036854775807)"""

# total() and not sum(): a sum that doesn't fit 64 bits is an error, and total() is exact up to 9 007 $.
OF_DAY = "SELECT total(usd_pico) FROM spent WHERE day = ? AND provider = ?"

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NO_LOG = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)


class SpendUnreadable(TaskRouterError, RuntimeError):
    """The file that spend is kept in can't be read; the message names it and says why. The cause is chained."""


class Damaged(Exception):
    """The file is no database, cut short, or has another table than ours."""


class NewerSchema(Exception):
    """A newer version of this package wrote the file."""


def default_path() -> Path:
    """``$XDG_STATE_HOME/taskrouter/spend.db``, by default under ``~/.local/state``."""
    return state_folder() / "spend.db"


def read_spent(path: Path, *, since_day: str | None = None) -> list[Spent]:
    """What is in this file, sorted by day (newest first), then by dollars (most first); none where there is no file.

    Blocks. Creates and changes nothing. Raises ``SpendUnreadable``.
    """
    try:
        with contextlib.closing(Reader(path)) as reader:
            if not reader.open():
                return []
            return merged(reader.all_rows(), since_day=since_day)
    except NewerSchema as error:
        raise SpendUnreadable(f"spend in {path} can't be read: {error}; use that version") from error
    except (Damaged, sqlite3.Error, OSError) as error:
        hint = "the next call to a provider sets it aside" if damaged(error) else "look at its permissions and its disk"
        raise SpendUnreadable(f"spend in {path} can't be read: {error} ({hint})") from error


def damaged(error: Exception) -> bool:
    """Whether this is the file's fault, and not that of a lock or a disk."""
    return isinstance(error, Damaged) or result_code(error) in _DAMAGE


def result_code(error: Exception) -> int:
    """SQLite's primary result code; 0 where the error isn't SQLite's."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return (code or 0) & 0xFF


def identity(path: Path) -> tuple[int, int] | None:
    """Which file stands at this path (device and inode); ``None`` if none does. Raises ``OSError``."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


class Reader:
    """One connection that reads. It notices when another file has come to stand at the path. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None

    def open(self) -> bool:
        """Whether there is a file. Raises ``Damaged``, ``NewerSchema``, ``sqlite3.Error``, ``OSError``."""
        there = identity(self.path)
        if self._connection is not None and there == self._opened:
            return True
        self.close()
        if there is None:
            return False
        try:
            self._connection, self._opened = _open_to_read(self.path), there
        except sqlite3.OperationalError as error:
            if result_code(error) not in _NO_LOG or os.path.exists(f"{self.path}-wal"):
                raise
            # A folder that is read-only, where SQLite can't begin a log to read beside. Without one the file is all
            # there is; looked at afresh each time, as nothing says when it changes.
            self._connection, self._opened = _open_to_read(self.path, "immutable=1"), None
        return self._connection is not None

    def spent(self, day: str, provider: str) -> float:
        """Pico-dollars of a provider's day. Raises as ``open`` does."""
        if not self.open() or self._connection is None:
            return 0
        pico: float = self._connection.execute(OF_DAY, (day, provider)).fetchone()[0]
        return pico

    def snapshot(self) -> None:
        """From here on, ``all_rows`` is what the file holds now, whatever is committed meanwhile."""
        if self._connection is not None:
            self._connection.execute("BEGIN")
            self._connection.execute("SELECT 1 FROM spent LIMIT 1").fetchall()

    def all_rows(self) -> list[tuple[str | int, ...]]:
        return [] if self._connection is None else self._connection.execute("SELECT * FROM spent").fetchall()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Opened(NamedTuple):
    """A connection that writes, the file it writes to, and where a damaged one went that stood there before."""

    connection: sqlite3.Connection
    identity: tuple[int, int] | None
    set_aside: Path | None


def open_to_write(path: Path, *, now: float) -> Opened:
    """Open the file, create it where there is none, set it aside where it is damaged. ``now`` is Unix time.

    Blocks, up to ``BUSY_TIMEOUT_S`` for each of two locks. Raises ``NewerSchema``, ``sqlite3.Error``, ``OSError``.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path):
        try:
            return Opened(_open(path), identity(path), None)
        except (Damaged, sqlite3.Error) as error:
            if not damaged(error):
                raise
            aside = _set_aside(path, now=int(now))
            logger.warning(
                "spend in %s can't be read (%s): it is set aside as %s, and a new file is begun", path, error, aside
            )
        return Opened(_open(path), identity(path), aside)


def _open_to_read(path: Path, how: str = "mode=rw") -> sqlite3.Connection | None:
    """A connection; ``None`` where another process is just creating the file."""
    connection = _connect(path, READ_TIMEOUT_S, how)
    begun = False
    try:
        connection.execute("PRAGMA query_only = ON")
        begun = _examine(connection)
    finally:
        if not begun:
            connection.close()
    return connection if begun else None


def _connect(path: Path, timeout_s: float, how: str = "mode=rw") -> sqlite3.Connection:
    # mode=rw creates nothing. Threads take turns by the locks of the ledger.
    url = f"file:{quote(str(path.absolute()))}?{how}"
    return sqlite3.connect(url, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)


def _open(path: Path) -> sqlite3.Connection:
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = _connect(path, BUSY_TIMEOUT_S)
    try:
        if _examine(connection):
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise Damaged(found)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # the ledger does it where nobody waits
        if not _examine(connection):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(TABLE)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _examine(connection: sqlite3.Connection) -> bool:
    """Whether our table is there; not yet in an empty database. Raises ``Damaged``, ``NewerSchema``."""
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise NewerSchema(f"a newer taskrouter wrote it (schema {version}, and this one knows {VERSION})")
        tables = connection.execute("SELECT sql FROM sqlite_master").fetchall()
    except sqlite3.OperationalError as error:
        if result_code(error) == sqlite3.SQLITE_ERROR:
            # An unsupported file format: nothing asked here can be misspelt.
            raise Damaged(str(error)) from error
        raise
    if version == 0 and not tables:
        return False
    if version != VERSION or (TABLE,) not in tables:
        raise Damaged(f"it is no database of spend (schema {version})")
    return True


def _set_aside(path: Path, *, now: int) -> Path:
    while (aside := path.with_name(f"{path.name}.damaged-{now}")).exists():
        now += 1
    os.rename(path, aside)
    # What crashes here leaves a -wal beside no file: SQLite deletes it with the first look at an empty one.
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        give_up = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.005)
        yield
    finally:
        os.close(descriptor)
