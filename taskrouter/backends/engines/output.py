"""What an engine prints: the last of it in memory, all of it in a rotated log file.

A thread of its own reads the pipe, so that neither a slow disk stops the event loop nor a busy event loop the engine. A
log that can't be written (no room, no such folder) is said once and costs nothing but itself: reading goes on, or the
engine would block on its own output.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections import deque
from logging.handlers import RotatingFileHandler
from pathlib import Path

logger = logging.getLogger("taskrouter")

LINES = 600
LONGEST_LINE = 2000
LONGEST_DATA = 1 << 20
OVERLAP = 256
LOG_BYTES = 8 << 20
LOG_BACKUPS = 1
LOGS_KEPT = 64
RETRY_S = 10.0
"""How long a log that could not be written is left alone."""

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class _Log(RotatingFileHandler):
    """The standard library's rotated file, except that a failure is counted and not printed."""

    failed: OSError | None = None

    def handleError(self, record: logging.LogRecord) -> None:
        import sys

        error = sys.exc_info()[1]
        self.failed = error if isinstance(error, OSError) else OSError(str(error))
        stream, self.stream = self.stream, None  # opened again with the next line
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.close()


class Output:
    """One engine's output. ``secret`` is never kept, nor written."""

    def __init__(self, label: str, path: Path, secret: str) -> None:
        self.label = label
        self.path = path
        self._secret = secret
        self._ring: deque[str] = deque(maxlen=LINES)
        self._quiet_until = 0.0
        self._complained = False
        self._log: _Log | None = None
        self._read_end, self.write_end = os.pipe()
        self._thread = threading.Thread(target=self._read, name=f"output of {label}", daemon=True)

    def start(self) -> None:
        """Begin to read; closes our copy of the pipe's other end, so that its end is seen."""
        self.close_write_end()
        self._thread.start()

    def close_write_end(self) -> None:
        fd, self.write_end = self.write_end, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Give up an output that nothing was started with."""
        self.close_write_end()
        if self._thread.ident is None and self._read_end >= 0:
            os.close(self._read_end)
            self._read_end = -1

    def lines(self) -> list[str]:
        """What is remembered, oldest first."""
        return list(self._ring)

    def tail(self, count: int = 12) -> str:
        """The last lines that say something, for an error message."""
        return "\n".join([line for line in self.lines() if line.strip()][-count:])

    def join(self, timeout_s: float) -> None:
        """Wait until everything the engine printed has been read. Blocks."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _read(self) -> None:
        with os.fdopen(self._read_end, "rb", buffering=0) as pipe:
            rest = b""
            while data := pipe.read(1 << 16):
                *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                for line in lines:
                    self._keep(line)
                if len(rest) > LONGEST_DATA:
                    # Not to its end: a secret may be cut there.
                    self._keep(rest[:-OVERLAP])
                    rest = rest[-OVERLAP:]
            if rest:
                self._keep(rest)
        if self._log is not None:
            with contextlib.suppress(OSError, ValueError):
                self._log.close()

    def _keep(self, raw: bytes) -> None:
        text = _COLOURS.sub("", raw.decode("utf-8", errors="replace")).replace(self._secret, "***")[:LONGEST_LINE]
        self._ring.append(text)
        now = time.monotonic()
        if now < self._quiet_until:
            return
        failed: OSError | None = None
        try:
            if self._log is None:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._log = _Log(self.path, maxBytes=LOG_BYTES, backupCount=LOG_BACKUPS, encoding="utf-8")
            self._log.emit(logging.makeLogRecord({"msg": text}))
            failed, self._log.failed = self._log.failed, None
        except OSError as error:
            failed = error
        if failed is not None:
            self._quiet_until = now + RETRY_S
            if not self._complained:
                self._complained = True
                logger.warning("%s: the engine's output can't be written to %s (%s); it serves on, its last lines are "
                               "kept in memory", self.label, self.path, failed)  # fmt: skip


def prune_logs(folder: Path) -> None:
    """Remove the oldest logs where there are too many. Blocks."""
    with contextlib.suppress(OSError):
        logs = sorted((file for file in folder.iterdir() if ".log" in file.name), key=lambda file: file.stat().st_mtime)
        for old in logs[: max(len(logs) - LOGS_KEPT, 0)]:
            with contextlib.suppress(OSError):
                old.unlink()
