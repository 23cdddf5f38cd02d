"""What may be read, and how much of it: the guard in front of every image and every sound.

Whatever a caller names (a path, bytes, a file object, a ``data:`` URL) becomes one open, seekable binary file here, of
a size that is known to be within the limits. Decoding is for the files beside this one.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media.remote import fetch

_MIB = 1 << 20
_REMOTE = re.compile(r"https?://", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """The ``media:`` section as the readers see it.

    ``roots`` are the folders that paths must lie under once symbolic links are followed; ``None`` lets a path be
    anywhere, which suits a library but no server, and an empty tuple refuses every path. ``remote`` lets http(s) URLs
    be fetched: from ``allowed_hosts`` where there are any, and from public addresses only.
    """

    max_bytes: int = 512 * _MIB
    max_pixels: int = 40_000_000
    max_seconds: float = 3600.0
    max_frames: int = 1024
    roots: tuple[str, ...] | None = None
    remote: bool = False
    allowed_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that is open: its bytes, what to call it in a message, and how many bytes it has."""

    file: BinaryIO
    name: str
    size: int


@contextmanager
def opened(source: Any, limits: MediaLimits, *, what: str) -> Iterator[Opened]:
    """Open a path, bytes, a binary file object or a ``data:`` URL for reading; ``what`` names it in messages.

    May block on the file system. A file object is read from where it stands and is not closed. Raises ``BadInput`` for
    what can't be opened and ``MediaTooLarge`` for what is over ``max_bytes``.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        _check_size(memoryview(source).nbytes, f"the {what}", limits)
        yield _in_memory(bytes(source), f"the {what}", limits)
    elif isinstance(source, str) and source[:5].lower() == "data:":
        yield _in_memory(_decode_data_url(source, limits, what), f"the {what} in the data: URL", limits)
    elif isinstance(source, str) and limits.remote and _REMOTE.match(source):
        yield _in_memory(fetch(source, limits, what=what), f"the {what} that was fetched", limits)
    elif isinstance(source, (str, os.PathLike)):
        path = _checked_path(source, limits, what)
        with _open_regular(path, str(source), limits) as file:
            yield Opened(file, str(source), os.fstat(file.fileno()).st_size)
    elif hasattr(source, "read"):
        yield _in_memory(_drain(source, limits, what), f"the {what}", limits)
    else:
        raise BadInput(
            f"{type(source).__name__} is nothing that {what} can be read from: "
            "give a path, bytes, a binary file object, a data: URL or an array."
        )


def _in_memory(data: bytes, name: str, limits: MediaLimits) -> Opened:
    if not data:
        raise BadInput(f"{name} is empty: there are no bytes to read.")
    _check_size(len(data), name, limits)
    return Opened(io.BytesIO(data), name, len(data))


def _check_size(size: int, name: str, limits: MediaLimits) -> None:
    if size > limits.max_bytes:
        raise MediaTooLarge(
            f"{name} has {_mib(size)}, and media.max_bytes allows {_mib(limits.max_bytes)}: "
            "give a smaller file, or raise the limit."
        )


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB" if size >= _MIB / 10 else f"{size} bytes"


def _checked_path(source: str | os.PathLike[str], limits: MediaLimits, what: str) -> Path:
    """Follow links, and see that the path is allowed before anything is said about what is there."""
    text = os.fspath(source)
    if not isinstance(text, str) or not text or "\0" in text:
        raise BadInput(f"{text!r} is no path: give the path of a file.")
    if _URL.match(text):
        raise BadInput(
            f"{text.split('?')[0]!r} is a URL, and only local files are read: "
            f"download the {what} first, give its bytes or a data: URL, or set media.remote for http(s) URLs."
        )
    try:
        path = Path(text).resolve()
    except (OSError, RuntimeError) as error:
        raise BadInput(f"{text} can't be followed: {error}.") from error
    if limits.roots is not None and not any(path.is_relative_to(Path(root).resolve()) for root in limits.roots):
        # Not which: whoever names the path may be somebody else than who wrote the file.
        raise BadInput(f"{text} lies outside the folders that media.roots allows: move it, or add a folder.")
    return path


@contextmanager
def _open_regular(path: Path, name: str, limits: MediaLimits) -> Iterator[BinaryIO]:
    """Open a file that has an end: a pipe would block for ever, and a device need never stop."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        where = "" if limits.roots is not None else f" (the current folder is {Path.cwd()})"
        raise BadInput(f"{name} isn't there: check the path{where}.") from error
    except OSError as error:
        raise BadInput(f"{name} can't be opened: {error.strerror or error}.") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise BadInput(f"{name} is a folder: give one file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{name} is no regular file (a pipe, socket or device): give a file, or its bytes.")
        if not status.st_size:
            raise BadInput(f"{name} is empty: there are no bytes to read.")
        _check_size(status.st_size, name, limits)
        file = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with file:
        yield file


def read_left(source: Any, limits: MediaLimits, what: str) -> Any:
    """What a file object has left, one byte (or letter) more than ``max_bytes`` at most. Raises ``BadInput``."""
    try:
        return source.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:
        raise BadInput(f"the {what} can't be read from {type(source).__name__}: {error}.") from error


def _drain(source: Any, limits: MediaLimits, what: str) -> bytes:
    data = read_left(source, limits, what)
    if not isinstance(data, bytes):
        raise BadInput(f"the {what} was opened as text: open the file in binary mode ('rb').")
    return data


def _decode_data_url(url: str, limits: MediaLimits, what: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma:
        raise BadInput(f"the data: URL of the {what} has no comma, so no data: write data:<type>;base64,<data>.")
    if not header.lower().endswith(";base64"):
        _check_size(len(body), f"the {what} in the data: URL", limits)
        return urllib.parse.unquote_to_bytes(body)
    _check_size(len(body) * 3 // 4 - 2, f"the {what} in the data: URL", limits)
    try:
        return base64.b64decode("".join(urllib.parse.unquote(body).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput(f"the data: URL of the {what} is no valid base64 ({error}): encode the file again.") from error
