"""A tree of nodes to plain data, environment variables filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from taskrouter.config.paths import Path
from taskrouter.config.tree import MAX_DEPTH, MAX_NODES, Node, refuse

Report = Callable[[Path, str, str], None]
"""Takes a problem: the path of the value, what is wrong, what to do."""

_VARIABLE = re.compile(r"\$\{([^}]*)\}?")
_REFERENCE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


class EnvText(str):
    """Text that came out of an environment variable, and so may stand for a number or a flag."""

    __slots__ = ()


def fill(root: Node, *, file: str, environ: Mapping[str, str], report: Report) -> Any:
    """Plain dicts, lists and scalars of the tree; problems go to ``report`` and don't stop it.

    Raises ``ConfigError`` where aliases make it absurdly deep or large.
    """
    return _Filler(file, environ, report).value(root, ())


class _Filler:
    def __init__(self, file: str, environ: Mapping[str, str], report: Report) -> None:
        self._file = file
        self._environ = environ
        self._report = report
        self._nodes = 0

    def value(self, node: Node, path: Path) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise refuse(self._file, "its aliases make the file absurdly large", "", node.line, node.column)
        if node.kind == "map":
            return {name: self.value(entry.node, (*path, name)) for name, entry in node.entries.items()}
        if node.kind == "seq":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.items)]
        return self._filled(node.value, path) if isinstance(node.value, str) else node.value

    def _filled(self, text: str, path: Path) -> str:
        if "${" not in text:
            return text

        def replace(match: re.Match[str]) -> str:
            reference = _REFERENCE.fullmatch(match[1]) if match[0].endswith("}") else None
            if reference is None:
                self._report(path, "a ${…} that can't be read", "write ${NAME} or ${NAME:-default}")
                return ""
            name, default = reference[1], reference[2]
            value = self._environ.get(name)
            if not value and default is not None:
                return default
            if value is None:
                self._report(path, f"the environment variable {name} is not set",
                             f"set it, or write ${{{name}:-default}}")  # fmt: skip
                return ""
            return value

        return EnvText(_VARIABLE.sub(replace, text))
