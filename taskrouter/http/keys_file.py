"""The file of API keys: read, and everything that is wrong with it told with its place, as models.yaml's is.

What a key may be is never shown: not a value of ``key`` or ``sha256``, nor what stands where a name should.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from taskrouter.config.explain import explain
from taskrouter.config.frameworks import nearest
from taskrouter.config.secrets import looks_random
from taskrouter.config.section import Collector, Enough
from taskrouter.config.tree import Node, read_tree
from taskrouter.errors import ConfigError, Problem

SHORTEST = 16
"""Letters of a key: shorter ones can be guessed."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BEGIN = "write a list of keys, each with a name and a key, key_env or sha256"
_WANTED = {
    "name": "expected 1 to 64 letters, digits or . _ @ -",
    "key": f"expected text of at least {SHORTEST} letters",
    "key_env": "expected the name of an environment variable",
    "sha256": "expected the 64 hex digits of the key's SHA-256, in small letters",
}
"""What is said of these without what stands there: that may be a key."""


class KeyFields(BaseModel):
    """One key of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.@-]+$")]
    key: Annotated[str, Field(min_length=SHORTEST)] | None = None
    key_env: str | None = None
    sha256: Annotated[str, Field(pattern=rf"^{_SHA256.pattern}$")] | None = None
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    max_concurrency: Annotated[int, Field(ge=1)] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None


def read_keys_file(file: Path, environ: Mapping[str, str]) -> list[tuple[bytes, KeyFields]]:
    """The keys of a file, each with its SHA-256. Raises ``ConfigError`` with everything that is wrong with it."""
    tree, problems = _tree(file)
    collector = Collector(str(file), tree)
    collector.take(problems)
    found: dict[bytes, KeyFields] = {}
    with suppress(Enough):
        _read(tree, environ, collector, found)
    collector.raise_if_any()
    return list(found.items())


def _read(tree: Node, environ: Mapping[str, str], collector: Collector, found: dict[bytes, KeyFields]) -> None:
    names: dict[str, int] = {}
    for number, node in enumerate(tree.items):
        read = _fields(number, _plain(node), collector)
        digest = None if read is None else _digest_of(number, read, environ, collector)
        if read is None or digest is None:
            continue
        if digest in found:
            collector.report((number,), f"the key of {read.name!r} is there twice", "remove one of them")
        elif read.name in names:
            text = f"there is another key of the name {read.name!r}, in line {tree.items[names[read.name]].line}"
            collector.report((number, "name"), text, "give each a name of its own")
        names.setdefault(read.name, number)
        found[digest] = read


def check_tasks(file: Path, tasks: Collection[str]) -> None:
    """Raise ``ConfigError`` where a key of the file may ask a task that isn't among these: a slip of the pen."""
    tree, _ = _tree(file)
    collector = Collector(str(file), tree)
    for number, node in enumerate(tree.items):
        entry = node.entries.get("tasks")
        for index, name in enumerate(_plain(entry.node) if entry is not None and entry.node.kind == "seq" else ()):
            if name not in tasks:
                near = nearest(str(name), set(tasks))
                hint = f"did you mean {near!r}?" if near else f"there is: {', '.join(list(tasks)[:8])}"
                collector.report((number, "tasks", index), f"there is no task {str(name)[:60]!r}", hint)
    collector.raise_if_any()


def _tree(file: Path) -> tuple[Node, list[Problem]]:
    where = str(file)
    try:
        data = file.read_bytes()
    except OSError as error:
        text = f"can't be read: {error.strerror or type(error).__name__}"
        raise ConfigError([Problem(where, 0, 0, "", text, "server.api_keys_file names this file")]) from error
    tree, problems = read_tree(data, file=where, what="list of keys", begin=_BEGIN)
    if tree.kind != "seq" or not tree.items:
        text = "the file holds no key" if tree.kind == "seq" else "the file is no list"
        raise ConfigError([Problem(where, tree.line, tree.column, "", text, _BEGIN)])
    return tree, problems


def _fields(number: int, entry: Any, collector: Collector) -> KeyFields | None:
    try:
        return KeyFields.model_validate(entry)
    except ValidationError as failure:
        for error in failure.errors(include_url=False):
            message, hint = _said(error)
            collector.report((number, *error["loc"]), message, hint, at_key=error["type"] == "extra_forbidden")
        return None


def _said(error: ErrorDetails) -> tuple[str, str]:
    field = error["loc"][0] if error["loc"] else None
    if field in _WANTED and error["type"] not in ("missing", "extra_forbidden"):
        return _WANTED[str(field)], "put it in quotes" if isinstance(error["input"], (int, float)) else ""
    if field is None:
        return "expected a mapping (key: value)", "write name: and key:, key_env: or sha256:"
    return explain(error, root=KeyFields, boolean_word="")


def _digest_of(number: int, read: KeyFields, environ: Mapping[str, str], collector: Collector) -> bytes | None:
    if (read.key, read.key_env, read.sha256).count(None) != 2:
        collector.report((number,), "wants exactly one of key, key_env or sha256")
        return None
    if read.sha256 is not None:
        return bytes.fromhex(read.sha256)
    key = read.key if read.key_env is None else environ.get(read.key_env, "")
    assert key is not None, "one of the three is there"
    if len(key) < SHORTEST:
        # An empty or short one would let anybody in.
        has = f"has less than {SHORTEST} letters" if key else "isn't set, or is empty"
        name = read.key_env or ""
        # Somebody may have written the key itself.
        shown = "that it names" if looks_random(name) or not re.fullmatch(r"[A-Za-z_]\w*", name) else name
        collector.report((number, "key_env"), f"the variable {shown} {has}", "set it before the server starts")
        return None
    return hashlib.sha256(key.encode()).digest()


def _plain(node: Node) -> Any:
    """Plain data of what a key holds; what is deeper than that is wrong anyway."""
    if node.kind == "map":
        return {name: list(_scalars(entry.node)) if entry.node.kind == "seq" else _scalar(entry.node)
                for name, entry in node.entries.items()}  # fmt: skip
    return list(_scalars(node)) if node.kind == "seq" else _scalar(node)


def _scalars(node: Node) -> Iterator[Any]:
    return (_scalar(item) for item in node.items)


def _scalar(node: Node) -> Any:
    return node.value if node.kind == "scalar" else {} if node.kind == "map" else []
