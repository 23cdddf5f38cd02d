"""A verb's request as it is sent: its arguments as JSON, and its media, read on this side, as files beside them.

Paths are those of this machine. Pictures and sounds that are no files yet become ones that lose nothing: PNG, and WAV
of 32-bit samples. http(s) URLs go as they are: whether they are fetched is for the server to say.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, BinaryIO

from taskrouter.client.answers import VERBS
from taskrouter.client.media import is_plain, opened_medium
from taskrouter.client.own_verbs import given_of, media_of
from taskrouter.errors import BadInput
from taskrouter.media.inline import inlined, is_needed
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import STREAMING_VERBS, ChatRequest, EmbedRequest, Picture, RawRequest

MEDIUM: Mapping[str, str] = {
    "classify": "input", "detect": "image", "segment": "image", "depth": "image", "track": "video",
    "transcribe": "audio",
}  # fmt: skip
"""The argument of each verb that holds what is looked at or listened to."""
_REMOTE = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file, named like the argument that it is; ``size`` in bytes."""

    name: str
    file: BinaryIO
    size: int


@dataclass(frozen=True, slots=True)
class Sent:
    """What goes to the server: the arguments as JSON, and the files among them."""

    body: bytes
    files: tuple[SentFile, ...] = ()


@contextmanager
def sent(verb: str, request: Any, limits: MediaLimits) -> Iterator[Sent]:
    """A request as it is sent, while its files are open. Blocks while it reads.

    Raises ``BadInput`` for what can't be read or written as JSON, ``MediaTooLarge`` for what is over a limit.
    """
    if verb not in VERBS:
        with _own(verb, request, limits) as own:
            yield own
        return
    if isinstance(request, ChatRequest):
        request = inlined(request) if is_needed(request) else request
    elif isinstance(request, EmbedRequest):
        request = replace(request, inputs=tuple(_input(each, limits) for each in request.inputs))
    arguments = _arguments(verb, request)
    name = MEDIUM.get(verb)
    source = arguments.pop(name, None) if name is not None else None
    if name is None or (isinstance(source, str) and _REMOTE.match(source)):
        yield Sent(_json(arguments if name is None else {**arguments, name: source}))
        return
    rate = arguments.get("sampling_rate")
    with opened_medium(verb, source, limits, rate=rate, fps=arguments.get("fps")) as file:
        if not is_plain(source):
            # The file says it itself.
            arguments.pop("sampling_rate", None)
        yield Sent(_json(arguments), (SentFile(name, file.file, file.size),))


@contextmanager
def _own(verb: str, request: Any, limits: MediaLimits) -> Iterator[Sent]:
    """The same for a verb of a plug-in's own."""
    given, media = given_of(verb, request)
    with ExitStack() as opening:
        files: list[SentFile] = []
        for name, sources in media_of(media):
            if all(isinstance(each, str) and _REMOTE.match(each) for each in sources):
                given[name] = media[name]
                continue
            for source in sources:
                # What is no file yet is taken for what it looks like, as it is for ``classify``.
                opened = opened_medium("classify", source, limits, rate=given.get("sampling_rate"), what=name)
                file = opening.enter_context(opened)
                files.append(SentFile(name, file.file, file.size))
        yield Sent(_json({"verb": verb, **given}), tuple(files))


def has_no_media(verb: str, request: Any) -> bool:
    """Whether there is nothing to read, so that a request is made at once."""
    if isinstance(request, ChatRequest):
        return not is_needed(request)
    if isinstance(request, EmbedRequest):
        return all(isinstance(each, str) for each in request.inputs)
    return verb in VERBS and verb not in MEDIUM


def _arguments(verb: str, request: Any) -> dict[str, Any]:
    """The arguments of the verb's method that were given; those left out have the same defaults over there."""
    given = {each.name: getattr(request, each.name) for each in fields(request) if each.name != "limits"}
    kept = {name: value for name, value in given.items() if not _is_nothing(value)}
    if isinstance(request, RawRequest):
        kept = given if request.body is not None else {"path": request.path}
    if verb in STREAMING_VERBS:
        return {"verb": verb.removeprefix("stream_"), "stream": True, **kept}
    return {"verb": verb, **kept}


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (tuple, dict)) and not value)


def _input(given: Any, limits: MediaLimits) -> Any:
    """A text, or a picture as a content part: so they keep their order."""
    if not isinstance(given, Picture):
        return given
    if isinstance(given.source, str) and _REMOTE.match(given.source):
        return {"type": "image_url", "image_url": {"url": given.source}}
    with opened_medium("embed", given.source, limits) as file:
        written = base64.b64encode(file.file.read()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/octet-stream;base64,{written}"}}


def _json(arguments: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(arguments, ensure_ascii=False, allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"the arguments can't be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    """Mappings that are no dicts, and single numbers of NumPy."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON")
