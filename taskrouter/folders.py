"""Where this package keeps what lasts longer than a process: by the XDG variables, else below the home folder."""

from __future__ import annotations

import functools
import logging
import os
import stat
import tempfile
from pathlib import Path

logger = logging.getLogger("taskrouter")


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/taskrouter``, by default ``~/.cache/taskrouter``. Raises nothing."""
    return _folder("XDG_CACHE_HOME", ".cache")


def state_folder() -> Path:
    """``$XDG_STATE_HOME/taskrouter``, by default ``~/.local/state/taskrouter``. Raises nothing."""
    return _folder("XDG_STATE_HOME", ".local/state")


def _folder(variable: str, below: str) -> Path:
    base = os.environ.get(variable)
    if base:
        return Path(base) / "taskrouter"
    try:
        return Path.home() / below / "taskrouter"
    except RuntimeError:  # no HOME, and a user whom the system doesn't know: many containers are like that
        return _without_home() / below / "taskrouter"


@functools.cache
def _without_home() -> Path:
    """A folder for temporary files, of this user alone: what lies in it is trusted later."""
    folder = Path(tempfile.gettempdir()) / f"taskrouter-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    except OSError:
        ours = False
    if not ours:
        folder = Path(tempfile.mkdtemp(prefix="taskrouter-"))
    logger.warning("there is no home folder: what is remembered lies in %s; set HOME, or XDG_CACHE_HOME and "
                   "XDG_STATE_HOME", folder)  # fmt: skip
    return folder
