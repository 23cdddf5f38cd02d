"""How a message travels between two processes of one user: pickled, and what is large in shared memory.

A message is one datagram of a Unix socket pair, so it arrives whole or not at all. Its body is a pickle (protocol 5):
both ends run the same code with the same rights, and nobody else can reach the socket. Arrays are taken out of the
pickle, and where a body is larger than ``INLINE`` it goes, with them, into a ``memfd`` whose descriptor travels with
the datagram: memory without a name, so that a crash on either side leaves nothing behind.

What a message means is not known here, and what its body is neither: verbs and their requests pass as they are.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from taskrouter.errors import BadInput
from taskrouter.media.image import load_image
from taskrouter.media.limits import MediaLimits, read_left

INLINE = 32 << 10
"""Bytes of the longest body inside a datagram: what a socket takes at a time is some hundred thousand at least."""
OUT_OF_BAND = 64 << 10
"""Bytes from which on a buffer isn't worth being copied into the pickle first."""
MOST = INLINE + 4096
"""Bytes of the longest datagram."""
MOST_AT_ONCE = 1 << 30
"""Bytes of one read or write: the kernel moves no more than 2 GiB at a time."""


@dataclass(frozen=True, slots=True)
class Message:
    """``what`` is asked or answered; ``number`` says of which call."""

    what: str
    number: int = 0
    body: Any = None


@dataclass(frozen=True, slots=True)
class Garbled:
    """The body of a message that could not be unpickled, and why."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Packed:
    """A message on its way: the datagram, and the memory that goes with it. Whoever sends it, or doesn't, closes it."""

    datagram: bytes
    memory: int | None = None

    def close(self) -> None:
        if self.memory is not None:
            os.close(self.memory)


class Drained:
    """A file object that was read where it was: the other process can't."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def read(self, size: int = -1) -> Any:
        data, self._data = self._data, self._data[:0]
        return data if size < 0 else data[:size]


def pack(message: Message, limits: MediaLimits | None = None) -> Packed:
    """Make a message ready to be sent. Blocks: it may read files that its body holds open, within ``limits``.

    Raises ``BadInput`` or ``MediaTooLarge`` for those, and what pickle raises for what it can't pickle.
    """
    buffers: list[memoryview] = []

    def take_out(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND:
            return True
        buffers.append(view)
        return False

    body = io.BytesIO()
    _Pickler(body, limits, take_out).dump(message.body)
    pickled = body.getbuffer()
    if not buffers and pickled.nbytes <= INLINE:
        return Packed(pickle.dumps((message.what, message.number, bytes(pickled), 0)))
    pieces = [pickled, *buffers]
    sizes = pickle.dumps([piece.nbytes for piece in pieces])
    memory = os.memfd_create("taskrouter-message", os.MFD_CLOEXEC)
    try:
        for piece in (memoryview(sizes), *pieces):
            _write(memory, piece)
    except BaseException:
        os.close(memory)
        raise
    return Packed(pickle.dumps((message.what, message.number, None, len(sizes))), memory)


def send(end: socket.socket, packed: Packed) -> None:
    """Send it. Blocks as long as the other side doesn't read; raises ``OSError`` where it is gone."""
    try:
        socket.send_fds(end, [packed.datagram], [] if packed.memory is None else [packed.memory])
    finally:
        packed.close()


def receive(end: socket.socket) -> Message | None:
    """Wait for the next message; ``None``: the other side is gone. A body that makes no sense is ``Garbled``.

    Memory is read and given back at once: a descriptor kept for each array that a caller keeps would run out.
    """
    try:
        datagram, fds, _, _ = socket.recv_fds(end, MOST, 1, socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return None
    if not datagram:
        return None
    try:
        what, number, body, table = pickle.loads(datagram)
        try:
            return Message(what, number, pickle.loads(body) if body is not None else _unpacked(fds[0], table))
        except Exception as error:  # noqa: BLE001  (anything may come of a stranger's __setstate__)
            return Message(what, number, Garbled(error))
    finally:
        for fd in fds:
            os.close(fd)


def _unpacked(memory: int, table: int) -> Any:
    sizes = pickle.loads(_read(memory, 0, table))
    at, pieces = table, []
    for size in sizes:
        pieces.append(_read(memory, at, size))
        at += size
    return pickle.loads(pieces[0], buffers=pieces[1:])


def _write(memory: int, piece: memoryview) -> None:
    done = 0
    while done < piece.nbytes:
        done += os.write(memory, piece[done : done + MOST_AT_ONCE])


def _read(memory: int, at: int, size: int) -> bytearray:
    """Bytes that may be changed, as arrays may that are made of them."""
    piece = bytearray(size)
    view, done = memoryview(piece), 0
    while done < size:
        got = os.preadv(memory, [view[done : done + MOST_AT_ONCE]], at + done)
        if not got:
            raise EOFError(f"{size - done} bytes of a message are missing")
        done += got
    return piece


class _Buffers(Protocol):
    def __call__(self, buffer: pickle.PickleBuffer, /) -> bool: ...


class _Pickler(pickle.Pickler):
    """Knows how to send what a request may hold and pickle can't."""

    def __init__(self, file: io.BytesIO, limits: MediaLimits | None, take_out: _Buffers) -> None:
        super().__init__(file, protocol=5, buffer_callback=take_out)
        self._limits = limits

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, memoryview):
            return bytes, (value.tobytes(),)
        if isinstance(value, MappingProxyType):
            return dict, (dict(value),)
        if self._limits is None or isinstance(value, type):
            return NotImplemented
        if callable(getattr(value, "read", None)):
            return Drained, (_drained(value, self._limits),)
        pillow = sys.modules.get("PIL.Image")
        if pillow is not None and isinstance(value, pillow.Image):
            load_image(value, self._limits)  # what was only opened is read here, within the limits; it goes as it is
        return NotImplemented


def _drained(source: Any, limits: MediaLimits) -> Any:
    """Text, too: what it is no medium for is said where it is read."""
    data = read_left(source, limits, "input")
    if not isinstance(data, Sequence):
        raise BadInput(f"the input can't be read from {type(source).__name__}: it reads {type(data).__name__}.")
    return data
