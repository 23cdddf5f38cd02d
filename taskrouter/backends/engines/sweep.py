"""What an earlier run left behind: a file per manager says which engines it started, the next one clears them away.

Only needed where a manager and its guardian were both killed. A process is known by pid *and* start time, within one
boot; an engine's processes also by the token in their environment. All functions block: call them in a thread.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taskrouter.backends.engines import guardian

logger = logging.getLogger("taskrouter")

BOUND_S = 5.0


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """Which pids are meant: containers that share a home folder have each their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Started:
    """One engine: its token, its first process (pid 0: about to be started), its temporary folder and its segments."""

    label: str
    token: str
    pid: int
    started: int
    tmp: str
    shm: tuple[int, ...] = ()


class StateFile:
    """This run's own file. One that can't be written is said once: then only the guardian keeps watch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        me = os.getpid()
        self._manager = {"pid": me, "started": guardian.start_time(me)}
        self._path: Path | None = None
        self._complained = False
        self._lock = threading.Lock()
        self._version = 0

    def write(self, version: int, guardians: list[int], engines: list[Started]) -> None:
        with self._lock:
            if version > self._version:
                self._version = version
                self._write(guardians, engines)

    def _write(self, guardians: list[int], engines: list[Started]) -> None:
        data = {
            "boot": boot_id(),
            "pids": pid_namespace(),
            "manager": self._manager,
            "guardians": [{"pid": pid, "started": guardian.start_time(pid)} for pid in guardians],
            "engines": [asdict(engine) for engine in engines],
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._path is None:
                self._path = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}.json"
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps(data), encoding="utf-8")
            os.replace(fresh, self._path)
        except OSError as error:
            if not self._complained:
                self._complained = True
                logger.warning("which engines run can't be written to %s (%s): should this process and its guardian "
                               "both be killed, the next run can't find them", self._folder, error)  # fmt: skip

    def remove(self) -> None:
        if self._path is not None:
            for path in (self._path, self._path.with_suffix(".new")):
                with contextlib.suppress(OSError):
                    path.unlink()


def clear(engine: Started, bound_s: float = BOUND_S) -> list[int]:
    """Kill one engine's processes from here, with no guardian between; answers the pids that are still there.

    Its temporary folder is removed, and what it had in shared memory that nobody uses any more.
    """
    until = time.monotonic() + bound_s
    shm = set(engine.shm) | guardian.remembered(engine.tmp)
    while True:
        left = _members(engine)
        if not left or time.monotonic() > until:
            break
        for member in left:
            shm |= guardian.segments(member)
        guardian.remember(engine.tmp, shm)
        for member in left:
            guardian.kill(member)
        time.sleep(guardian.SWEEP_EVERY_S)
    while guardian.unlink_unused(shm) and time.monotonic() < until:
        time.sleep(guardian.SWEEP_EVERY_S)
    if engine.tmp:
        shutil.rmtree(engine.tmp, ignore_errors=True)
    return left


def _members(engine: Started) -> list[int]:
    pid, mine = engine.pid, set[int]()
    # A session is known by its leader's pid, which may be another's by now.
    session = pid != 0 and guardian.start_time(pid) in (0, engine.started)
    if pid and guardian.start_time(pid) == engine.started:
        mine.add(pid)
        mine.update(guardian.descendants(pid))
    for other in guardian.everyone():
        with contextlib.suppress(OSError):
            if other not in mine and (guardian.carries(other, engine.token) or (session and os.getsid(other) == pid)):
                mine.add(other)
    mine.discard(os.getpid())
    return [member for member in mine if not guardian.is_zombie(member)]


def sweep(folder: Path) -> None:
    """Clear away what runs that are over left behind."""
    try:
        files = sorted(folder.glob("*.json"))
    except OSError:
        return
    for file in files:
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            if _is_over(state):
                _clear(state)
                file.unlink()
        except FileNotFoundError:
            continue  # another manager was quicker
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s can't be read (%s) and is removed: engines of an earlier run may be left", file, error)
            with contextlib.suppress(OSError):
                file.unlink()


def leftovers(folder: Path) -> list[str]:
    """The labels of engines that runs which are over left running; kills nothing."""
    found: list[str] = []
    for file in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads(file.read_text(encoding="utf-8"))
            if _is_over(state):
                engines = [Started(**engine) for engine in state["engines"]]
                found += [engine.label for engine in engines if _members(engine)]
    return found


def _is_over(state: dict[str, Any]) -> bool:
    manager = state["manager"]
    if state["boot"] == boot_id() and state["pids"] != pid_namespace():
        return False  # of another container: its own to sweep
    return bool(state["boot"] != boot_id() or guardian.start_time(manager["pid"]) != manager["started"])


def _clear(state: dict[str, Any]) -> None:
    engines = [Started(**engine) for engine in state["engines"]]
    if state["boot"] == boot_id():
        for warden in state["guardians"]:
            if guardian.start_time(warden["pid"]) == warden["started"] != 0:
                _wait_for(warden["pid"], warden["started"])
        for engine in engines:
            there = _members(engine)
            left = clear(engine)
            if there:
                said = f"; {left} can't be killed" if left else ""
                logger.warning("%s was left running by an earlier run (%s); it was killed%s", engine.label, there, said)


def _wait_for(pid: int, started: int) -> None:
    """A guardian whose manager is gone is at work; give it the time it takes, then do its work."""
    until = time.monotonic() + BOUND_S
    while time.monotonic() < until:
        if guardian.start_time(pid) != started or guardian.is_zombie(pid):
            return
        time.sleep(guardian.SWEEP_EVERY_S)
    guardian.kill(pid)
