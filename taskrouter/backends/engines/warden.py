"""The manager's end of one guardian: its process and the socket to it."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from taskrouter.backends.engines import guardian
from taskrouter.errors import LoadFailed

logger = logging.getLogger("taskrouter")


class Warden:
    """Starts a guardian on the running loop. ``heard`` gets each message it sends, ``lost`` is called when it is gone.

    Raises ``LoadFailed`` where the guardian can't be started.
    """

    def __init__(self, heard: Callable[[dict[str, Any]], None], lost: Callable[[Warden], None]) -> None:
        self._heard = heard
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * guardian.MOST)
            ours.setblocking(False)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", guardian.__file__, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    cwd="/",
                )
            except OSError as error:
                ours.close()
                raise LoadFailed(f"the guardian of engine processes can't be started: {error}") from error
        self._channel: socket.socket | None = ours
        self._loop.add_reader(ours, self._hear)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> bool:
        """Say something; ``False`` where the guardian is gone, or doesn't read.

        Raises ``LoadFailed`` for what is longer than one message.
        """
        if self._channel is None:
            return False
        try:
            socket.send_fds(self._channel, [json.dumps(message).encode()], list(fds))
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

    def hang_up(self) -> None:
        """Close the socket: a guardian that runs kills its engines and ends. Idempotent."""
        channel, self._channel = self._channel, None
        if channel is not None:
            self._loop.remove_reader(channel)
            channel.close()

    def bury(self, bound_s: float) -> None:
        """Wait for its end, and kill it where it doesn't come. Blocks."""
        try:
            self._process.wait(bound_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hear(self) -> None:
        while self._channel is not None:
            try:
                data = self._channel.recv(guardian.MOST)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.hang_up()
                self._lost(self)
                return
            self._heard(json.loads(data))
