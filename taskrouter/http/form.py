"""Forms with files (``multipart/form-data``), read within bounds: what is large waits on disk, not in memory.

A file's name is what a client says it is, and is used for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from taskrouter.errors import BadInput, MediaTooLarge, TaskRouterError
from taskrouter.http.exchange import Exchange

MOST_PARTS = 64
"""Of each sort: files, and other fields."""
LONGEST_TEXT = 1 << 20
"""Bytes of a field that is no file."""


class Upload:
    """A file that came with a request. Each ``read`` begins at its start: whoever is asked next gets all of it, too.

    Sent to another process it is its bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._file = file
        self._lock = threading.Lock()

    def read(self, size: int = -1) -> bytes:
        """So many bytes from the beginning."""
        with self._lock:
            self._file.seek(0)
            return self._file.read(size)

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (self.read(),)


class _Parser(MultiPartParser):
    """Starlette's, which also knows whether the form's end was seen."""

    spool_max_size = 1 << 18
    whole = False

    def on_end(self) -> None:
        self.whole = True

    def close(self) -> None:
        for file in self._files_to_close_on_error:
            file.close()


@asynccontextmanager
async def form(exchange: Exchange, *, most_each: int, most: int) -> AsyncIterator[list[tuple[str, str | Upload]]]:
    """The fields of a form, in order; its files are gone at the end. Then the client is watched.

    Raises ``MediaTooLarge`` for a file of more than ``most_each`` bytes, or ``most`` of all, ``BadInput`` for no form.
    """
    headers = Headers(raw=[(b"content-type", exchange.headers.get(b"content-type", b""))])
    pieces = exchange.pieces(most)
    parser = _Parser(headers, pieces, max_files=MOST_PARTS, max_fields=MOST_PARTS, max_part_size=LONGEST_TEXT)
    try:
        try:
            fields = (await parser.parse()).multi_items()
        except TaskRouterError:
            raise
        except MultiPartException as error:
            if error.message.startswith("Part exceeded"):
                raise MediaTooLarge(f"a field of the form has more than {LONGEST_TEXT:,} bytes: send a file") from error
            raise BadInput(f"the form can't be read: {error.message}") from error
        except (ValueError, LookupError) as error:
            raise BadInput("the form can't be read: its headers make no sense") from error
        if not parser.whole:
            raise BadInput("the form ends before its last boundary")
        exchange.watch()
        yield [(name, _value(name, value, most_each)) for name, value in fields]
    finally:
        await pieces.aclose()
        parser.close()


def _value(name: str, value: str | UploadFile, most: int) -> str | Upload:
    if isinstance(value, str):
        return value
    size = value.size or 0
    if size > most:
        raise MediaTooLarge(f"the file {name[:80]!r} has {size:,} bytes, and media.max_bytes allows {most:,}")
    return Upload(value.file, size)
