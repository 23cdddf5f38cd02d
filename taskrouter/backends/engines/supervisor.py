"""The manager's side of the guardian: start a process, hear of its end, have its whole tree killed.

One supervisor, with one guardian, for each backend, bound to the event loop of its first start. A guardian that was
killed takes its engines along; what is left of them is killed from here, and the next start brings a new guardian. One
that has fallen silent is set aside: its engines serve on, and it is ended with the last of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskrouter.backends.engines import guardian, sweep
from taskrouter.backends.engines.output import Output, prune_logs
from taskrouter.backends.engines.warden import Warden
from taskrouter.errors import LoadFailed, ManagerClosed
from taskrouter.folders import state_folder

logger = logging.getLogger("taskrouter")

SPAWN_BOUND_S = 20.0
GONE_BOUND_S = 5.0
"""How long the guardian may take to kill a tree before it is done from here."""
IDLE_BOUND_S = 2.0
BUSY_BOUND_S = 15.0
"""How long a guardian may take to end by itself: with nothing left to kill, and with whole trees."""
CHECKS_AT_ONCE = 2
LONGEST_TMP = 60
"""Engines put sockets under their TMPDIR, and the kernel takes 107 characters for a socket's path."""


class Process:
    """A process tree under guard. ``exited`` is done when its first process has ended, ``gone`` when all of it has."""

    def __init__(self, supervisor: Supervisor, label: str, output: Output) -> None:
        loop = asyncio.get_running_loop()
        self._supervisor = supervisor
        self.warden: Warden | None = None
        """Whose it is; ``None``: nobody's yet."""
        self.label = label
        self.output = output
        self.token = secrets.token_hex(16)
        self.tmp = _tmp(self.token)
        self.pid = 0
        self.started = 0
        self.shm: tuple[int, ...] = ()
        """What it was last seen to hold in shared memory: inodes."""
        self.spawned: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[int] = loop.create_future()
        self.gone: asyncio.Future[list[int]] = loop.create_future()

    def __repr__(self) -> str:
        state = "gone" if self.gone.done() else "exited" if self.exited.done() else "running"
        return f"<Process {self.label} {self.pid} {state}>"

    @property
    def record(self) -> sweep.Started:
        return sweep.Started(self.label, self.token, self.pid, self.started, self.tmp, self.shm)

    def pids(self) -> list[int]:
        """The living processes of the tree. Blocks for milliseconds."""
        return [self.pid, *guardian.descendants(self.pid)] if not self.exited.done() else []

    def terminate(self) -> None:
        """Ask it to end (SIGTERM to its process group)."""
        self.tell(do="signal", signal=int(signal.SIGTERM))

    def note(self) -> None:
        """Let the guardian look at what the tree holds in shared memory, should nothing be left to look at later."""
        self.tell(do="note")

    def tell(self, **message: Any) -> None:
        """Say something about it to its guardian that needs no answer."""
        if self.warden is not None:
            self.warden.send({**message, "name": self.token})

    async def kill(self) -> list[int]:
        """Kill the whole tree, and wait until it is gone and reaped; answers the pids that can't be killed."""
        if not self.gone.done():
            self.tell(do="kill")
            await asyncio.wait({self.gone}, timeout=GONE_BOUND_S)
        if not self.gone.done():
            # A guardian that is stopped, or hangs: the kill is ours, and only of this tree.
            logger.warning("%s: the guardian doesn't answer; killing its processes directly", self.label)
            await self._supervisor.clear(self)
        return self.gone.result()

    async def stop(self, grace_s: float) -> list[int]:
        """Ask it to end, and kill what is left after ``grace_s`` seconds; answers the pids that can't be killed."""
        if not self.exited.done():
            self.terminate()
            await asyncio.wait({self.exited}, timeout=grace_s)
        return await self.kill()

    def ended(self, status: int) -> None:
        if not self.exited.done():
            self.exited.set_result(status)

    def buried(self, left: list[int]) -> None:
        self.ended(-signal.SIGKILL)
        if not self.gone.done():
            self.gone.set_result(left)


