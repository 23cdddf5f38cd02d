"""One end of the socket between a model's process and the manager's: sends in order, and tells its loop what it hears.

Two daemon threads for each end, as pickling a large array takes a while, and as a process that is stopped doesn't read.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
from collections.abc import Callable

from taskrouter.backends.hf.isolated.wire import Message, Packed, pack, receive, send
from taskrouter.errors import CallFailed


class Line:
    """Calls ``heard`` on the loop for each message, and ``lost`` once nothing more will come. Owns the socket."""

    def __init__(
        self,
        name: str,
        end: socket.socket,
        loop: asyncio.AbstractEventLoop,
        heard: Callable[[Message], None],
        lost: Callable[[], None],
    ) -> None:
        self._end = end
        self._loop = loop
        self._heard = heard
        self._lost = lost
        self._outgoing: queue.SimpleQueue[Message | Packed | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._send_all, name=f"to {name}", daemon=True),
            threading.Thread(target=self._receive_all, name=f"from {name}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def send(self, message: Message | Packed) -> None:
        """Send after what was sent before. What can't be pickled is told to the other side as a failure of its call."""
        self._outgoing.put(message)

    def close(self) -> None:
        """Hang up: the other side hears it. Idempotent."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._outgoing.put(None)

    def join(self) -> None:
        """Wait until both threads have ended, and close the socket. Blocks, not for long after ``close``."""
        for thread in self._threads:
            thread.join()
        self._end.close()
        while not self._outgoing.empty():
            _discard(self._outgoing.get())

    def _send_all(self) -> None:
        while (item := self._outgoing.get()) is not None:
            try:
                send(self._end, item if isinstance(item, Packed) else _packed(item))
            except OSError:
                return  # the other side is gone, which is heard where it would be read

    def _receive_all(self) -> None:
        while (message := receive(self._end)) is not None:
            if not self._tell(self._heard, message):
                return
        self._tell(self._lost)

    def _tell(self, listener: Callable[..., None], *about: Message) -> bool:
        try:
            self._loop.call_soon_threadsafe(listener, *about)
        except RuntimeError:  # the loop was closed: nobody listens any more
            return False
        return True


def _packed(message: Message) -> Packed:
    try:
        return pack(message)
    except Exception as error:  # noqa: BLE001  (whatever __reduce__ raises: it ends this call, not the others)
        text = f"its answer can't be sent from its process: {type(error).__name__}: {error}"
        return pack(Message("failed", message.number, (CallFailed(text), "")))


def _discard(item: Message | Packed | None) -> None:
    if isinstance(item, Packed):
        item.close()
