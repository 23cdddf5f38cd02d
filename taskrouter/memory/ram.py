"""Host RAM as a process in a container may use it: the machine's, or the cgroup's limit where that is less.

The page cache never counts as used: the kernel gives it back before anything fails, and loading a checkpoint fills it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

Control = tuple[Path, str, str]
"""A cgroup folder, and the names of its limit and usage files."""


@dataclass(frozen=True, slots=True)
class RamReading:
    """Bytes: the most there may be, what can still be had, and what this process and its descendants hold.

    ``own_anonymous`` can't be dropped by the kernel; ``own_resident`` also counts files mapped into memory, which is
    where weights loaded on the CPU are.
    """

    total: int
    available: int
    own_resident: int
    own_anonymous: int


class Ram(Protocol):
    """What is asked of the operating system. May block for milliseconds."""

    def read(self) -> RamReading:
        """Look now."""


class HostRam:
    """RAM by psutil, under the limits of every cgroup (v1 or v2) this process is in. Only tests set ``root``."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def total(self) -> int:
        """Bytes this process may use at most."""
        return self._bounds()[0]

    def available(self) -> int:
        """Bytes that can still be had without swapping or being killed."""
        return self._bounds()[1]

    def read(self) -> RamReading:
        total, available = self._bounds()
        resident, anonymous = _own()
        return RamReading(total, available, resident, anonymous)

    def _bounds(self) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        total, available = memory.total, memory.available
        for folder, limit_name, usage_name in self._controls():
            limit = _number(folder / limit_name)
            if limit is None or limit >= memory.total:
                continue
            total = min(total, limit)
            used = (_number(folder / usage_name) or 0) - _file_cache(folder / "memory.stat")
            available = min(available, limit - max(used, 0))
        return total, max(available, 0)

    def _controls(self) -> Iterator[Control]:
        """Each cgroup from this process's own up to the root: any of them may be the one that binds."""
        mount = self._root / "sys/fs/cgroup"
        try:
            lines = (self._root / "proc/self/cgroup").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                yield from _upwards(mount, path, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):
                yield from _upwards(mount / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _upwards(mount: Path, path: str, limit: str, usage: str) -> Iterator[Control]:
    parts = [part for part in path.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        folder = mount.joinpath(*parts[:depth])
        # In a container without its own cgroup namespace the path names folders that are not mounted there.
        if (folder / limit).is_file():
            yield folder, limit, usage


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such controller, or "max"
        return None


def _file_cache(stat: Path) -> int:
    try:
        fields = dict(line.split(" ", 1) for line in stat.read_text().splitlines())
        # v1 counts children only under total_*; tmpfs is on the anonymous lists in both, so it rightly stays "used".
        prefix = "total_" if "total_inactive_file" in fields else ""
        return int(fields[f"{prefix}inactive_file"]) + int(fields[f"{prefix}active_file"])
    except (OSError, ValueError, KeyError):
        return 0


def _own() -> tuple[int, int]:
    resident = anonymous = 0
    for process in family():
        try:
            memory = process.memory_info()
        except psutil.Error:
            continue
        resident += memory.rss
        anonymous += memory.rss - min(getattr(memory, "shared", 0), memory.rss)
    return resident, anonymous


def family() -> list[psutil.Process]:
    """This process and its descendants: what runs for our models."""
    me = psutil.Process(os.getpid())
    try:
        pids = _descendants(me.pid)
        return [me, *(me.children(recursive=True) if pids is None else _processes(pids))]
    except psutil.Error:
        return [me]


def _descendants(pid: int) -> list[int] | None:
    """Pids of the descendants as the kernel lists them; ``None`` where it keeps no such lists.

    psutil would look at every process of the machine, and this is asked every second.
    """
    found: list[int] = []
    todo = [pid]
    while todo:
        tasks = Path(f"/proc/{todo.pop()}/task")
        try:
            lists = [task / "children" for task in tasks.iterdir()]
            children = [int(child) for file in lists for child in file.read_text().split()]
        except FileNotFoundError:
            if not found and not (tasks / str(pid) / "children").is_file():
                return None
            continue  # it ended meanwhile
        except OSError:
            continue
        found += children
        todo += children
    return found


def _processes(pids: list[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            yield psutil.Process(pid)
