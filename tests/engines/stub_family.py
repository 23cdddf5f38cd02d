"""The stub's child and grandchild: an engine is a tree of processes, and what it holds outlives its head."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import socket
import sys
import time


def say(text: str) -> None:
    """On stderr, as engines do."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Family:
    """The child and the grandchild, forked before anything else runs; all three hold the shared memory."""

    def __init__(self, *, deaf: bool) -> None:
        self.segment = f"/dev/shm/stub-{os.environ.get('STUB_RUN', '')}-{os.getpid()}"
        self.scratch = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"stub-{os.getpid()}")
        with open(self.scratch, "w", encoding="ascii") as file:
            file.write("scratch")
        self.ours, theirs = socket.socketpair()
        self.sent = self.received = 0
        self.waiting: dict[int, asyncio.Future[None]] = {}
        self.child = os.fork()
        if not self.child:
            self.ours.close()
            _serve_as_child(theirs, self.segment, deaf=deaf)
        theirs.close()
        self.grandchild = int(self.ours.recv(16) or self._bereft())
        self.memory = _map(self.segment, os.O_RDWR)

    def attach(self) -> None:
        self.ours.setblocking(False)
        asyncio.get_running_loop().add_reader(self.ours, self._hear)

    def _hear(self) -> None:
        try:
            echoes = self.ours.recv(4096)
        except ConnectionError:
            echoes = b""
        if not echoes:
            self._bereft()
        self.received += len(echoes)
        for number in [number for number in self.waiting if number <= self.received]:
            future = self.waiting.pop(number)
            if not future.done():
                future.set_result(None)

    def _bereft(self) -> int:
        say("a worker process died")
        self.clean()
        os._exit(1)

    async def ping(self) -> None:
        """There and back, through the child and the grandchild."""
        self.sent += 1
        future = self.waiting[self.sent] = asyncio.get_running_loop().create_future()
        self.ours.send(b".")
        await future

    def clean(self) -> None:
        for path in (self.segment, self.scratch):
            if os.path.exists(path):
                os.unlink(path)


def _serve_as_child(parent: socket.socket, segment: str, *, deaf: bool) -> None:
    """Hand each byte to the grandchild and its echo back. Without a parent: hold on to everything, as engines do."""
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    memory = _map(segment, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    memory[:4] = b"stub"
    ours, theirs = socket.socketpair()
    grandchild = os.fork()
    if not grandchild:
        ours.close()
        parent.close()
        while data := theirs.recv(4096):
            theirs.sendall(data)
        _wait_for_ever()
    theirs.close()

    def end_with_it(*_: object) -> None:
        # The signal also comes when it is stopped or goes on.
        if os.waitpid(grandchild, os.WNOHANG)[0]:
            os._exit(1)

    signal.signal(signal.SIGCHLD, end_with_it)
    end_with_it()
    with contextlib.suppress(OSError):
        parent.sendall(str(grandchild).encode())
        while data := parent.recv(4096):
            ours.sendall(data)
            while data and (echo := ours.recv(4096)):
                parent.sendall(echo)
                data = data[len(echo) :]
    _wait_for_ever()


def _map(segment: str, flags: int) -> mmap.mmap:
    fd = os.open(segment, flags, 0o600)
    try:
        os.ftruncate(fd, 1 << 20)
        return mmap.mmap(fd, 1 << 20)
    finally:
        os.close(fd)


def _wait_for_ever() -> None:
    while True:
        time.sleep(1000)
