"""Makes an engine's own environment from a known-good set of packages: ``known_good.toml``, the one file of pins.

An environment carries a marker from its first moment; once complete, the marker holds the digest of what it was made
from. One whose marker holds none was never finished and is made anew; a folder without a marker is somebody else's.
Nothing here runs in the event loop: it blocks, for minutes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskrouter.errors import BadInput, LoadFailed

KNOWN_GOOD = Path(__file__).with_name("known_good.toml")
MARKER = "taskrouter-engine.json"
TAIL = 30
"""Lines of pip's that an error shows."""


@dataclass(frozen=True, slots=True)
class PinnedSet:
    """What one environment is made of. ``locked`` is a whole list, which pip takes without resolving anything."""

    name: str
    torch: str | None
    requirements: tuple[str, ...] = ()
    locked: tuple[str, ...] = ()
    build: str = ""
    note: str = ""

    def digest(self, torch: str | None, extra: Sequence[str]) -> str:
        whole = [self.name, torch, self.requirements, self.locked, list(extra), *map(_content, extra)]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def known_good(engine: str, *, cpu: bool, file: Path = KNOWN_GOOD) -> PinnedSet:
    """The set of an engine. Raises ``BadInput`` for an engine that has none."""
    sets: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    if engine not in sets:
        raise BadInput(f"there is no engine {engine!r} to install; there are {', '.join(sets)}")
    kind = "cpu" if cpu else "cuda"
    if kind not in sets[engine]:
        raise BadInput(f"{engine} has no set of packages for {kind}; there is {', '.join(sets[engine])}")
    found = sets[engine][kind]
    return PinnedSet(
        f"{engine}.{kind}",
        found.get("torch"),
        tuple(found.get("requirements", ())),
        tuple(found.get("locked", ())),
        found.get("build", ""),
        found.get("note", ""),
    )


def python_in(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def is_complete(folder: Path, digest: str) -> bool:
    """Whether this environment was made from just this, to its end."""
    try:
        return bool(json.loads((folder / MARKER).read_text(encoding="utf-8"))["digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def install(
    pinned: PinnedSet,
    folder: Path,
    *,
    torch: str | None = None,
    extra: Sequence[str] = (),
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> bool:
    """Make the environment; ``False`` where it was there already, whole. Blocks, for minutes.

    ``torch`` is what pip installs as torch, options included (``torch==2.13.0 --index-url …``). Raises ``BadInput`` for
    a folder that is something else, ``LoadFailed`` with pip's last lines; what was begun is removed then.
    """
    torch = torch or pinned.torch
    digest = pinned.digest(torch, extra)
    if is_complete(folder, digest) and not force:
        return False
    if os.path.lexists(folder) and not _is_ours(folder):
        raise BadInput(f"{folder} is there and wasn't made by this command; name another with --dir, or remove it")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        say(f"making {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(json.dumps({"set": pinned.name, "digest": None}), encoding="utf-8")
        _run([sys.executable, "-m", "venv", str(folder)], folder)
        pip = [str(python_in(folder)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        if torch:
            say(f"installing {torch.split()[0]}")
            _run([*pip, *torch.split()], folder)
        if pinned.locked:
            say(f"installing {len(pinned.locked)} packages of {pinned.name}")
            _run([*pip, "--no-deps", *pinned.locked], folder)
        for each in (*pinned.requirements, *extra):
            say(f"installing {each}")
            _run([*pip, each], folder)
        _check_build(pinned, folder)
        (folder / MARKER).write_text(json.dumps({"set": pinned.name, "digest": digest}), encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return True


def _is_ours(folder: Path) -> bool:
    """Whether this folder may be replaced: it is empty, or an environment of ours, finished or not."""
    return folder.is_dir() and ((folder / MARKER).is_file() or not any(folder.iterdir()))


def _content(requirement: str) -> str | None:
    """A digest of a requirement that is a folder or a file here: what it holds may change under the same name."""
    root = Path(requirement)
    files = sorted(root.rglob("*")) if root.is_dir() else [root]
    whole = hashlib.sha256()
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts:
            whole.update(f"{file.relative_to(root)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest() if root.exists() else None


def _check_build(pinned: PinnedSet, folder: Path) -> None:
    if pinned.build != "cpu":
        return
    ask = "import importlib.metadata as m; print(m.version('torch'))"
    version = _run([str(python_in(folder)), "-c", ask], folder).strip()
    if not version.endswith("+cpu"):
        raise LoadFailed(
            f"{pinned.name} needs a CPU build of torch, and pip brought {version or 'none'}. Name an index that has "
            f"CPU builds: --torch '{pinned.torch} --index-url …'."
        )


def _run(command: list[str], folder: Path) -> str:
    """Run a step to its end, in a process group of its own that an interrupt takes along; answers its output."""
    # The set is complete in itself: a constraint of the caller's own environment would only contradict it.
    own = ("PIP_CONSTRAINT", "PYTHONPATH", "PYTHONHOME", "PIP_REQUIRE_VIRTUALENV", "PIP_USER", "PIP_TARGET")
    env = {name: value for name, value in os.environ.items() if name not in own}
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise LoadFailed(f"{command[0]} can't be run: {error}") from error
    try:
        said, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        tail = "\n".join(said.strip().splitlines()[-TAIL:])
        full = os.strerror(errno.ENOSPC) in said
        hint = "The disk is full: free some room. " if full else ""
        raise LoadFailed(f"{folder} could not be made: `{_shown(command)}` failed. {hint}Its last lines:\n{tail}")
    return said


def _shown(command: list[str]) -> str:
    shown = " ".join(command[1:])
    return shown if len(shown) <= 160 else shown[:157] + "..."
