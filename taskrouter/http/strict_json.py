"""JSON that means one thing only: no key twice in an object, no nesting that somebody further on can't follow."""

from __future__ import annotations

import json
from typing import Any

import orjson

from taskrouter.errors import BadInput

DEEPEST = 100
"""Levels of lists and objects: what writes JSON again for an engine gives up at about twice as many."""


def strict(data: bytes, what: str = "the body") -> Any:
    """Parse JSON. Raises ``BadInput``, with ``what`` it is that can't be read."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{what} is no JSON: {error}") from None
    if data.count(b"[") + data.count(b"{") > DEEPEST:
        _check_depth(found, what)
    # What is there twice is read once: written again, it has fewer quotes. Only a quote that is written as a number has
    # none at first; then the parser looks that tells of keys, which is slower. Numbers are of no interest to it.
    if b"u0022" not in data and orjson.dumps(found).count(b'"') == data.count(b'"'):
        return found
    try:
        _PAIRS.decode(data.decode())
    except _Twice as error:
        raise BadInput(f"{what} has {error.args[0][:80]!r} twice") from None
    return found


def strict_object(data: bytes, what: str = "the body") -> dict[str, Any]:
    """Parse a JSON object. Raises ``BadInput``."""
    found = strict(data, what)
    if not isinstance(found, dict):
        raise BadInput(f"{what} is {kind_of(found)}; an object is wanted")
    return found


def kind_of(value: Any) -> str:
    """What a value of JSON is, in JSON's words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return "a number"
    return "a text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"


def _check_depth(found: Any, what: str) -> None:
    level = [found] if isinstance(found, (dict, list)) else []
    depth = 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise BadInput(f"{what} is nested more than {DEEPEST} levels deep")
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, (dict, list))
        ]


class _Twice(Exception):
    """This key is there twice."""


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for place, name in enumerate(names) if name in names[:place]))


_PAIRS = json.JSONDecoder(object_pairs_hook=_once, parse_int=float)
