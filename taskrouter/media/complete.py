"""Is all of an audio file there? What its container says about its own length, where it says anything.

Demuxers read to the end of the file and call that the end of the sound, so a file cut short decodes without an error.
What gives it away:

- WAV: the size of the data chunk, against the bytes that follow it.
- Ogg: the last page must be whole and carry the end-of-stream flag.
- FLAC, MP4, AIFF, AU, Matroska with one track, MP3 with a Xing or VBRI header: the declared duration.

An MP3 without such a header, raw AAC and live Matroska declare nothing; there a cut can't be told from the end.
"""

from __future__ import annotations

import os
import struct
from typing import Any, BinaryIO

_DECLARING = frozenset({"flac", "mov,mp4,m4a,3gp,3g2,mj2", "aiff", "au", "caf", "w64"})
_UNKNOWN = 0xFFFFFFFF
_OGG_PAGE_HEADER = 27
_OGG_LARGEST_PAGE = _OGG_PAGE_HEADER + 255 + 255 * 255
_OGG_LAST = 0x04


def declared_seconds(container: Any, file: BinaryIO) -> float | None:
    """The length its header declares, or ``None`` where the demuxer's figure would be a guess from the file's size."""
    stream = container.streams.audio[0]
    form = container.format.name
    if form in _DECLARING or (form == "mp3" and _mp3_declares(file)):
        return float(stream.duration * stream.time_base) if stream.duration else None
    if form == "matroska,webm" and len(container.streams) == 1 and container.duration:
        return float(container.duration) / 1_000_000
    return None


def missing_tail(file: BinaryIO, size: int, form: str) -> str | None:
    """Say what is missing at the end of a WAV or Ogg file, or ``None``."""
    if form == "wav":
        return _wav_tail(file, size)
    if form == "ogg":
        return _ogg_tail(file, size)
    return None


def _wav_tail(file: BinaryIO, size: int) -> str | None:
    file.seek(12)
    long_data: int | None = None
    while len(head := file.read(8)) == 8:
        chunk, length = head[:4], struct.unpack("<I", head[4:])[0]
        if chunk == b"ds64":
            sizes = file.read(16)
            long_data = struct.unpack("<QQ", sizes)[1] if len(sizes) == 16 else None
            file.seek(length - len(sizes), os.SEEK_CUR)
            continue
        if chunk == b"data":
            declared = long_data if length == _UNKNOWN else length
            there = size - file.tell()
            # A recorder that couldn't seek back leaves 0 or the largest number: the length is not known.
            if not declared or declared <= there:
                return None
            return f"its header promises {declared:,} bytes of sound, {there:,} are there"
        file.seek(length + length % 2, os.SEEK_CUR)
    return None


def _ogg_tail(file: BinaryIO, size: int) -> str | None:
    file.seek(max(0, size - _OGG_LARGEST_PAGE))
    end = file.read()
    at = end.rfind(b"OggS")
    page = end[at:] if at >= 0 else b""
    if len(page) < _OGG_PAGE_HEADER:
        return "its last page is incomplete"
    table = page[_OGG_PAGE_HEADER : _OGG_PAGE_HEADER + page[26]]
    if len(page) < _OGG_PAGE_HEADER + page[26] + sum(table):
        return "its last page is incomplete"
    return None if page[5] & _OGG_LAST else "the page that ends the stream is missing"


def _mp3_declares(file: BinaryIO) -> bool:
    file.seek(0)
    tag = file.read(10)
    start = 0
    if tag[:3] == b"ID3" and len(tag) == 10:
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:10], (21, 14, 7, 0), strict=True))
    file.seek(start)
    frame = file.read(256)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))
