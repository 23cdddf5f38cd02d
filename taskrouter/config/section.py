"""A section parsed from plain data, everything wrong with it found in one pass; and the collector of what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from taskrouter.config.checks import check_task
from taskrouter.config.explain import explain
from taskrouter.config.frameworks import Frameworks
from taskrouter.config.frozen import thaw
from taskrouter.config.paths import Path
from taskrouter.config.schema import TaskFields
from taskrouter.config.secrets import ADVICE, SECRET, find_secrets, join, show
from taskrouter.config.tree import Node, refuse
from taskrouter.errors import ConfigError, Problem

S = TypeVar("S", bound=BaseModel)

MOST_PROBLEMS = 200


class Enough(Exception):
    """So many problems were found that nobody reads more."""


class Collector:
    """Problems found so far, each given its place in the file; at most one for each key."""

    def __init__(self, file: str, tree: Node | None = None, *, rename: Mapping[str, str] | None = None) -> None:
        self.file = file
        self._tree = tree
        self._rename = rename or {}
        self._problems: dict[tuple[Path, int, int], Problem] = {}

    def take(self, problems: list[Problem]) -> None:
        """Add problems that know their place."""
        for problem in problems[:MOST_PROBLEMS]:
            self._problems[(), problem.line, problem.column] = problem

    def report(self, path: Path, message: str, hint: str = "", *, at_key: bool = False) -> None:
        """Add a problem of the value at ``path``, or of the key itself. Raises ``Enough`` when there are too many."""
        if len(self._problems) >= MOST_PROBLEMS:
            raise Enough
        problem = self.problem(path, message, hint, at_key=at_key)
        # What could not even be read at this place says it all.
        if self._tree is None or ((), problem.line, problem.column) not in self._problems:
            self._problems.setdefault((path, problem.line, problem.column), problem)

    def problem(self, path: Path, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A problem with its place, without adding it."""
        if path and path[0] in self._rename:
            path = (self._rename[str(path[0])], *path[1:])
        line, column = (0, 0) if self._tree is None else locate(self._tree, path, at_key=at_key)
        return Problem(self.file, line, column, join(path), message, hint)

    def word_at(self, path: Path) -> str:
        """``off``, ``yes``, … where that stands in the file without quotes."""
        if path and path[0] in self._rename:
            path = (self._rename[str(path[0])], *path[1:])
        node = None if self._tree is None else find(self._tree, path)
        return "" if node is None else node.boolean_word

    def validate(self, model: type[S], data: Any) -> S | None:
        """The parsed section; ``None`` where it has problems, which are added."""
        try:
            return model.model_validate(data)
        except ValidationError as failure:
            for error in failure.errors(include_url=False):
                path: Path = tuple(error["loc"])
                path = path[:-1] if path and path[-1] == "[key]" else path
                message, hint = explain(error, root=model, boolean_word=self.word_at(path))
                self.report(path, message, hint, at_key=error["type"] == "extra_forbidden")
            return None

    def find_secrets(self, data: Any) -> None:
        """Add a problem for each value that looks like a secret."""
        for path in find_secrets(data):
            self.report(path, SECRET, ADVICE)

    def raise_if_any(self) -> None:
        """Raise ``ConfigError`` with everything found, in the order of the file."""
        if self._problems:
            found = sorted(self._problems.values(), key=lambda p: (p.line, p.column, p.path))
            if len(found) >= MOST_PROBLEMS:
                found.append(Problem(self.file, 0, 0, "", f"{MOST_PROBLEMS} problems are shown; there are more"))
            raise ConfigError(found)


def parse_section(model: type[S], data: Mapping[str, Any], *, where: str) -> S:
    """A section from a plain dict; raises ``ConfigError`` with everything that is wrong with it."""
    if not isinstance(data, Mapping):
        raise refuse(where, f"expected a mapping, got {show(data)}")
    collector = Collector(where)
    parsed = None
    try:
        plain = thaw(dict(data))
        collector.find_secrets(plain)
        if model is TaskFields:
            check_task((), plain, frameworks=Frameworks(known=frozenset()), report=collector.report)
        parsed = collector.validate(model, plain)
    except Enough:
        pass
    except RecursionError:
        raise refuse(where, "nested too deep, or contains itself") from None
    collector.raise_if_any()
    assert parsed is not None, "a section without problems is parsed"
    return parsed


def find(tree: Node, path: Path) -> Node | None:
    """The node at ``path``."""
    here = tree
    for part in path:
        entry = here.entries.get(str(part)) if here.kind == "map" else None
        if entry is not None:
            here = entry.node
        elif here.kind == "seq" and isinstance(part, int) and part < len(here.items):
            here = here.items[part]
        else:
            return None
    return here


def locate(tree: Node, path: Path, *, at_key: bool = False) -> tuple[int, int]:
    """Line and column of a scalar at ``path``, of anything else's key; for what is missing, of the key above."""
    here, line, column = tree, tree.line, tree.column
    for index, part in enumerate(path):
        entry = here.entries.get(str(part)) if here.kind == "map" else None
        if entry is not None:
            line, column, here = entry.line, entry.column, entry.node
        elif here.kind == "seq" and isinstance(part, int) and part < len(here.items):
            here = here.items[part]
            line, column = here.line, here.column
        else:
            return line, column
        if index == len(path) - 1 and here.kind == "scalar" and not at_key:
            return here.line, here.column
    return line, column
