"""The guardian: a small process that starts engines, and that none of them outlives.

Run as a program by the manager's own interpreter, with nothing but the standard library: ``guardian.py FD``, where FD
is one end of a socket pair. It is its own session's leader and a *child subreaper*: whatever its descendants leave
behind becomes its child, so it can find, kill and reap all of it.

1. When the manager goes, by any signal, the socket closes (and its pidfd becomes readable, should a forked child of the
   manager keep the socket open): every descendant is killed and reaped, then the guardian ends.
2. When an engine's first process ends, the rest of its tree is killed: an engine without its head serves nobody, and
   what is left of it may hold a GPU.
3. When the guardian itself is killed, the kernel kills the engines' first processes (parent-death signal; it is the
   only thread here, so no thread's end can set that off), and the manager, which sees the socket close, the rest.

Who belongs to an engine: its descendants, its session, and whoever carries its token in the environment. What a tree
holds in ``/dev/shm`` is noted while it lives and removed once it is gone; so is its temporary folder.

Messages are JSON objects, one datagram each. In: ``spawn`` (with the file descriptor for its output, and one for its
standard input where it gets any), ``signal``, ``kill``, ``note``. Out: ``spawned`` or ``failed``, ``noted``,
``exited`` (the first process), ``gone`` (all of it).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

MOST = 1 << 20
"""Bytes of the longest message: a command line and a whole environment."""
TOKEN = "TASKROUTER_ENGINE"
"""The environment variable that says to which engine a process belongs."""
SHM = "/dev/shm/"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SWEEP_EVERY_S = 0.02
SEGMENTS_BOUND_S = 1.0
"""A process that has ended may still be giving its memory back; so long its segments are waited for."""
NOTE_EVERY_S = 0.25
YOUNG_S = 5.0
OLDER_NOTE_EVERY_S = 1.0
"""While an engine starts, and makes what it holds, it is looked at so often, less often once it is no longer young (to
read a large process's maps slows it down); from when it has started, when the manager says so."""
REMEMBERED = ".taskrouter-shm"
"""In an engine's temporary folder: what it has in shared memory, for whoever clears up after manager and guardian."""
KILL_BOUND_S = 10.0
"""How long a tree that is being killed is waited for: what the kernel holds on to longer is reported."""


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def children(pid: int) -> list[int]:
    """The children of a process, as the kernel lists them."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += [int(child) for child in file.read().split()]
    return found


def everyone() -> list[int]:
    """The pids of all processes that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children_by_parent() -> dict[int, list[int]]:
    """Everybody's children, by looking at everybody: for kernels that keep no lists."""
    found: dict[int, list[int]] = {}
    for pid in everyone():
        with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/stat", "rb") as file:
            found.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(pid)
    return found


def descendants(pid: int) -> list[int]:
    """All descendants of a process."""
    found: list[int] = []
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        by_parent = children_by_parent()
        todo = [pid]
        while todo:
            more = by_parent.get(todo.pop(), [])
            found += more
            todo += more
        return found
    todo = [pid]
    while todo:
        more = children(todo.pop())
        found += more
        todo += more
    return found


def is_zombie(pid: int) -> bool:
    """Whether a process has ended and only waits to be reaped (or is gone already).

    Its first thread counts as a zombie while others are still on their way out, holding its memory.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            ended = file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
        return ended and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except OSError:
        return True


def carries(pid: int, token: str) -> bool:
    """Whether a process has this engine's token in the environment it was started with."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{TOKEN}={token}".encode() in file.read().split(b"\0")
    except OSError:
        return False


def segments(pid: int) -> set[int]:
    """The inodes under ``/dev/shm`` that a process has mapped or open.

    Inodes and not names: a semaphore is made under another name than the one it is then linked to.
    """
    found: set[int] = set()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            parts = line.split(None, 5)
            if len(parts) == 6 and parts[5].startswith(SHM):
                found.add(int(parts[4]))
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith(SHM):
                    found.add(os.stat(f"/proc/{pid}/fd/{name}").st_ino)
    return found


def start_time(pid: int) -> int:
    """When a process was started, in clock ticks since boot: with its pid, its identity. 0: there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def shared() -> set[int]:
    """The inodes under ``/dev/shm`` now."""
    with contextlib.suppress(OSError):
        return {entry.inode() for entry in os.scandir(SHM)}
    return set()


def unlink_unused(inodes: set[int]) -> bool:
    """Remove shared-memory files that nobody has mapped or open any more; answers whether some are still used."""
    if not inodes:
        return False
    there: dict[int, list[str]] = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(SHM):
            there.setdefault(entry.inode(), []).append(entry.path)
    left = inodes & there.keys()
    if not left:
        return False
    used: set[int] = set()
    for pid in everyone():
        used |= segments(pid)
    for path in [path for inode in left - used for path in there[inode]]:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return bool(left & used)


def remember(tmp: str, inodes: set[int]) -> None:
    """Write down what a tree holds in shared memory, before anybody is killed: whoever kills may be killed too."""
    path = os.path.join(tmp, REMEMBERED)
    with contextlib.suppress(OSError):
        with open(f"{path}.{os.getpid()}", "w", encoding="ascii") as file:
            json.dump(sorted(inodes), file)
        os.replace(f"{path}.{os.getpid()}", path)


def remembered(tmp: str) -> set[int]:
    """What was written down, if anything."""
    try:
        with open(os.path.join(tmp, REMEMBERED), encoding="ascii") as file:
            return {int(inode) for inode in json.load(file)}
    except (OSError, ValueError, TypeError):
        return set()


class Engine:
    """One engine's tree. ``dying`` is when it is given up as unkillable; ``None``: nobody is killing it;
    ``empty`` since when nothing of it runs; ``settled``: it has started."""

    def __init__(self, name: str, token: str, process: subprocess.Popen[bytes], tmp: str) -> None:
        self.name = name
        self.token = token
        self.process = process
        self.pid = process.pid
        self.tmp = tmp
        self.status: int | None = None
        self.dying: float | None = None
        self.empty: float | None = None
        self.settled = False
        self.born = time.monotonic()
        # What was there before it is somebody's: a checkpoint that is kept in RAM, say.
        self.not_its_own: set[int] = set()
        self.shm: set[int] = set()

    def note(self) -> None:
        """Look at what it has in shared memory now."""
        for pid in self.tree(descendants(os.getpid())):
            self.shm |= segments(pid) - self.not_its_own

    def tree(self, everybody: list[int]) -> list[int]:
        """Its living processes, the first of them included."""
        mine = set(descendants(self.pid)) if self.status is None else set()
        if self.status is None:
            mine.add(self.pid)
        for pid in everybody:
            if pid in mine:
                continue
            try:
                same_session = os.getsid(pid) == self.pid
            except OSError:
                continue
            if same_session or carries(pid, self.token):
                mine.add(pid)
                mine.update(descendants(pid))
        return [pid for pid in mine if not is_zombie(pid)]


class Guardian:
    def __init__(self, channel: socket.socket, manager: int) -> None:
        self.channel = channel
        self.manager = manager
        self.engines: dict[str, Engine] = {}
        self.next_note = 0.0

    def run(self) -> None:
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # Handled and not ignored: what is ignored stays so in the engines, and they must end when they are asked to.
        for mine in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(mine, lambda *_: None)
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        poll.register(woken, select.POLLIN)
        watch = -1
        with contextlib.suppress(OSError):
            watch = os.pidfd_open(self.manager)
            poll.register(watch, select.POLLIN)
        while True:
            busy = any(engine.dying is not None for engine in self.engines.values())
            starting = [engine for engine in self.engines.values() if not engine.settled]
            wait_s = SWEEP_EVERY_S if busy else NOTE_EVERY_S if starting else None
            ready = {fd for fd, _ in poll.poll(None if wait_s is None else wait_s * 1000)}
            if starting and time.monotonic() >= self.next_note:
                now = time.monotonic()
                young = any(now < engine.born + YOUNG_S for engine in starting)
                self.next_note = now + (NOTE_EVERY_S if young else OLDER_NOTE_EVERY_S)
                for engine in starting:
                    self.note(engine)
            if watch in ready or (self.channel.fileno() in ready and not self.hear()):
                return
            if woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 4096)
            self.reap()
            self.go_on_killing()

    # --- the manager -----

    def hear(self) -> bool:
        """Read one message; ``False`` when the manager is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self.channel, MOST, 2)
        except InterruptedError:
            return True
        except OSError:
            return False
        if not data:
            return False
        message = json.loads(data)
        what = message.pop("do")
        if what == "spawn":
            if fds:
                self.spawn(fds, **message)
            else:
                self.say(event="failed", name=message["name"], error="no file descriptor is left for its output")
        elif (engine := self.engines.get(message["name"])) is not None:
            if what == "signal" and engine.status is None:
                self.note(engine)
                with contextlib.suppress(OSError):
                    os.killpg(engine.pid, message["signal"])
            elif what == "kill" and engine.dying is None:
                engine.dying = time.monotonic() + KILL_BOUND_S
            elif what == "note":
                engine.settled = True
                self.note(engine)
        return True

    def say(self, **message: Any) -> None:
        # A manager that doesn't listen any more is noticed where its messages are read.
        with contextlib.suppress(OSError):
            self.channel.send(json.dumps(message).encode())

    # --- engines -----

    def spawn(self, fds: list[int], name: str, token: str, argv: list[str], env: dict[str, str], cwd: str) -> None:
        output, given = fds[0], fds[1] if len(fds) > 1 else subprocess.DEVNULL
        tmp = env.get("TMPDIR", "")
        before = shared()
        try:
            os.mkdir(tmp, 0o700)
            process = subprocess.Popen(
                argv,
                stdin=given,
                stdout=output,
                stderr=output,
                cwd=cwd,
                env=env,
                start_new_session=True,
                # Safe here: this process has one thread. The signal is the kernel's answer to our own death.
                preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            # A name or a word that no process can be given (with a NUL, an =) is no reason to take the others along.
            shutil.rmtree(tmp, ignore_errors=True)
            self.say(event="failed", name=name, error=getattr(error, "strerror", None) or str(error))
            return
        finally:
            for fd in fds:
                os.close(fd)
        self.engines[name] = engine = Engine(name, token, process, tmp)
        engine.not_its_own = before
        self.say(event="spawned", name=name, pid=engine.pid, started=start_time(engine.pid))

    def note(self, engine: Engine) -> None:
        before = len(engine.shm)
        engine.note()
        if len(engine.shm) == before:
            return
        remember(engine.tmp, engine.shm)
        # The manager keeps it too, for when this process is killed.
        self.say(event="noted", name=engine.name, shm=sorted(engine.shm))

    def reap(self) -> None:
        by_pid = {engine.pid: engine for engine in self.engines.values()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            engine = by_pid.get(pid)
            if engine is not None:
                engine.status = engine.process.returncode = os.waitstatus_to_exitcode(status)
                if engine.dying is None:
                    engine.dying = time.monotonic() + KILL_BOUND_S
                self.say(event="exited", name=engine.name, status=engine.status)

    def go_on_killing(self) -> None:
        for engine in [engine for engine in self.engines.values() if engine.dying is not None]:
            everybody = descendants(os.getpid())
            tree = engine.tree(everybody)
            self.note(engine)
            for pid in tree:
                kill(pid)
            self.reap()
            if engine.status is not None and not engine.tree(descendants(os.getpid())):
                now = time.monotonic()
                engine.empty = engine.empty or now
                if not unlink_unused(engine.shm) or now > engine.empty + SEGMENTS_BOUND_S:
                    self.bury(engine, [])
            elif engine.dying is not None and time.monotonic() > engine.dying:
                self.bury(engine, engine.tree(descendants(os.getpid())))

    def bury(self, engine: Engine, left: list[int]) -> None:
        del self.engines[engine.name]
        if engine.tmp:
            shutil.rmtree(engine.tmp, ignore_errors=True)
        self.say(event="gone", name=engine.name, left=left)

    def kill_all(self) -> None:
        """Kill and reap every descendant there is, and whatever they fork meanwhile."""
        until = time.monotonic() + KILL_BOUND_S
        while time.monotonic() < until:
            living = [pid for pid in descendants(os.getpid()) if not is_zombie(pid)]
            for engine in self.engines.values():
                self.note(engine)
            for pid in living:
                kill(pid)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                time.sleep(SWEEP_EVERY_S)
                continue
            break
        for engine in self.engines.values():
            engine.process.returncode = engine.process.returncode or -signal.SIGKILL
            unlink_unused(engine.shm)
            if engine.tmp:
                shutil.rmtree(engine.tmp, ignore_errors=True)


def main() -> None:
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    channel = socket.socket(fileno=int(sys.argv[1]))
    guardian = Guardian(channel, int(sys.argv[2]))
    try:
        guardian.run()
    finally:
        guardian.kill_all()


if __name__ == "__main__":
    main()
