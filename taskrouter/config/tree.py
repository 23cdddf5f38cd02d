"""Text of a YAML file to a tree of nodes with positions, guarded against files that are no configuration.

The tree is built from the parser's event stream, not by PyYAML's own composer: that one recurses (so absurd nesting
kills it before anyone can count), keeps the last of two equal keys in silence, and loses where keys stand. Here one
pass counts depth, nodes and aliases while it reads and stops at the first absurdity, so its time is bounded whatever
the file holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import yaml

from taskrouter.config.paths import Path
from taskrouter.config.secrets import join
from taskrouter.errors import ConfigError, Problem

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 50_000
MAX_ALIASES = 200

TAG = "tag:yaml.org,2002:"
SCALAR_TAGS = frozenset(TAG + name for name in ("null", "bool", "int", "float", "str", "timestamp", "merge", "value"))
YAML_BOOLEANS = frozenset({"on", "off", "yes", "no"})
"""What YAML 1.1 reads as a boolean although people often mean the word."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")

Scalar: TypeAlias = "str | int | float | bool | None"


@dataclass(slots=True)
class Entry:
    """A key of a mapping: where the key stands, and its value."""

    line: int
    column: int
    node: Node


@dataclass(slots=True)
class Node:
    """A value of the file. ``text`` is a scalar as it was written; an aliased node is shared, not copied."""

    kind: Literal["scalar", "map", "seq"]
    line: int
    column: int
    value: Scalar = None
    text: str = ""
    entries: dict[str, Entry] = field(default_factory=dict)
    items: list[Node] = field(default_factory=list)
    merges: list[Node] = field(default_factory=list)

    @property
    def boolean_word(self) -> str:
        """``off``, ``yes``, …, where this is such a word without quotes; else nothing."""
        return self.text if isinstance(self.value, bool) and self.text.lower() in YAML_BOOLEANS else ""


def read_tree(
    data: bytes, *, file: str, what: str = "models.yaml", begin: str = "write at least one task under tasks:"
) -> tuple[Node, list[Problem]]:
    """Parse one document; return its tree and the problems that don't keep it from being read further.

    ``what`` it should be, and how to ``begin`` an empty one, stand in messages. Raises ``ConfigError`` for what can't
    be read at all.
    """
    return _Reader(file, what, begin).read(decode(data, file=file, what=what, begin=begin))


