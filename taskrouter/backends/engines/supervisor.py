"""The manager's side of the guardian: start a process, hear of its end, have its whole tree killed.

One supervisor, with one guardian, for each backend, bound to the event loop of its first start. A guardian that was
killed takes its engines along; what is left of them is killed from here, and the next start brings a new guardian.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskrouter.backends.engines import guardian, sweep
from taskrouter.backends.engines.output import Output, prune_logs
from taskrouter.errors import LoadFailed, ManagerClosed

logger = logging.getLogger("taskrouter")

SPAWN_BOUND_S = 20.0
GONE_BOUND_S = 5.0
"""How long the guardian may take to kill a tree before it is done from here."""
CLOSE_BOUND_S = 15.0
CHECKS_AT_ONCE = 2
LONGEST_TMP = 60
"""Engines put sockets under their TMPDIR, and the kernel takes 107 characters for a socket's path."""


class Process:
    """A process tree under guard. ``exited`` is done when its first process has ended, ``gone`` when all of it has."""

    def __init__(self, supervisor: Supervisor, label: str, output: Output, tmp: str) -> None:
        loop = asyncio.get_running_loop()
        self._supervisor = supervisor
        self.label = label
        self.output = output
        self.tmp = tmp
        self.token = secrets.token_hex(16)
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
        self._supervisor.tell(do="signal", name=self.token, signal=int(signal.SIGTERM))

    def note(self) -> None:
        """Let the guardian look at what the tree holds in shared memory, should nothing be left to look at later."""
        self._supervisor.tell(do="note", name=self.token)

    async def kill(self) -> list[int]:
        """Kill the whole tree, and wait until it is gone and reaped; answers the pids that can't be killed."""
        if not self.gone.done():
            self._supervisor.tell(do="kill", name=self.token)
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
        self._channel: socket.socket | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._processes: dict[str, Process] = {}
        self._state: sweep.StateFile | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._cleaned: asyncio.Future[None] | None = None
        self.checks = asyncio.Semaphore(CHECKS_AT_ONCE)
        """Taken by who imports half an engine only to ask it something: 0.6 GB and seconds of a core each."""
        self._version = 0

    @property
    def folder(self) -> Path:
        return self._given if self._given is not None else sweep.state_folder()

    @property
    def guardian_pid(self) -> int | None:
        """The guardian's pid while there is one."""
        return None if self._guardian is None else self._guardian.pid

    async def spawn(
        self, label: str, argv: Sequence[str], env: Mapping[str, str], *, cwd: str, secret: str = "", log: str = ""
    ) -> Process:
        """Start a program in a session of its own. Raises ``LoadFailed`` where it can't be started.

        ``env`` is its whole environment; a token and a TMPDIR of its own are added. ``secret`` is kept out of its log.
        Cancelled, nothing is left running.
        """
        await self.prepare()
        self._check_open(label)
        self._ensure_guardian()
        name = log or label
        output = Output(label, self.folder / "logs" / f"{_file_name(name)}.{os.getpid()}.log", secret or "\0")
        process = Process(self, label, output, "")
        process.tmp = _tmp(process.token)
        self._processes[process.token] = process
        whole = {**env, guardian.TOKEN: process.token, "TMPDIR": process.tmp}
        message = {"do": "spawn", "name": process.token, "token": process.token, "argv": list(argv), "env": whole}
        try:
            # Written before it is started: from then on it can be found, whoever is killed in between.
            await self._write_state()
            self._check_open(label)
            self._ensure_guardian()
            sent = self._send({**message, "cwd": cwd}, [output.write_end])
            output.start()
            async with asyncio.timeout(SPAWN_BOUND_S if sent else 0):
                await asyncio.shield(process.spawned)
            await self._write_state()
        except BaseException as error:
            output.close()
            await asyncio.shield(asyncio.ensure_future(self.clear(process)))
            if isinstance(error, TimeoutError):
                raise LoadFailed(f"{label} can't be started: its guardian process doesn't answer. Try again.") from None
            raise
        return process

    async def prepare(self) -> None:
        """Clear away what an earlier run left, before the first look at what is free; wait while that is done."""
        self._loop = asyncio.get_running_loop()
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
        self.tell(do="kill", name=process.token)
        left = await asyncio.to_thread(sweep.clear, process.record)
        process.buried(left)
        self._forget(process)
        await self._write_state()

    async def close(self) -> None:
        """Let the guardian kill what still runs and end. Idempotent."""
        self._closed = True
        self._close_channel()
        warden, self._guardian = self._guardian, None
        if warden is not None:
            await asyncio.to_thread(_wait, warden)
        for process in list(self._processes.values()):
            await self.clear(process)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_BOUND_S)
        if self._state is not None:
            await asyncio.to_thread(self._state.remove)
            self._state = None

    # --- the guardian -----

    def _clean(self) -> None:
        sweep.sweep(self.folder / "engines")
        prune_logs(self.folder / "logs")

    def _ensure_guardian(self) -> None:
        if self._channel is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * guardian.MOST)
            ours.setblocking(False)
            try:
                self._guardian = subprocess.Popen(
                    [sys.executable, "-I", "-S", guardian.__file__, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    cwd="/",
                )
            except OSError as error:
                ours.close()
                raise LoadFailed(f"the guardian of engine processes can't be started: {error}") from error
        self._channel = ours
        assert self._loop is not None
        self._loop.add_reader(ours, self._hear)

    def tell(self, **message: Any) -> None:
        """Say something that needs no answer."""
        self._send(message, [])

    def _send(self, message: dict[str, Any], fds: list[int]) -> bool:
        if self._channel is None:
            return False
        try:
            socket.send_fds(self._channel, [json.dumps(message).encode()], fds)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise LoadFailed(
                    f"an engine's command line and environment come to more than one message holds "
                    f"({len(json.dumps(message))} bytes): shorten this process's environment"
                ) from error
            # Gone, or not reading: its silence is noticed by whoever waits for an answer.
            logger.debug("the guardian can't be told to %s: %s", message["do"], error)
            return False
        return True

    def _hear(self) -> None:
        while self._channel is not None:
            try:
                data = self._channel.recv(guardian.MOST)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            self._heard(json.loads(data))

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

    def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None and self._loop is not None:
            self._loop.remove_reader(channel)
            channel.close()

    def _lost(self) -> None:
        """The guardian is gone, and not because it was told to: so are its engines, or they will be in a moment."""
        self._close_channel()
        warden, self._guardian = self._guardian, None
        logger.error("the guardian of %d engine processes was killed; they are started again on demand",
                     len(self._processes))  # fmt: skip
        if warden is not None:
            self._later(asyncio.to_thread(_wait, warden))
        for process in list(self._processes.values()):
            process.ended(-signal.SIGKILL)
            if not process.spawned.done():
                text = f"{process.label} can't be started: its guardian process was killed meanwhile. Try again."
                process.spawned.set_exception(LoadFailed(text))
            self._later(self.clear(process))

    def _forget(self, process: Process) -> None:
        self._processes.pop(process.token, None)

    async def _write_state(self) -> None:
        state, warden = self._state, self._guardian
        if state is not None:
            records = [process.record for process in self._processes.values()]
            self._version += 1
            await asyncio.to_thread(state.write, self._version, 0 if warden is None else warden.pid, records)

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _wait(warden: subprocess.Popen[bytes]) -> None:
    try:
        warden.wait(CLOSE_BOUND_S)
    except subprocess.TimeoutExpired:
        warden.kill()
        warden.wait()


def _tmp(token: str) -> str:
    base = tempfile.gettempdir()
    return os.path.join(base if len(base) <= LONGEST_TMP else "/tmp", f"taskrouter-{token[:12]}")


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in label)[:80] or "engine"


def ended(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
