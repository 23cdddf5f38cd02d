"""One process per GPU: an flock per GPU UUID in a per-user folder.

The kernel releases an flock when the last process that has the file open ends, however it ends. Files are never
removed: removing a locked file would let two processes lock two files of one name.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
import weakref
from pathlib import Path
from types import TracebackType

from taskrouter.errors import DeviceInUse, TaskRouterError

_held: weakref.WeakSet[GpuLock] = weakref.WeakSet()


class GpuLock:
    """A GPU held by this process until ``close()`` or its end. A context manager; closing twice is harmless."""

    def __init__(self, uuid: str, descriptor: int) -> None:
        self.uuid = uuid
        self._descriptor: int | None = descriptor
        _held.add(self)

    def close(self) -> None:
        """Give the GPU up."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # Closing alone would leave it locked while a child forked a moment ago still has the file open.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def forget(self) -> None:
        """Let go of the file in a forked child; the parent keeps the GPU."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> GpuLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GpuLock {self.uuid} {'closed' if self._descriptor is None else 'held'}>"


def gpu_lock(uuid: str, *, runtime_dir: Path | None = None) -> GpuLock:
    """Take the GPU for this process, or raise ``DeviceInUse`` at once, naming the process that has it."""
    folder = _private(runtime_dir if runtime_dir is not None else default_runtime_dir())
    path = folder / f"gpu-{re.sub(r'[^A-Za-z0-9._-]', '_', uuid)}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise DeviceInUse(_refusal(uuid, holder)) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return GpuLock(uuid, descriptor)


def default_runtime_dir() -> Path:
    """``$XDG_RUNTIME_DIR/taskrouter``, else ``taskrouter-<uid>`` in the temporary folder."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "taskrouter" if base else Path(tempfile.gettempdir()) / f"taskrouter-{os.getuid()}"


def _refusal(uuid: str, holder: str) -> str:
    who = "another manager in this process" if holder == str(os.getpid()) else f"process {holder}"
    return (
        f"GPU {uuid} is managed by {who}, and two managers would not see each other's models. Stop that one, or let "
        "`taskrouter serve` have it and use `taskrouter.connect(url)` here, or set `memory.share: true` with an "
        "explicit `memory.devices.<device>.budget` in both files."
    )


def _private(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise TaskRouterError(f"{folder}: no folder for GPU locks ({error.strerror}). Set XDG_RUNTIME_DIR.") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise TaskRouterError(
            f"{folder} belongs to somebody else; GPU locks need a folder of your own. Set XDG_RUNTIME_DIR."
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def _drop_in_child() -> None:
    # A forked child shares the open file: without this the GPU would stay locked as long as any child of a dead
    # manager.
    for lock in list(_held):
        lock.forget()


os.register_at_fork(after_in_child=_drop_in_child)
