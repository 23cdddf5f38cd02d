"""Looks at the machine itself, not at what anybody says of it: processes, ports, shared memory, temporary folders.

A ``Run`` marks everything it starts: ``STUB_RUN`` stands in the environment of all its processes, and its temporary
files go to a folder of its own. So what it left is told from what others have on the same machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from taskrouter.backends.engines import guardian

SHM = Path("/dev/shm")
MARK = "STUB_RUN"
LISTENS = "0A"


def alive(pids: Iterable[int]) -> list[int]:
    """Those that run; a zombie has ended."""
    return [pid for pid in pids if not guardian.is_zombie(pid)]


def stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def environ(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty where it is gone."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(word.decode(errors="replace").split("=", 1) for word in words if b"=" in word)


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def segments() -> set[str]:
    """What stands in shared memory. Things come and go there: look again before you complain."""
    return {str(path) for path in SHM.iterdir()}


def listening() -> set[int]:
    """TCP ports somebody listens on."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == LISTENS:
                    found.add(int(local.rpartition(":")[2], 16))
    return found


def family(root: int) -> tuple[list[int], list[int], list[int]]:
    """A process, its children, and everyone further down."""
    children = guardian.children(root)
    return [root], children, [pid for child in children for pid in guardian.descendants(child)]


class Run:
    """Everything that one test starts: ``name`` stands in its environment, ``temporary`` is its folder for such files.

    ``stubs``: its engines are stubs, whose segments are known by their names; else any new one counts, whosever it is.
    """

    def __init__(self, name: str, temporary: Path, *, stubs: bool = False) -> None:
        self.name = name
        self.temporary = temporary
        self.stubs = stubs
        self.foreign = segments()
        self.ports: set[int] = set()

    def processes(self) -> dict[int, str]:
        """Its engines, and whatever they and the manager started, with their command lines; without the test itself."""
        pids = [pid for pid in guardian.everyone() if pid != os.getpid()]
        return {pid: command(pid) for pid in alive(pids) if environ(pid).get(MARK) == self.name}

    def engines(self) -> dict[int, list[int]]:
        """Living processes that carry an engine's token, by the pid of its first one, which may have ended."""
        found: dict[int, list[int]] = {}
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if guardian.TOKEN in environ(pid):
                    found.setdefault(os.getsid(pid), []).append(pid)
        return found

    def segments(self) -> set[str]:
        """What it has in shared memory."""
        return {path for path in segments() - self.foreign if not self.stubs or f"/stub-{self.name}-" in path}

    def note_ports(self) -> None:
        """Remember what its processes listen on now, to see later that nobody does any more."""
        words = [line.split() for line in self.processes().values()]
        self.ports |= {int(each[each.index("--port") + 1]) for each in words if "--port" in each}

    def left(self, but: Iterable[int] = ()) -> list[str]:
        """What is there that shouldn't be, in words; ``but`` are processes that may be."""
        spared = set(but)
        found = [f"process {pid}: {line}" for pid, line in self.processes().items() if pid not in spared]
        found += [f"port {port} is listened on" for port in sorted(self.ports & listening())]
        found += sorted(self.segments())
        found += [str(path) for path in self.temporary.glob("taskrouter-*")]
        return found

    def clean_within(self, bound_s: float, but: Iterable[int] = ()) -> list[str]:
        """What is still left after so long; nothing, as soon as there is nothing."""
        end = time.monotonic() + bound_s
        while (left := self.left(but)) and time.monotonic() < end:
            time.sleep(0.05)
        return left

    def clear(self) -> None:
        """Leave nothing to the next test, whatever went wrong in this one."""
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if self.stubs:
            for path in self.segments():
                with contextlib.suppress(OSError):
                    os.unlink(path)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of its own, of so many bytes; ``False`` where that isn't allowed here."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(argv, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=True)
