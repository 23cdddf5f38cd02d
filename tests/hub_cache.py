"""A Hugging Face cache made by hand: blobs by what they hold, snapshots of links to them, refs to snapshots."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest


def weights(values: int) -> bytes:
    """A safetensors file of so many float32."""
    tensors = {"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * values)


CONFIG = b'{"model_type": "none"}'
TOKENIZER = b'{"words": []}'


def commit(letter: str) -> str:
    return letter * 40


class HubCache:
    """One cache. A revision is named by a letter, its commit is forty of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def repo(self, name: str) -> Path:
        return self.folder / f"models--{name.replace('/', '--')}"

    def snapshot(self, name: str, letter: str) -> Path:
        return self.repo(name) / "snapshots" / commit(letter)

    def add(self, name: str, letter: str, files: Mapping[str, bytes], *refs: str) -> Path:
        """Put a revision there, with the branches and tags that stand at it."""
        repo, snapshot = self.repo(name), self.snapshot(name, letter)
        for each in (repo / "blobs", repo / "refs", snapshot):
            each.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            (snapshot / file).symlink_to(os.path.relpath(blob, snapshot))
        for ref in refs:
            (repo / "refs" / ref).write_text(commit(letter))
        return snapshot

    def model(self, name: str, letter: str, *refs: str, values: int = 1000) -> Path:
        """A whole checkpoint; two of one repository share all but their weights."""
        content = {"config.json": CONFIG, "tokenizer.json": TOKENIZER, "model.safetensors": weights(values)}
        return self.add(name, letter, content, *refs)

    def files(self) -> set[str]:
        """All that is there, links included."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.is_dir()}


def use(cache: HubCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process have that cache, and no network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@contextlib.contextmanager
def disk_waits() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Deleting the first file waits: until the second event is set, once it has set the first."""
    begun, goes_on = threading.Event(), threading.Event()
    real = os.unlink

    def unlink(path: str, *, dir_fd: int | None = None) -> None:
        begun.set()
        assert goes_on.wait(30)
        real(path, dir_fd=dir_fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        try:
            yield begun, goes_on
        finally:
            goes_on.set()


@contextlib.contextmanager
def disk_fails(after: int, error: OSError) -> Iterator[list[str]]:
    """The disk deletes so many files and folders more, and then none; the list is of those it was asked for."""
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("unlink", "remove", "rmdir"):
            real = getattr(os, name)

            def delete(path: str, *, dir_fd: int | None = None, real: object = real) -> None:
                asked.append(os.fspath(path))
                if len(asked) > after:
                    raise type(error)(error.errno, error.strerror, os.fspath(path))
                real(path, dir_fd=dir_fd)  # type: ignore[operator]

            patch.setattr(os, name, delete)
        yield asked
