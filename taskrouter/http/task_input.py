"""A request to a task, JSON or a form, as a verb and its arguments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import UploadFile

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.http.exchange import Exchange
from taskrouter.http.failing import Refused
from taskrouter.http.forms import Upload, close, form_of
from taskrouter.http.strict_json import strict, strict_object
from taskrouter.http.task_bodies import CALLS, MEDIA
from taskrouter.http.transcriptions import ENDINGS
from taskrouter.verbs import STREAMING_VERBS, VERBS_OF_KIND

REST = "request"
"""The form's field that holds a JSON object of whatever has no field of its own."""
MOST_FILES = 64
LONGEST_TEXT = 1 << 20
"""Bytes of a form's field that is no file."""
_SMALL = 1 << 17
"""Bytes that are parsed at once; more are for a thread, so that other requests go on."""
_TEXTS = MEDIA | {"verb", "prompt", "language"}
_TEXTS_OR_LISTS = frozenset({"messages", "stop"})
_MOST_SAID = 5


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked."""

    verb: str
    arguments: dict[str, Any]
    stream: bool


@asynccontextmanager
async def call_of(
    exchange: Exchange, kind: str | None, verbs: Collection[str] | None, *, most_each: int, most: int
) -> AsyncIterator[Call]:
    """Read what a task of this kind, whose model knows these verbs, is asked; files of a form are there until the end.

    Raises ``Refused`` (415), ``BadInput``, ``MediaTooLarge``. ``most_each``: bytes of a file; ``most``: of everything.
    """
    sort = (exchange.header(b"content-type") or "").partition(";")[0].strip().lower()
    if sort == "application/json":
        data = await exchange.body(most)
        if len(data) <= _SMALL:
            yield checked(strict_object(data), kind, verbs)
        else:
            yield await asyncio.to_thread(lambda: checked(strict_object(data), kind, verbs))
    elif sort == "multipart/form-data":
        form = await form_of(exchange, most_each, files=MOST_FILES, total=most, longest=LONGEST_TEXT)
        try:
            fields = [(name, _field(name, value)) for name, value in form.multi_items()]
            yield await asyncio.to_thread(lambda: checked(given_by(fields), kind, verbs))
        finally:
            close(form)
    else:
        said = f"{sort[:80]!r}" if sort else "nothing"
        raise Refused(
            415, f"content-type says {said}; a task takes application/json and multipart/form-data", code="content_type"
        )


def _field(name: str, value: str | UploadFile) -> str | Upload:
    return value if isinstance(value, str) else Upload(value, name if name in MEDIA else "file", ENDINGS)


def given_by(fields: Sequence[tuple[str, str | Upload]]) -> dict[str, Any]:
    """A form's fields as arguments. Raises ``BadInput`` for one that is there twice, or can't be read."""
    given: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in fields:
        if name == REST:
            if rest:
                raise BadInput(f"the form has {REST!r} twice")
            rest = strict_object(_text(value), f"the form's {REST!r}")
        elif name in given and name == "inputs":
            several = given[name]
            given[name] = [*several, value] if isinstance(several, list) else [several, value]
        elif name in given:
            raise BadInput(f"the form has {name[:80]!r} twice")
        else:
            given[name] = _argument(name, value)
    for name in rest:
        if name in given:
            raise BadInput(f"the form has {name[:80]!r} twice: once in {REST!r}")
    return {**rest, **given}


def _text(value: str | Upload) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if value.size > LONGEST_TEXT:
        raise MediaTooLarge(f"the form's {REST!r} has more than {LONGEST_TEXT:,} bytes")
    return value.read()


def _argument(name: str, value: str | Upload) -> Any:
    if isinstance(value, Upload):
        if name not in MEDIA:
            raise BadInput(f"{name[:80]!r} came as a file; files are taken as {', '.join(sorted(MEDIA))}")
        return value
    if name in _TEXTS or not any(name in call.model_fields for call in CALLS.values()):
        return value
    if name in _TEXTS_OR_LISTS:
        return strict(value.encode(), name) if value.lstrip().startswith("[") else value
    return strict(value.encode(), f"{name} (anything but a text is JSON in a form)")


def checked(given: dict[str, Any], kind: str | None, verbs: Collection[str] | None) -> Call:
    """The call that these arguments are. Raises ``BadInput`` that says what is wrong with which."""
    verb = chosen(given, kind, verbs)
    model = CALLS[verb]
    try:
        body = model.model_validate({**given, "verb": verb})
    except ValidationError as error:
        raise BadInput(_said(verb, error)) from None
    return Call(verb, body.arguments(), getattr(body, "stream", False))


def chosen(given: Mapping[str, Any], kind: str | None, verbs: Collection[str] | None) -> str:
    """The verb that is asked, named or not. Raises ``BadInput`` where it isn't clear."""
    verb = given.get("verb")
    if verb is not None:
        if not isinstance(verb, str) or verb not in CALLS:
            hint = ' (a chat in pieces is "verb": "chat" with "stream": true)' if verb == "stream_chat" else ""
            raise BadInput(f"verb is {verb!r:.80}; it must be one of {', '.join(CALLS)}{hint}")
        return verb
    if kind is not None:
        return next(iter(VERBS_OF_KIND[kind] - STREAMING_VERBS))
    known = [each for each in CALLS if not verbs or each in verbs]
    if len(known) == 1:
        return known[0]
    fitting = [each for each in known if _fits(given, each)]
    if len(fitting) == 1:
        return fitting[0]
    raise BadInput(
        f"this task can be asked several things, and the arguments don't tell which: name the verb, "
        f"one of {', '.join(fitting or known)}"
    )


def _fits(given: Mapping[str, Any], verb: str) -> bool:
    fields = CALLS[verb].model_fields
    return given.keys() <= fields.keys() and all(name in given for name, it in fields.items() if it.is_required())


def _said(verb: str, error: ValidationError) -> str:
    said: dict[str, None] = {}
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        first = str(each["loc"][0])[:80] if each["loc"] else "the body"
        where = ".".join((first, *(str(part) for part in each["loc"][1:] if isinstance(part, int))))
        if each["type"] == "extra_forbidden":
            takes = ", ".join(name for name in CALLS[verb].model_fields if name != "verb")
            said[f"{verb} takes no {first!r}; it takes {takes}"] = None
        elif each["type"] == "missing":
            said[f"{verb} needs {first}"] = None
        else:
            said[f"{where}: {each['msg'].removeprefix('Value error, ')}"] = None
    more = len(said) - _MOST_SAID
    return "; ".join([*list(said)[:_MOST_SAID], *([f"and {more} more"] if more > 0 else [])])
