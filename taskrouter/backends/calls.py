"""Verbs of a plug-in's own between processes: a request made of JSON and media, an answer made JSON, and both back.

Pydantic reads and writes the types that a plug-in declares (``Call``); it is imported on first use.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import lru_cache
from importlib import metadata
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from taskrouter.backends.base import Call
from taskrouter.backends.placed import extra_of, heard, hint_of, placed
from taskrouter.config.frameworks import BACKENDS_GROUP, PLUG_INS_PAGE
from taskrouter.errors import BadInput, BrokenBackend, CallFailed

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

LIMITS = "limits"
"""The field of a request that is no argument: the ``MediaLimits`` its media are read under, which we fill in."""
TAKEN = frozenset({"verb", "request"})
"""Names that no argument can have: what is asked, and a form's field for what has no field of its own."""
_MOST_SAID = 5


@dataclass(frozen=True, slots=True)
class Shape:
    """What a request's type takes. ``names``: its fields, by the arguments' names; ``required``: those that must be
    given.

    ``media``: those that hold a medium, and ``several`` those of them that hold a list. ``texts``: those that a text is
    meant for as it stands. ``takes_more``: names that nobody knows are for the type itself to refuse. ``shut``: names
    that lead to a field beside its argument's.
    """

    adapter: TypeAdapter[Any]
    names: Mapping[str, str]
    required: frozenset[str]
    media: frozenset[str]
    several: frozenset[str]
    texts: frozenset[str]
    takes_more: bool
    shut: frozenset[str]

    def check_names(self, verb: str, given: Iterable[str]) -> None:
        """Raises ``BadInput`` for an argument that there isn't."""
        for name in given:
            if name not in self.names and (not self.takes_more or name in self.shut):
                raise BadInput(f"{verb} takes no {name[:80]!r}; it takes {', '.join(self.names) or 'nothing'}")

    def request(self, verb: str, given: Mapping[str, Any]) -> Any:
        """The request that these arguments are. Raises ``BadInput`` that says what is wrong with which."""
        from pydantic import ValidationError

        self.check_names(verb, given)
        try:
            return self.adapter.validate_python(dict(given))
        except ValidationError as error:
            raise BadInput(said(verb, self.names, error)) from None

    def taken_apart(self, request: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """A request's arguments as JSON has them, and its media by their names. Raises ``BadInput``."""
        media = {name: getattr(request, self.names[name]) for name in self.media}
        beside = {LIMITS, *(self.names[name] for name in self.media)}
        try:
            given = self.adapter.dump_python(request, mode="json", by_alias=True, exclude=beside, warnings=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadInput(f"a {type(request).__name__} can't be written as JSON: {error}") from error
        return given, {name: value for name, value in media.items() if value is not None}


@lru_cache(maxsize=256)
def shape_of(kind: type) -> Shape:
    """What requests of this type take. Raises ``BrokenBackend`` for a type that can't cross the wire."""
    from pydantic import TypeAdapter

    who = f"{kind.__module__}.{kind.__qualname__}"
    try:
        told = _fields(kind)
        names = {each.argument: each.name for each in told if each.name != LIMITS}
        if taken := sorted(names.keys() & TAKEN):
            raise TypeError(f"the name of its field {taken[0]} means something else there.")
        where = {each.argument: placed(each.name, each.hint) for each in told if each.name != LIMITS}
        media = frozenset(name for name, (is_medium, _) in where.items() if is_medium)
        _check_apart(told, {LIMITS, *(names[name] for name in media)})
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise BrokenBackend(
            f"{who} can't be a request over HTTP: {why} Its fields must be what pydantic can read, or Medium "
            f"({PLUG_INS_PAGE})."
        ) from error
    return Shape(
        adapter, names, frozenset(each.argument for each in told if each.needed and each.name != LIMITS), media,
        several=frozenset(name for name, (_, listed) in where.items() if listed),
        texts=frozenset(each.argument for each in told if _is_text(each.hint)),
        takes_more=getattr(kind, "model_config", {}).get("extra") == "allow",
        shut=frozenset({LIMITS}.union(*(each.heard for each in told)) - names.keys()),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Field:
    """A request's field: the argument that it is, its type, all names it is heard by, whether it must be given."""

    name: str
    argument: str
    hint: Any
    heard: frozenset[str]
    needed: bool


def _fields(kind: type) -> list[_Field]:
    """Raises ``TypeError`` for what is neither a dataclass nor a pydantic model, and for one with media in no field."""
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    if issubclass(kind, BaseModel):
        placed_in_extra, _ = placed("__pydantic_extra__", extra_of(kind))
        if placed_in_extra:
            raise TypeError("what it takes beside its fields can't be Medium.")
        return [
            _Field(name, field.alias or name, hint_of(field), heard(name, field), field.is_required())
            for name, field in kind.model_fields.items()
        ]
    if not is_dataclass(kind):
        raise TypeError("it is neither a dataclass nor a pydantic model.")
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for each in fields(kind):
        known = getattr(kind, "__pydantic_fields__", {}).get(each.name)
        marks = (known, each.default, *getattr(hints[each.name], "__metadata__", ()))
        names = frozenset({each.name}).union(*(heard(each.name, it) for it in marks if isinstance(it, FieldInfo)))
        needed = each.default is MISSING and each.default_factory is MISSING
        if each.init:
            found.append(_Field(each.name, each.name, hints[each.name], names, needed))
    return found


def _check_apart(told: list[_Field], read: Collection[str]) -> None:
    """Raises ``TypeError`` where a name leads to one of the fields that are filled in here, and to another."""
    for each in told:
        for other in told:
            if each.name in read and other is not each and each.heard & other.heard:
                raise TypeError(f"its fields {each.name} and {other.name} are asked by the same name.")


def _is_text(hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _is_text(parts[0])
    if origin is Literal:
        return all(isinstance(each, str) for each in parts)
    if origin in (Union, UnionType):
        return all(each is NoneType or _is_text(each) for each in parts)
    return hint is str


def said(verb: str, takes: Iterable[str], error: ValidationError) -> str:
    """What is wrong with a verb's arguments, in a few words for each."""
    found: dict[str, None] = {}
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        first = str(each["loc"][0])[:80] if each["loc"] else "the body"
        where = ".".join((first, *(str(part) for part in each["loc"][1:] if isinstance(part, int))))
        if each["type"] == "extra_forbidden":
            found[f"{verb} takes no {first!r}; it takes {', '.join(takes)}"] = None
        elif each["type"] == "missing":
            found[f"{verb} needs {first}"] = None
        else:
            found[f"{where}: {each['msg'].removeprefix('Value error, ')}"] = None
    more = len(found) - _MOST_SAID
    return "; ".join([*list(found)[:_MOST_SAID], *([f"and {more} more"] if more > 0 else [])])


# --- answers ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _answers(call: Call) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(call.answer)
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise BrokenBackend(f"{call.answer!r} can't be an answer over HTTP: {why} ({PLUG_INS_PAGE})") from error


def written(verb: str, call: Call, answer: Any) -> bytes:
    """An answer as JSON. Raises ``CallFailed`` for one that isn't what was declared, ``BrokenBackend``."""
    try:
        return _answers(call).dump_json(answer, by_alias=True, warnings="error")
    except (TypeError, ValueError, RecursionError) as error:
        raise CallFailed(
            f"{verb} answered with a {type(answer).__name__}, which isn't what its Call declares: {error}"
        ) from error


def read(call: Call, data: Any) -> Any:
    """The answer that this JSON is. Raises ``ValueError`` for what is none, ``BrokenBackend``."""
    # As JSON, not as what it was parsed to: of a few types (bytes, times) only that says what is meant.
    return _answers(call).validate_json(json.dumps(data))


# --- on both sides ----------------------------------------------------------------------------------------------------


def with_limits(request: Any, limits: Any) -> Any:
    """A plug-in's request that knows the limits its media are to be read under, where it has a field for them."""
    if getattr(request, LIMITS, limits) is not None:
        return request
    if is_dataclass(request) and not isinstance(request, type):
        mine = [each for each in fields(request) if each.name == LIMITS and each.init]
        return replace(request, **{LIMITS: limits}) if mine else request
    copy = getattr(request, "model_copy", None)
    return copy(update={LIMITS: limits}) if copy is not None else request


@lru_cache(maxsize=256)
def installed_call(verb: str, kind: type) -> Call | None:
    """What an installed plug-in declares for a verb that is asked with requests of this type.

    Imports plug-ins, first the one of the type's own package. One that can't be imported declares nothing.
    """
    root = kind.__module__.partition(".")[0]
    entries = metadata.entry_points(group=BACKENDS_GROUP)
    for entry in sorted(entries, key=lambda each: each.module.partition(".")[0] != root):
        if entry.module.startswith("taskrouter."):
            continue
        try:
            calls = getattr(entry.load(), "calls", {})
        except Exception:  # noqa: BLE001 - one broken plug-in leaves the others alone, and what it declares unknown
            continue
        call = calls.get(verb) if isinstance(calls, Mapping) else None
        if isinstance(call, Call) and isinstance(call.request, type) and issubclass(kind, call.request):
            return call
    return None
