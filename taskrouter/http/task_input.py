"""A request to a task, JSON or a form, as a method of its model's handle and the arguments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import UploadFile

from taskrouter.backends.base import Call
from taskrouter.backends.calls import said, shape_of
from taskrouter.backends.engines.outside import check_body
from taskrouter.errors import BadInput, BrokenBackend, MediaTooLarge, UnsupportedVerb
from taskrouter.http.exchange import Exchange
from taskrouter.http.failing import Refused
from taskrouter.http.forms import Upload, close, form_of
from taskrouter.http.own_verbs import own_request
from taskrouter.http.strict_json import strict, strict_object
from taskrouter.http.task_bodies import CALLS, MEDIA
from taskrouter.http.transcriptions import ENDINGS
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import STREAMING_VERBS, VERBS_OF_KIND

REST = "request"
"""The form's field that holds a JSON object of whatever has no field of its own."""
MOST_FILES = 64
LONGEST_TEXT = 1 << 20
"""Bytes of a form's field that is no file."""
_SMALL = 1 << 17
"""Bytes that are parsed at once; more are for a thread, so that other requests go on."""
_TEXTS = MEDIA | {"verb", "prompt", "language", "path"}
_TEXTS_OR_LISTS = frozenset({"messages", "stop"})


@dataclass(frozen=True, slots=True)
class Can:
    """What a task can be asked: by its kind; by what is known of its model; by what its plug-in declares (``own``).

    ``limits``: of media that are read before it is asked.
    """

    kind: str | None
    verbs: Collection[str] | None = None
    own: Mapping[str, Call] = field(default_factory=dict)
    limits: MediaLimits = field(default_factory=lambda: MediaLimits(roots=()))


@dataclass(frozen=True, slots=True)
class TaskCall:
    """What is asked, and how: a method of a handle, and its arguments.

    ``own``: what the answer is to be, where the verb is a plug-in's own.
    """

    verb: str
    method: str
    arguments: dict[str, Any]
    stream: bool = False
    own: Call | None = None


@asynccontextmanager
async def call_of(exchange: Exchange, can: Can, *, most: int) -> AsyncIterator[TaskCall]:
    """Read what a task that can do this is asked, within ``most`` bytes; files of a form are there until the end.

    Raises ``Refused`` (415), ``BadInput``, ``MediaTooLarge``, ``UnsupportedVerb``.
    """
    sort = (exchange.header(b"content-type") or "").partition(";")[0].strip().lower()
    if sort == "application/json":
        data = await exchange.body(most)
        if len(data) <= _SMALL and not can.own:
            yield checked(strict_object(data), (), can)
        else:
            yield await asyncio.to_thread(lambda: checked(strict_object(data), (), can))
    elif sort == "multipart/form-data":
        form = await form_of(exchange, can.limits.max_bytes, files=MOST_FILES, total=most, longest=LONGEST_TEXT)
        try:
            fields = [(name, _field(name, value)) for name, value in form.multi_items()]
            yield await asyncio.to_thread(lambda: checked(*given_by(fields), can))
        finally:
            close(form)
    else:
        said = f"{sort[:80]!r}" if sort else "nothing"
        raise Refused(
            415,
            f"content-type says {said}; a task takes application/json and multipart/form-data. JSON is sent with "
            "content-type: application/json, by curl with --json in place of -d",
            code="content_type",
        )


def _field(name: str, value: str | UploadFile) -> str | Upload:
    return value if isinstance(value, str) else Upload(value, name if name in MEDIA else "file", ENDINGS)


def given_by(fields: Sequence[tuple[str, str | Upload]]) -> tuple[dict[str, Any], frozenset[str]]:
    """What a form's fields say, and the names of those that stand there as texts and files, of one name as a list.

    Raises ``BadInput`` for what is said twice, or can't be read.
    """
    found: dict[str, list[str | Upload]] = {}
    rest: dict[str, Any] = {}
    for name, value in fields:
        if name != REST:
            found.setdefault(name, []).append(value)
        elif rest:
            raise BadInput(f"the form has {REST!r} twice")
        else:
            rest = strict_object(_text(value), f"the form's {REST!r}")
    for name in rest:
        if name in found:
            raise BadInput(f"the form has {name[:80]!r} twice: once in {REST!r}")
    return {**rest, **{name: each if len(each) > 1 else each[0] for name, each in found.items()}}, frozenset(found)


