"""What pydantic found wrong, said as a person needs it: what was expected, what stands there, the nearest spelling."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from taskrouter.config.fields import PATTERNS
from taskrouter.config.frameworks import nearest
from taskrouter.config.paths import Path
from taskrouter.config.secrets import show

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "tuple_type": "a list",
    "too_short": "at least one entry",
    "string_too_short": "text that isn't empty",
    "string_too_long": "at most {max_length} characters",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of {ge} or more",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of {le} or less",
    "literal_error": "{expected}",
    "expected": "{expected}",
}
_QUOTE = frozenset({"string_type"})


def explain(error: ErrorDetails, *, root: type[BaseModel], boolean_word: str) -> tuple[str, str]:
    """Message and hint for one error of pydantic's. ``boolean_word`` is an unquoted ``off``, ``yes``, … found there."""
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    loc: Path = tuple(error["loc"])
    if kind == "missing":
        return "this key is required and missing", ""
    if kind == "extra_forbidden":
        known = keys_at(root, loc[:-1])
        near = nearest(str(loc[-1]), known)
        return "unknown key", f"did you mean {near!r}?" if near else f"expected one of: {', '.join(known)}"
    if kind == "string_pattern_mismatch":
        expected = PATTERNS.get(context["pattern"], "a path such as /health")
    else:
        expected = _EXPECTED.get(kind, error["msg"]).format(**context)
    if boolean_word:
        hint = f'YAML reads {boolean_word} without quotes as a boolean; if you mean the word, write "{boolean_word}"'
        return f"expected {expected}, got the boolean {show(found)}", hint
    message = f"expected {expected}, got {show(found)}"
    if kind == "literal_error" and isinstance(found, str):
        near = nearest(found, [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")])
        return message, f"did you mean {near!r}?" if near else ""
    return message, "put it in quotes" if kind in _QUOTE and isinstance(found, (int, float)) else ""


def keys_at(root: type[BaseModel], path: Path) -> list[str]:
    """The keys that may stand in the mapping at ``path``; empty where any may."""
    here: Any = root
    for part in path:
        here = _below(here, part)
    return list(here.model_fields) if _is_section(here) else []


def _below(here: Any, part: str | int) -> Any:
    if _is_section(here):
        field = here.model_fields.get(str(part))
        return _bare(field.annotation) if field is not None else None
    arguments = get_args(here)
    return _bare(arguments[-1]) if arguments and get_origin(here) is dict else None


def _bare(annotation: Any) -> Any:
    """The type itself, without ``| None``."""
    arguments = get_args(annotation)
    return arguments[0] if type(None) in arguments else annotation


def _is_section(here: Any) -> bool:
    return isinstance(here, type) and issubclass(here, BaseModel)