def decode(data: bytes, *, file: str, what: str, begin: str) -> str:
    """Text of the file; raises ``ConfigError`` for anything that isn't a small UTF-8 text."""
    if len(data) > MAX_BYTES:
        raise refuse(file, f"the file is over {MAX_BYTES // 1024} KiB: this is no {what}")
    if not data.strip():
        raise refuse(file, "the file is empty", begin)
    if b"\0" in data:
        raise refuse(file, "the file holds NUL bytes: it is binary or UTF-16", "save it as UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise refuse(file, "the file is not UTF-8 text here", "save it as UTF-8", line, column) from error


def refuse(file: str, message: str, hint: str = "", line: int = 0, column: int = 0) -> ConfigError:
    """A ``ConfigError`` with one problem of the file as a whole."""
    return ConfigError([Problem(file, line, column, "", message, hint)])


class _Open:
    """A mapping or sequence that is being read."""

    __slots__ = ("anchor", "key", "merging", "node")

    def __init__(self, node: Node, anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.key: tuple[str | None, int, int] | None = None  # the name is None for a key that was refused
        self.merging = False


class _Reader:
    """One pass over the events of one document."""

    def __init__(self, file: str, what: str, begin: str) -> None:
        self._file = file
        self._what = what
        self._begin = begin
        self._problems: list[Problem] = []
        self._anchors: dict[str, Node | None] = {}
        self._stack: list[_Open] = []
        self._root: Node | None = None
        self._documents = self._nodes = self._aliases = 0
        self._resolver: Any = yaml.resolver.Resolver()
        self._constructor: Any = yaml.constructor.SafeConstructor()

    def read(self, text: str) -> tuple[Node, list[Problem]]:
        event: Any
        for event in self._events(text):
            line, column = event.start_mark.line + 1, event.start_mark.column + 1
            if isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    raise refuse(self._file, "a second YAML document starts here", "keep one document", line, column)
            elif isinstance(event, yaml.AliasEvent):
                self._place(self._alias(str(event.anchor), line, column), line, column)
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event, line, column)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._start(event, line, column)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._end()
        if self._root is None or (self._root.kind == "scalar" and self._root.value is None):
            raise refuse(self._file, "the file is empty but for comments", self._begin)
        return self._root, self._problems

    def _events(self, text: str) -> Iterator[Any]:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            yield from yaml.parse(text, Loader=loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            # Not str(error): that quotes the line it stands on, which may hold a key.
            said = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
            line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
            here = text.split("\n")[line - 1 : line]
            hint = 'inside {} and [] put "${VAR}" in quotes' if here and "${" in here[0] else ""
            if here and here[0][column - 1 : column] == "\t":
                hint = "a tab stands here: YAML is indented with spaces"
            raise refuse(self._file, f"this is not YAML: {said}", hint, line, column) from None

    def _scalar(self, event: Any, line: int, column: int) -> None:
        self._count(line, column)
        tag = event.tag or self._resolver.resolve(yaml.ScalarNode, event.value, event.implicit)
        if tag == "!":
            tag = TAG + "str"
        if event.tag and tag not in SCALAR_TAGS:
            self._problem(line, column, f"the tag {_tag(tag)} is not allowed", "write plain values")
            tag = TAG + "str"
        node = Node("scalar", line, column, self._value(tag, event.value, line, column), event.value)
        if self._expects_key() and tag == TAG + "merge":
            self._top().key = (None, line, column)
            self._top().merging = True
            return
        if event.anchor:
            self._anchors[event.anchor] = node
        self._place(node, line, column)

    def _value(self, tag: str, text: str, line: int, column: int) -> Scalar:
        kind = tag.removeprefix(TAG)
        if _UNPRINTABLE.search(text):
            self._problem(line, column, "a control character in this value", "write plain text")
            return ""
        # 1:30 is the number 90 in YAML 1.1, and 2026-01-01 a date: nobody who writes either here means that.
        if kind in {"str", "timestamp", "merge", "value"} or ":" in text:
            return text
        try:
            value: Scalar = self._constructor.construct_object(yaml.ScalarNode(tag, text))
        except (ValueError, KeyError, IndexError, OverflowError, yaml.YAMLError):
            self._problem(line, column, f"this can't be read as {kind}", "quote it if it is text")
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self._problem(line, column, "expected a finite number", "quote it if it is text")
            return None
        if isinstance(value, int) and abs(value) >= 1 << 63:
            self._problem(line, column, "the number is absurdly large", "quote it if it is text")
            return None
        return value

    def _start(self, event: Any, line: int, column: int) -> None:
        self._count(line, column)
        if len(self._stack) >= MAX_DEPTH:
            raise refuse(self._file, f"nested deeper than {MAX_DEPTH} levels", "", line, column)
        kind: Literal["map", "seq"] = "map" if isinstance(event, yaml.MappingStartEvent) else "seq"
        if event.tag not in {None, "!", TAG + kind}:
            self._problem(line, column, f"the tag {_tag(event.tag)} is not allowed", "write plain values")
        if event.anchor:
            self._anchors[event.anchor] = None
        self._stack.append(_Open(Node(kind, line, column), event.anchor))

    def _end(self) -> None:
        done = self._stack.pop()
        for merged in done.node.merges:
            for name, entry in merged.entries.items():
                done.node.entries.setdefault(name, entry)
        if done.anchor:
            self._anchors[done.anchor] = done.node
        self._place(done.node, done.node.line, done.node.column)

    def _alias(self, anchor: str, line: int, column: int) -> Node:
        self._count(line, column)
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise refuse(self._file, f"more than {MAX_ALIASES} aliases", "write the values out", line, column)
        node = self._anchors.get(anchor)
        if node is None:
            what = "contains itself" if anchor in self._anchors else "is defined nowhere above"
            raise refuse(self._file, f"the anchor of this alias {what}", "", line, column)
        return node

    def _place(self, node: Node, line: int, column: int) -> None:
        if not self._stack:
            self._root = node
            return
        top = self._top()
        if top.node.kind == "seq":
            top.node.items.append(node)
        elif top.key is None:
            top.key = (self._name(node, line, column), line, column)
        else:
            name, key_line, key_column = top.key
            if top.merging:
                top.merging = False
                self._merge(top.node, node, key_line, key_column)
            elif name is not None:
                self._enter(top.node, name, Entry(key_line, key_column, node))
            top.key = None

    def _enter(self, mapping: Node, name: str, entry: Entry) -> None:
        first = mapping.entries.setdefault(name, entry)
        if first is not entry:
            self._problem(
                entry.line, entry.column, f"the key stands twice: first in line {first.line}",
                "YAML would silently keep the last one; remove one of them",
            )  # fmt: skip

    def _merge(self, mapping: Node, source: Node, line: int, column: int) -> None:
        sources = source.items if source.kind == "seq" else [source]
        for node in sources:
            if node.kind == "map":
                mapping.merges.append(node)
            else:
                self._problem(line, column, "<< merges mappings only", "write << : *anchor of a mapping")

    def _name(self, node: Node, line: int, column: int) -> str | None:
        if node.kind == "scalar" and isinstance(node.value, str):
            return node.value
        if word := node.boolean_word:
            self._problem(line, column, f"the key {word} without quotes is a boolean in YAML", f'write "{word}":')
        elif node.kind == "scalar":
            self._problem(line, column, "the key is no text", "put it in quotes")
        else:
            self._problem(line, column, "a key must be text, not a mapping or a list")
        return None

    def _expects_key(self) -> bool:
        return bool(self._stack) and self._top().node.kind == "map" and self._top().key is None

    def _top(self) -> _Open:
        return self._stack[-1]

    def _count(self, line: int, column: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise refuse(self._file, f"more than {MAX_NODES:,} values: this is no {self._what}", "", line, column)

    def _problem(self, line: int, column: int, message: str, hint: str = "") -> None:
        self._problems.append(Problem(self._file, line, column, join(self._path()), message, hint))

    def _path(self) -> Path:
        """Where in the file the reader is, as far as keys could be read."""
        parts: list[str | int] = []
        for level in self._stack:
            if level.node.kind == "seq":
                parts.append(len(level.node.items))
            elif level.key is not None and level.key[0] is not None:
                parts.append(level.key[0])
        return tuple(parts)


def _tag(tag: str) -> str:
    return tag.replace(TAG, "!!")[:60]
