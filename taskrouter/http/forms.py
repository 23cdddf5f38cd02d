"""Multipart forms, read as they come: small fields in memory, files spooled to disk, all of it within bounds."""

from __future__ import annotations

import errno
import logging
import tempfile
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.http.exchange import Exchange
from taskrouter.http.failing import Refused

logger = logging.getLogger("taskrouter.http")

BESIDE = 1 << 20
"""Bytes of a form beside its file: its other fields, and what is between them."""
_LONGEST_FIELD = 1 << 16
_MOST_FIELDS = 64
MOST_SAID = 2 << 20
"""Bytes of all fields that are no files, together: they stay in memory."""
_IN_MEMORY = 1 << 18
"""Bytes of a file that aren't worth a file on disk."""
_FULL_S = 10.0
"""Other uploads have ended by then, perhaps, and made room."""


class _Parser(MultiPartParser):
    """Knows whether the form has ended, and how much of it is in memory: fields that are no files."""

    spool_max_size = _IN_MEMORY
    ended = False
    _said = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._said += end - start
            if self._said > MOST_SAID:
                raise MultiPartException(f"Part exceeded: fields have more than {MOST_SAID} bytes together")
        super().on_part_data(data, start, end)

    def on_end(self) -> None:
        self.ended = True

    def close(self) -> None:
        """Let go of all files, also where what they still had to write has no room."""
        for file in self._files_to_close_on_error:
            with suppress(OSError):
                file.close()


async def form_of(
    exchange: Exchange, most: int, *, files: int = 1, total: int | None = None, longest: int = _LONGEST_FIELD
) -> FormData:
    """A multipart form whose files have ``most`` bytes each, at most; then ``watch`` begins. ``close`` it in the end.

    ``total``: bytes of everything; ``longest``: of a field that is no file.

    Raises ``Refused`` (415) for another kind of body, ``BadInput`` for one that is broken, ``MediaTooLarge``, ``Gone``,
    ``Refused`` (507) where the disk is full.
    """
    kind = exchange.header(b"content-type") or ""
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        said = f"a body of type {kind[:80]!r}" if kind else "no content-type"
        raise Refused(415, f"{said} was sent; a multipart/form-data form with a file in it is wanted",
                      code="unsupported_media_type")  # fmt: skip
    parser: _Parser | None = None

    async def read() -> AsyncGenerator[bytes, None]:
        async for piece in exchange.pieces(files * most + BESIDE if total is None else total):
            yield piece
        # Said here, where the parser still closes its files: for it a form that breaks off is one with fewer fields.
        if parser is not None and not parser.ended:
            raise BadInput("the form is cut short: its closing boundary is missing")

    parser = _Parser(
        Headers({"content-type": kind}), read(),
        max_files=files, max_fields=_MOST_FIELDS, max_part_size=longest,
    )  # fmt: skip
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Part exceeded"):
            text = f"a field of the form has more than {longest:,} bytes, or all of them more than {MOST_SAID:,}"
            raise MediaTooLarge(f"{text}: send it as a file") from error
        raise BadInput(f"the multipart form can't be read: {error.message}") from error
    except OSError as error:
        parser.close()
        if (refused := _no_room(error)) is None:
            raise
        raise refused from error
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile) and (value.size or 0) > most:
                raise MediaTooLarge(f"the file in {name[:40]!r} has {value.size:,} bytes; {most:,} are taken")
    except BaseException:
        close(form)
        raise
    exchange.watch()
    return form


def _no_room(error: OSError) -> Refused | None:
    """What is told of a file that could not be kept. Which folder that is stays this machine's, and in its log."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:  # none could be written when one was looked for
        folder, full = "any folder for temporary files", True
    if not full:
        return None
    logger.warning("an upload was refused: no room is left in %s: %s", folder, error)
    text = "the server has no room left on its disk for the upload: ask again later, or send less"
    return Refused(507, f"{text} (its operator: free some, or set TMPDIR)", code="disk_full", retry_after_s=_FULL_S)


def close(form: FormData) -> None:
    """Let go of its files. Waits for nothing: where the client has gone away, waiting is cancelled."""
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            value.file.close()


def text_of(form: FormData, name: str) -> str | None:
    """A field's text. Raises ``BadInput`` for a field that is there twice, or is a file."""
    values = form.getlist(name)
    if len(values) > 1:
        raise BadInput(f"the form has {name} {len(values)} times")
    if values and not isinstance(values[0], str):
        raise BadInput(f"{name} must be a text; a file was sent")
    return str(values[0]) if values else None


def file_of(form: FormData, name: str) -> UploadFile:
    """A field's file. Raises ``BadInput`` where there is none, or nothing in it."""
    values: list[Any] = form.getlist(name)
    if len(values) != 1 or not isinstance(values[0], UploadFile):
        raise BadInput(f"the form needs a file in its field {name}")
    if not values[0].size:
        raise BadInput(f"the file in {name} is empty")
    return values[0]


class Upload:
    """A file that was sent, as models read it: from its beginning each time, since several may be asked for one answer.

    Of the name that it was sent with only the ending is kept, by which providers tell the kind of a file: nothing
    that is a path.
    """

    def __init__(self, file: UploadFile, stem: str, endings: frozenset[str]) -> None:
        self.size = file.size or 0
        self._file = file.file
        self._lock = threading.Lock()
        ending = (file.filename or "").rpartition(".")[2].lower()
        self.name = f"{stem}.{ending}" if ending in endings else stem

    def __repr__(self) -> str:
        return f"<Upload {self.name}>"

    def read(self, most: int = -1) -> bytes:
        """Its bytes, ``most`` of them; blocks where they are on disk."""
        with self._lock:
            self._file.seek(0)
            return self._file.read(most)

    def __reduce__(self) -> tuple[Any, ...]:
        # To a model in a process of its own go the bytes.
        return bytes, (self.read(),)
