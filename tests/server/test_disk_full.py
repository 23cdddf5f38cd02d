"""Uploads that find no room on the disk."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import ClassVar

import pytest

from .clients import Raw, json_of, status_of
from .serving import serving, written
from .test_transcriptions import SOUND, TASKS

PART = b'--b\r\ncontent-disposition: form-data; name="%s"; filename="a.wav"\r\n\r\n%s\r\n'
MODEL = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nhear\r\n'
KIND = {"content-type": "multipart/form-data; boundary=b"}


class Full(tempfile.SpooledTemporaryFile[bytes]):
    """What is too large for memory goes where the kernel says that nothing has room."""

    made: ClassVar[weakref.WeakSet[Full]] = weakref.WeakSet()

    def __init__(self, max_size: int = 0) -> None:
        super().__init__(max_size)
        self.made.add(self)

    def rollover(self) -> None:
        if not self._rolled:  # type: ignore[has-type]
            self._rolled = True
            held, self._file = self._file, open("/dev/full", "r+b")  # noqa: SIM115 - the form closes it
            held.seek(0)
            self._file.write(held.read())


def sent(url: str, path: str, form: bytes) -> bytes:
    with Raw(url) as client:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {KIND['content-type']}\r\n"
        client.socket.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(form) + form)
        return client.until(b"}}")


def test_an_upload_without_room_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", Full)
    with serving(written(tmp_path, TASKS)) as served:
        form = MODEL + PART % (b"file", SOUND * 200) + b"--b--\r\n"
        for path in ("/v1/audio/transcriptions", "/v1/tasks/hear"):
            answer = sent(served.url, path, form)
            assert status_of(answer) == 507, answer
            error = json_of(answer)["error"]
            assert error["code"] == "disk_full"
            assert "TMPDIR" in error["message"]
            assert b"retry-after" in answer
        assert all(file.closed for file in Full.made)
        small = MODEL + PART % (b"file", SOUND) + b"--b--\r\n"
        assert status_of(sent(served.url, "/v1/audio/transcriptions", small)) == 200
