"""Writing into a models.yaml that people keep: only what is written changes; the file is replaced whole or not."""

from __future__ import annotations

import contextlib
import copy
import errno
import io
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskrouter.errors import BadInput

_PLAIN = re.compile(r"[/.~A-Za-z_][\w./+@~-]*")


def write_engine(file: Path, engine: str, python: Path) -> str:
    """Write ``engines.NAME.python``; answers how it was written: relative to the file's folder where it lies below.

    Raises ``BadInput`` for a file that can't be read as YAML, or can't hold it. A file that couldn't be written is as
    it was.
    """
    folder = file.absolute().parent
    # Not resolved: the interpreter of an environment is a link to the one it was made with.
    shown = str(python.relative_to(folder)) if python.is_relative_to(folder) else str(python)
    write_value(file, ["engines", engine, "python"], shown)
    return shown


def write_selected(file: Path, task: str, option: str, *, check: Callable[[bytes], object]) -> None:
    """Write which option of a task is selected, and nothing else: comments, order and spaces stay.

    ``check`` is given the new content before the file is replaced at once. Raises what it raises, ``BadInput`` for a
    file that can't hold it, and ``OSError``; the file then is as it was. May block.
    """
    write_value(file, ["tasks", task, "selected"], option, or_under="models", check=check)


def selected_can_be_written(file: Path, task: str, option: str, *, check: Callable[[bytes], object]) -> None:
    """Raise what ``write_selected`` would, as far as that can be told without writing. May block."""
    check(_changed(file, ["tasks", task, "selected"], option, or_under="models").encode())
    for place in (file.resolve(), file.resolve().parent):
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def write_value(
    file: Path, path: list[str], value: str, *, or_under: str = "", check: Callable[[bytes], object] | None = None
) -> None:
    """Write one string. ``or_under``: what the file may call the first key instead."""
    fresh = _changed(file, path, value, or_under=or_under)
    if check is not None:
        check(fresh.encode())
    replace_whole(file, fresh)


def _changed(file: Path, path: list[str], value: str, *, or_under: str = "") -> str:
    """The file's text with this value in it. Raises ``BadInput``."""
    import yaml

    try:
        text = file.read_bytes().decode("utf-8")
        before = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(f"{file} can't be read, so nothing was written to it: {error}") from error
    if not isinstance(before, dict):
        raise BadInput(f"{file} is no mapping, so nothing was written to it")
    if or_under in before and path[0] not in before:
        path = [or_under, *path[1:]]
    wanted = _with(before, path, value)
    if "${" in str(_held(before, path)):
        raise BadInput(f"{file} takes {'.'.join(path)} from the environment, so nothing was written over that")
    for way in (_spliced, _dumped) if wanted is not None else ():
        with contextlib.suppress(yaml.YAMLError, ValueError):
            fresh = way(text, path, value)
            if yaml.safe_load(fresh) == wanted:
                return fresh
    raise BadInput(
        f"{file} can't hold {'.'.join(path)} as it is written, so nothing was written to it; write it yourself: {value}"
    )


def _held(data: Any, path: list[str]) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _with(data: dict[str, Any], path: list[str], value: str) -> dict[str, Any] | None:
    """The data with this in it; ``None`` where something else is in the way."""
    whole = inner = copy.deepcopy(data)
    for key in path[:-1]:
        # What an alias shares must not change in both places.
        inner[key] = copy.deepcopy(inner.get(key)) or {}
        inner = inner[key]
        if not isinstance(inner, dict):
            return None
    inner[path[-1]] = value
    return whole


def _dumped(text: str, path: list[str], value: str) -> str:
    """The file written anew: comments, order and quotes stay, spaces may not."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    fresh = io.StringIO()
    try:
        inner = data = yaml.load(text)
        for key in path[:-1]:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[path[-1]] = value
        yaml.dump(data, fresh)
    except (YAMLError, AttributeError) as error:
        raise ValueError(str(error)) from error
    return fresh.getvalue()


def _spliced(text: str, path: list[str], value: str) -> str:
    """The file's own text, with this put where it belongs. Whether that is so must be looked at."""
    import yaml

    root = yaml.compose(text, yaml.SafeLoader)
    plain = value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)
    return _put(text, root, path, plain)


def _put(text: str, node: Any, path: list[str], value: str) -> str:
    """Put a value into the text of a mapping. Raises ``ValueError`` where it can't be put there."""
    if node.id != "mapping":
        raise ValueError("something else is there")
    key, *rest = path
    for name, held in node.value:
        if name.value != key:
            continue
        start, end = held.start_mark.index, held.end_mark.index
        if start < name.end_mark.index:
            raise ValueError(f"{key} is an alias")
        if isinstance(held.value, list):
            return _put(text, held, rest, value)
        return f"{text[:start]}{' ' * (start == end)}{_flow(rest, value)}{text[end:]}"
    if node.flow_style:
        at = node.value[-1][1].end_mark.index if node.value else node.start_mark.index + 1
        return text[:at] + ", " * bool(node.value) + f"{key}: {_flow(rest, value)}" + text[at:]
    newline = "\r\n" if "\r\n" in text else "\n"
    at = text.find("\n", _end(node))
    head, tail = (text[: at + 1], text[at + 1 :]) if at >= 0 else (text + newline, "")
    indent = " " * node.start_mark.column
    lines = [f"{indent}{'  ' * depth}{name}:" for depth, name in enumerate(path)]
    return head + newline.join(lines) + f" {value}{newline}" + tail


def _flow(path: list[str], value: str) -> str:
    for key in reversed(path):
        value = f"{{{key}: {value}}}"
    return value


def _end(node: Any) -> int:
    """Where the last thing of a node ends; a block's own end is that of the comments after it."""
    if isinstance(node.value, list) and node.value and not node.flow_style:
        last = node.value[-1]
        return max(last[0].end_mark.index, _end(last[1])) if isinstance(last, tuple) else _end(last)
    return int(node.end_mark.index)


def replace_whole(file: Path, text: str) -> None:
    """Replace a file's content at once, keeping its mode; what fails leaves it as it was."""
    target = file.resolve()
    write_whole(target, text.encode("utf-8"), mode=target.stat().st_mode & 0o7777)


def write_whole(target: Path, data: bytes, *, mode: int | None = None) -> None:
    """Write a file at once, new or in place of another; what fails leaves what was there. Raises ``OSError``.

    ``mode``: ``None`` is what the process gives new files.
    """
    fd, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(fd, "wb") as fresh:
            fresh.write(data)
            fresh.flush()
            os.fsync(fresh.fileno())
        if mode is None:
            mode = 0o666 & ~_umask()
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
