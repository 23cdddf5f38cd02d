"""What the package can say, read from its source: the lines it logs and the texts of its messages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


def log_lines(package: Path) -> set[tuple[str, str]]:
    """(level, line) of every call of a logger below this folder, but for the command line; ``…`` for what varies."""
    return {
        line
        for source in sorted(package.rglob("*.py"))
        if "cli" not in source.relative_to(package).parts
        for line in _logged(ast.parse(source.read_text(encoding="utf-8")))
    }


def _logged(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        level = LEVELS.get(call.func.attr)
        if level is not None and ast.unparse(call.func.value).split(".")[-1] in ("logger", "_log"):
            line = _text(call.args[0])
        elif call.func.attr == "_complain":  # a line for the log, said once
            level, line = "warning", _text(call.args[1])
        else:
            continue
        if level is not None and line not in (None, "…"):
            yield level, re.sub("…+", "…", str(line))


def texts(source: Path) -> list[str]:
    """Every text of a module, with ``…`` for what is filled in."""
    return [text for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if (text := _text(node))]


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(\.\d+f|[sdg])", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "…" for part in node.values)
    return None
