"""Writing into a models.yaml that people keep: comments, order and quotes stay; the file is replaced whole or not."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

from taskrouter.errors import BadInput


def write_engine(file: Path, engine: str, python: Path) -> str:
    """Write ``engines.NAME.python``; answers how it was written: relative to the file's folder where it lies below.

    Raises ``BadInput`` for a file that can't be read as YAML. A file that couldn't be written is as it was.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    try:
        data: Any = yaml.load(file.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} can't be read, so nothing was written to it: {error}") from error
    if not isinstance(data, dict):
        raise BadInput(f"{file} is no mapping, so nothing was written to it")
    folder = file.absolute().parent
    # Not resolved: the interpreter of an environment is a link to the one it was made with.
    shown = str(python.relative_to(folder)) if python.is_relative_to(folder) else str(python)
    if not isinstance(data.get("engines"), dict):
        data["engines"] = {}
    if not isinstance(data["engines"].get(engine), dict):
        data["engines"][engine] = {}
    data["engines"][engine]["python"] = shown
    text = io.StringIO()
    yaml.dump(data, text)
    replace_whole(file, text.getvalue())
    return shown


def replace_whole(file: Path, text: str) -> None:
    """Replace a file's content at once, keeping its mode; what fails leaves it as it was."""
    target = file.resolve()
    mode = target.stat().st_mode
    fd, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as fresh:
            fresh.write(text)
            fresh.flush()
            os.fsync(fresh.fileno())
        os.chmod(name, mode & 0o7777)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