class Supervisor:
    """Starts processes under a guardian. ``folder`` is where logs and the state file are."""

    def __init__(self, folder: Path | None = None) -> None:
        self._given = folder
        self._warden: Warden | None = None
        self._aside: set[Warden] = set()
        """Guardians that have fallen silent, with engines that serve."""
        self._processes: dict[str, Process] = {}
        self._state: sweep.StateFile | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._cleaned: asyncio.Future[None] | None = None
        self.checks = asyncio.Semaphore(CHECKS_AT_ONCE)
        """Taken by who imports half an engine only to ask it something: 0.6 GB and seconds of a core each."""
        self._version = 0

    @property
    def folder(self) -> Path:
        return self._given if self._given is not None else state_folder()

    @property
    def guardian_pid(self) -> int | None:
        """The pid of the guardian that would start the next engine, while there is one."""
        return None if self._warden is None else self._warden.pid

    async def spawn(
        self,
        label: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        cwd: str,
        secret: str = "",
        log: str = "",
        stdin: int | None = None,
    ) -> Process:
        """Start a program in a session of its own. Raises ``LoadFailed`` where it can't be started.

        ``env`` is its whole environment; a token and a TMPDIR of its own are added. ``secret`` is kept out of its log.
        ``stdin`` is a file descriptor it gets a copy of. Cancelled, nothing is left running.
        """
        await self.prepare()
        self._check_open(label)
        self._guard()
        name = log or label
        output = Output(label, self.folder / "logs" / f"{_file_name(name)}.{os.getpid()}.log", secret or "\0")
        process = Process(self, label, output)
        self._processes[process.token] = process
        whole = {**env, guardian.TOKEN: process.token, "TMPDIR": process.tmp}
        message = {"do": "spawn", "name": process.token, "token": process.token, "argv": list(argv), "env": whole}
        try:
            # Written before it is started: from then on it can be found, whoever is killed in between.
            await self._write_state()
            self._check_open(label)
            process.warden = self._guard()
            fds = [output.write_end] if stdin is None else [output.write_end, stdin]
            sent = process.warden.send({**message, "cwd": cwd}, fds)
            output.start()
            async with asyncio.timeout(SPAWN_BOUND_S if sent else 0):
                await asyncio.shield(process.spawned)
            await self._write_state()
        except BaseException as error:
            output.close()
            if isinstance(error, TimeoutError):
                self._set_aside(process.warden)
            await asyncio.shield(asyncio.ensure_future(self.clear(process)))
            if isinstance(error, TimeoutError):
                raise LoadFailed(
                    f"{label} can't be started: its guardian process doesn't answer. The next start has a new one."
                ) from None
            raise
        return process

    async def prepare(self) -> None:
        """Clear away what an earlier run left, before the first look at what is free; wait while that is done."""
        if self._state is None:
            self._state = sweep.StateFile(self.folder / "engines")
            self._cleaned = asyncio.ensure_future(asyncio.to_thread(self._clean))
        if self._cleaned is not None:
            await asyncio.shield(self._cleaned)

    def _check_open(self, label: str) -> None:
        if self._closed:
            raise ManagerClosed(f"{label} can't be started: the manager was shut down")

    async def run(
        self, label: str, argv: Sequence[str], env: Mapping[str, str], *, cwd: str, bound_s: float
    ) -> tuple[int | None, str]:
        """Run a short program to its end; answers its exit status (``None``: not within the bound) and its output."""
        process = await self.spawn(label, argv, env, cwd=cwd, log="checks")
        try:
            await asyncio.wait({process.exited}, timeout=bound_s)
            status = process.exited.result() if process.exited.done() else None
        finally:
            await asyncio.shield(asyncio.ensure_future(process.kill()))
        await asyncio.to_thread(process.output.join, 2.0)
        return status, "\n".join(process.output.lines())

    async def clear(self, process: Process) -> None:
        """Kill a tree from here, without the guardian; one that only hangs is told too, for when it goes on."""
        process.tell(do="kill")
        left = await asyncio.to_thread(sweep.clear, process.record)
        process.buried(left)
        self._forget(process)
        await self._write_state()

    async def close(self) -> None:
        """Let the guardians kill what still runs and end. Idempotent."""
        self._closed = True
        wardens = [*self._aside, *([] if self._warden is None else [self._warden])]
        for warden in wardens:
            warden.hang_up()
            busy = warden not in self._aside and self._engines(warden)
            self._later(asyncio.to_thread(warden.bury, BUSY_BOUND_S if busy else IDLE_BOUND_S))
        self._warden = None
        self._aside.clear()
        while self._tasks:
            await asyncio.wait(self._tasks)
        for process in list(self._processes.values()):
            await self.clear(process)
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._state is not None:
            await asyncio.to_thread(self._state.remove)
            self._state = None

    # --- the guardian -----

    def _clean(self) -> None:
        sweep.sweep(self.folder / "engines")
        prune_logs(self.folder / "logs")

    def _guard(self) -> Warden:
        """The guardian for the next start."""
        if self._warden is None:
            self._warden = Warden(self._heard, self._lost)
        return self._warden

    def _engines(self, warden: Warden) -> list[Process]:
        return [process for process in self._processes.values() if process.warden is warden]

    def _set_aside(self, warden: Warden | None) -> None:
        """Start nothing more under a guardian that doesn't answer. Its engines need it only for their end."""
        if warden is not None and warden is self._warden:
            logger.error("the guardian of %d engine processes doesn't answer: the next start has a new one",
                         len(self._engines(warden)))  # fmt: skip
            self._warden = None
            self._aside.add(warden)

    def _heard(self, message: dict[str, Any]) -> None:
        process = self._processes.get(message["name"])
        if process is None:
            return
        match message["event"]:
            case "spawned":
                process.pid, process.started = message["pid"], message["started"]
                if not process.spawned.done():
                    process.spawned.set_result(None)
            case "failed":
                process.buried([])
                if not process.spawned.done():
                    process.spawned.set_exception(LoadFailed(f"{process.label} can't be started: {message['error']}"))
            case "noted":
                if process.shm != tuple(message["shm"]):
                    process.shm = tuple(message["shm"])
                    self._later(self._write_state())
            case "exited":
                process.ended(message["status"])
            case "gone":
                process.buried(message["left"])
                self._forget(process)
                self._later(self._write_state())

    def _lost(self, warden: Warden) -> None:
        """A guardian is gone, and not because it was told to: so are its engines, or they will be in a moment."""
        if self._warden is warden:
            self._warden = None
        self._aside.discard(warden)
        lost = self._engines(warden)
        logger.error("the guardian of %d engine processes was killed; they are started again on demand", len(lost))
        self._later(asyncio.to_thread(warden.bury, BUSY_BOUND_S))
        for process in lost:
            process.ended(-signal.SIGKILL)
            if not process.spawned.done():
                text = f"{process.label} can't be started: its guardian process was killed meanwhile. Try again."
                process.spawned.set_exception(LoadFailed(text))
            self._later(self.clear(process))

    def _forget(self, process: Process) -> None:
        self._processes.pop(process.token, None)
        warden = process.warden
        if warden in self._aside and not self._engines(warden):
            self._aside.discard(warden)
            warden.hang_up()
            self._later(asyncio.to_thread(warden.bury, IDLE_BOUND_S))

    async def _write_state(self) -> None:
        state = self._state
        if state is not None:
            records = [process.record for process in self._processes.values()]
            guardians = [warden.pid for warden in (self._warden, *self._aside) if warden is not None]
            self._version += 1
            await asyncio.to_thread(state.write, self._version, guardians, records)

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _tmp(token: str) -> str:
    base = tempfile.gettempdir()
    return os.path.join(base if len(base) <= LONGEST_TMP else "/tmp", f"taskrouter-{token[:12]}")


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in label)[:80] or "engine"


def last_words(process: Process, count: int = 12) -> str:
    """The last lines a process printed, and where the rest is."""
    tail = process.output.tail(count)
    said = f"Its last lines:\n{tail}\n" if tail else "It printed nothing. "
    return f"{said}All of them: {process.output.path}"


def ended(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