def _text(value: str | Upload) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if value.size > LONGEST_TEXT:
        raise MediaTooLarge(f"the form's {REST!r} has more than {LONGEST_TEXT:,} bytes")
    return value.read()


def _argument(name: str, value: Any) -> Any:
    """What a form's field is as an argument of a verb of ours."""
    if isinstance(value, list):
        if name != "inputs":
            raise BadInput(f"the form has {name[:80]!r} twice")
        return value
    if isinstance(value, Upload):
        if name not in MEDIA:
            raise BadInput(f"{name[:80]!r} came as a file; files are taken as {', '.join(sorted(MEDIA))}")
        return value
    if name in _TEXTS or not any(name in call.model_fields for call in CALLS.values()):
        return value
    if name in _TEXTS_OR_LISTS:
        return strict(value.encode(), name) if value.lstrip().startswith("[") else value
    return strict(value.encode(), f"{name} (anything but a text is JSON in a form)")


def checked(given: Mapping[str, Any], form: Collection[str], can: Can) -> TaskCall:
    """The call that these arguments are; those in ``form`` stand in a form. Blocks where a plug-in's media are read.

    Raises ``BadInput`` that says what is wrong with which, ``MediaTooLarge``, ``UnsupportedVerb``.
    """
    verb = chosen(given, can)
    own = can.own.get(verb)
    if own is not None:
        request = own_request(verb, own, given, form, can.limits)
        return TaskCall(verb, "ask", {"verb": verb, "request": request}, own=own)
    arguments = {name: _argument(name, value) if name in form else value for name, value in given.items()}
    model = CALLS[verb]
    try:
        body = model.model_validate({**arguments, "verb": verb})
    except ValidationError as error:
        raise BadInput(said(verb, [name for name in model.model_fields if name != "verb"], error)) from None
    stream = getattr(body, "stream", False)
    call = TaskCall(verb, f"stream_{verb}" if stream else verb, body.arguments(), stream)
    if verb == "request":
        check_body(call.arguments.get("body") or {}, stream=stream)
        if stream:
            call.arguments.setdefault("body", {})
    return call


def chosen(given: Mapping[str, Any], can: Can) -> str:
    """The verb that is asked, named or not. Raises ``BadInput`` where it isn't clear, ``UnsupportedVerb``."""
    verb = given.get("verb")
    if verb is not None:
        if isinstance(verb, str) and (verb in CALLS or verb in can.own):
            return verb
        raise _unknown(verb, can)
    if can.kind is not None:
        return next(iter(VERBS_OF_KIND[can.kind] - STREAMING_VERBS))
    # What a server does beside the verbs is asked for by name only.
    known = [each for each in (*CALLS, *can.own) if each != "request" and (not can.verbs or each in can.verbs)]
    if len(known) == 1:
        return known[0]
    fitting = [each for each in known if _fits(given, each, can)]
    if len(fitting) == 1:
        return fitting[0]
    raise BadInput(
        f"this task can be asked several things, and the arguments don't tell which: name the verb, "
        f"one of {', '.join(fitting or known)}"
    )


def _unknown(verb: Any, can: Can) -> BadInput | UnsupportedVerb:
    known = f"verb is {verb!r:.80}; it must be one of {', '.join((*CALLS, *can.own))}"
    if not isinstance(verb, str):
        return BadInput(known)
    if verb in STREAMING_VERBS:
        whole = verb.removeprefix("stream_")
        return UnsupportedVerb(f'{known} (a {whole} in pieces is "verb": "{whole}" with "stream": true)')
    if can.kind is not None:
        return UnsupportedVerb(f"{known}; a task of kind {can.kind} has no verb of a plug-in's own")
    return UnsupportedVerb(
        f"{known}. A verb of a plug-in's own is one once the backend declares what it takes and answers: "
        f'calls = {{"{verb[:80]}": Call(Request, Answer)}} (docs/plug-ins.md)'
    )


def _fits(given: Mapping[str, Any], verb: str, can: Can) -> bool:
    if verb in can.own:
        try:
            shape = shape_of(can.own[verb].request)
        except BrokenBackend:
            return False  # who asks for it by name is told
        return given.keys() <= shape.names.keys() and shape.required <= given.keys()
    fields = CALLS[verb].model_fields
    return given.keys() <= fields.keys() and all(name in given for name, it in fields.items() if it.is_required())
