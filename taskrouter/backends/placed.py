"""Where a plug-in's request holds its media: told from its type, and refused where a medium could go unread.

What is read for a plug-in is found by the names of its fields. So a medium may stand in a field, or in a list there,
and nowhere deeper; and no other name may lead to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import InitVar, is_dataclass
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ForwardRef,
    Literal,
    NewType,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from taskrouter.backends.base import MediumMark

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def placed(name: str, hint: Any) -> tuple[bool, bool]:
    """Whether a field of this name and type holds media, and whether in a list.

    Raises ``TypeError`` for a type with a medium elsewhere.
    """
    seen: dict[int, Any] = {}
    parts = list(_alternatives(hint, seen))
    listed = [each for part in parts for item in _items(part) for each in _alternatives(item, seen)]
    deeper = [part for part in parts if not _items(part)] + listed
    if any(_anywhere(each, seen) for each in deeper if not _is_marked(each)):
        raise TypeError(f"in its field {name} a Medium stands neither by itself nor in a list or tuple of the field's.")
    several = any(map(_is_marked, listed))
    return several or any(map(_is_marked, parts)), several


def _alternatives(hint: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """What a value may be: a union's members, an optional's, those of a type with another name."""
    renamed = _renamed(hint)
    if renamed is not None:
        seen[id(hint)] = hint
        yield from _alternatives(renamed, seen)
    elif get_origin(hint) is Annotated and not _is_marked(hint):
        yield from _alternatives(get_args(hint)[0], seen)
    elif get_origin(hint) in (Union, UnionType):
        for each in get_args(hint):
            yield from _alternatives(each, seen)
    else:
        yield hint


def _items(hint: Any) -> tuple[Any, ...]:
    """What stands in it, if it is a list of some sort."""
    origin = get_origin(hint)
    if not isinstance(origin, type) or not issubclass(origin, Collection) or issubclass(origin, Mapping):
        return ()
    return get_args(hint)


def _is_marked(hint: Any) -> bool:
    return get_origin(hint) is Annotated and any(isinstance(each, MediumMark) for each in hint.__metadata__)


def _renamed(hint: Any) -> Any:
    """The type that another name stands for, by ``type X = …`` or ``NewType``; ``None`` for what is no such name."""
    if isinstance(hint, NewType):
        return hint.__supertype__
    if type(hint).__name__ == "TypeAliasType":  # of typing, or of typing_extensions
        return hint.__value__
    return None


def _anywhere(hint: Any, seen: dict[int, Any]) -> bool:
    """Whether a medium stands anywhere in this type. ``seen`` keeps what was looked at, so that no id comes twice.

    Raises ``TypeError`` for a type that can't be looked through.
    """
    if isinstance(hint, (str, ForwardRef)):
        name = hint if isinstance(hint, str) else hint.__forward_arg__
        if any(_renamed(each) is not None and each.__name__ == name for each in seen.values()):
            return False  # a type with another name, inside itself
        raise TypeError(f"nobody knows what {name!r} in it is.")
    if id(hint) in seen or get_origin(hint) is Literal:
        return False
    seen[id(hint)] = hint
    return _is_marked(hint) or any(_anywhere(each, seen) for each in _within(hint))


def _within(hint: Any) -> Iterator[Any]:
    """The types that a type is made of."""
    renamed = _renamed(hint)
    if renamed is not None:
        yield renamed
    if isinstance(hint, InitVar):
        yield hint.type
    origin = get_origin(hint)
    if origin is Annotated:
        yield get_args(hint)[0]
        return
    for each in get_args(hint):
        # Of a callable's, the arguments stand in a list.
        yield from each if isinstance(each, list) else (each,) if each is not ... else ()
    if origin is not None:
        yield origin
    bound = (getattr(hint, "__bound__", None), *(getattr(hint, "__constraints__", ()) or ()))
    yield from (each for each in bound if each is not None)
    if isinstance(hint, type) and origin is None:
        yield from _of_class(hint)


def _of_class(kind: type) -> Iterator[Any]:
    from pydantic import BaseModel

    if issubclass(kind, BaseModel):
        yield from map(hint_of, kind.model_fields.values())
        yield extra_of(kind)
    elif is_dataclass(kind) or is_typeddict(kind) or hasattr(kind, "_fields"):
        yield from get_type_hints(kind, include_extras=True).values()


def hint_of(field: FieldInfo) -> Any:
    """The type of a pydantic model's field with its marks, which pydantic keeps apart from it."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def extra_of(kind: type) -> Any:
    """The type of what a pydantic model takes beside its fields."""
    return get_type_hints(kind, include_extras=True).get("__pydantic_extra__")


def heard(name: str, field: FieldInfo | None) -> frozenset[str]:
    """All names that pydantic may take a field's value from."""
    if field is None:
        return frozenset({name})
    said = field.validation_alias
    choices: list[Any] = list(getattr(said, "choices", [said]))
    firsts = [getattr(each, "path", [each])[0] for each in (field.alias, *choices)]
    return frozenset({name, *(each for each in firsts if isinstance(each, str))})
