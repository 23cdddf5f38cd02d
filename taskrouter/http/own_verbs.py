"""A request for a verb of a plug-in's own, made of what was sent. Its media are read here: a plug-in opens no paths."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from taskrouter.backends.base import Call
from taskrouter.backends.calls import Shape, shape_of
from taskrouter.errors import BadInput
from taskrouter.http.forms import Upload
from taskrouter.http.strict_json import strict
from taskrouter.http.task_bodies import medium_of
from taskrouter.media.limits import MediaLimits, opened


def own_request(
    verb: str, call: Call, given: Mapping[str, Any], form: Collection[str], limits: MediaLimits
) -> Any:  # fmt: skip
    """The request that these arguments are; those in ``form`` stand in a form. Blocks while media are read.

    Raises ``BadInput``, ``MediaTooLarge``, ``BrokenBackend`` where what was declared can't be used.
    """
    shape = shape_of(call.request)
    arguments = {name: value for name, value in given.items() if name != "verb"}
    shape.check_names(verb, arguments)
    for name, value in arguments.items():
        if name in shape.media:
            arguments[name] = _medium(shape, name, value, limits)
        elif name in form:
            arguments[name] = _field(shape, name, value)
    return shape.request(verb, arguments)


def _field(shape: Shape, name: str, value: Any) -> Any:
    """A form's field: a text, or JSON where no text is wanted and that is what it is."""
    if isinstance(value, list):
        raise BadInput(f"the form has {name[:80]!r} twice")
    if isinstance(value, Upload):
        files = ", ".join(sorted(shape.media)) or "nothing"
        raise BadInput(f"{name[:80]!r} came as a file; files are taken as {files}")
    if name in shape.texts:
        return value
    try:
        return strict(value.encode())
    except BadInput:
        return value


def _medium(shape: Shape, name: str, value: Any, limits: MediaLimits) -> Any:
    if value is None:
        return None
    if name not in shape.several:
        return _read(name, value, limits)
    return [_read(name, each, limits) for each in (value if isinstance(value, list) else [value])]


def _read(name: str, value: Any, limits: MediaLimits) -> Any:
    """A file as it was sent, or the bytes of what was named otherwise."""
    try:
        medium = medium_of(value)
    except ValueError as error:
        raise BadInput(f"{name}: {error}") from None
    if isinstance(medium, Upload):
        if not medium.size:
            raise BadInput(f"the file in {name} is empty")
        return medium
    with opened(medium, limits, what=name) as file:
        return file.file.read()
