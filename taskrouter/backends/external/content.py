"""Content parts as the OpenAI API has them, read for providers that write them otherwise.

Media are put inside the message, as ``data:`` URLs; sizes and counts are checked here, before anything is sent.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from taskrouter.backends.external.base import Takes
from taskrouter.demands import KIND_OF_PART, kinds_of
from taskrouter.errors import BadInput, MediaTooLarge, UnsupportedInput
from taskrouter.media.inline import inlined, is_needed
from taskrouter.residency.messages import size
from taskrouter.verbs import ChatRequest

T = TypeVar("T")

_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*);base64,", re.ASCII)
_AUDIO_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "ogg": "audio/ogg"}


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message: text, or a medium with its bytes in base64."""

    kind: str
    text: str = ""
    media_type: str = ""
    data: str = ""
    name: str = ""

    @property
    def bytes(self) -> int:
        """How many bytes the medium has."""
        return len(self.data) * 3 // 4 - self.data[-2:].count("=")

    @property
    def url(self) -> str:
        return f"data:{self.media_type};base64,{self.data}"


def role_of(message: Mapping[str, Any], where: str) -> str:
    """Who says a message. Raises ``BadInput``."""
    if not isinstance(message.get("role"), str):
        raise BadInput(f"{where} has no role")
    return str(message["role"])


def parts_of(message: Mapping[str, Any], where: str) -> list[Part]:
    """A message's content as parts. Raises ``BadInput``."""
    content = message.get("content")
    if content is None:
        return []
    if isinstance(content, str):
        return [Part("text", content)] if content else []
    if not isinstance(content, (list, tuple)):
        raise BadInput(f"{where}: content is {type(content).__name__}; it must be text or a list of parts")
    return [_part(part, f"{where}.content[{place}]") for place, part in enumerate(content)]


def _part(part: Any, where: str) -> Part:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise BadInput(f"{where} has no type")
    kind = KIND_OF_PART.get(part["type"])
    match kind:
        case "text":
            return Part("text", str(part.get("text", "")))
        case "image" | "video":
            return _from_url(kind, part, part["type"], where)
        case "audio" if part["type"] == "audio_url":
            return _from_url(kind, part, "audio_url", where)
        case "audio":
            inner = part.get("input_audio")
            if not isinstance(inner, Mapping) or not isinstance(inner.get("data"), str):
                raise BadInput(f"{where}: input_audio needs data (base64) and format, such as wav")
            form = str(inner.get("format", "wav"))
            return _checked(Part(kind, "", _AUDIO_TYPES.get(form, f"audio/{form}"), inner["data"]), where)
        case "document":
            inner = part.get("file")
            if not isinstance(inner, Mapping) or not isinstance(inner.get("file_data"), str):
                raise BadInput(f"{where}: file needs file_data, a data: URL")
            found = _from_data(kind, inner["file_data"], where)
            return Part(kind, "", found.media_type, found.data, str(inner.get("filename", "document")))
        case _:
            known = ", ".join(KIND_OF_PART)
            raise BadInput(f"{where} is of type {part['type']!r}; known are {known}")


def _from_url(kind: str, part: Mapping[str, Any], name: str, where: str) -> Part:
    inner = part.get(name)
    url = inner.get("url") if isinstance(inner, Mapping) else inner
    if not isinstance(url, str):
        raise BadInput(f"{where}: {name} needs a url")
    return _from_data(kind, url, where)


def _from_data(kind: str, url: str, where: str) -> Part:
    found = _DATA.match(url)
    if found is None:
        raise BadInput(f"{where}: {url[:60]} isn't fetched; send the bytes as a data: URL (data:image/png;base64,…)")
    return _checked(Part(kind, "", found[1] or "application/octet-stream", url[found.end() :]), where)


def _checked(part: Part, where: str) -> Part:
    data = "".join(part.data.split())  # base64 of mails comes in lines
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput(f"{where}: its data is no base64: {error}") from error
    if data != part.data:
        part = replace(part, data=data)
    if not part.data:
        raise BadInput(f"{where}: its data is empty")
    return part


def check(who: str, parts: Sequence[Part], takes: Takes) -> None:
    """Whether a model takes these parts. Raises ``UnsupportedInput`` or ``MediaTooLarge``."""
    images = [part for part in parts if part.kind == "image"]
    known = {"image": takes.image_types, "audio": takes.audio_types, "document": takes.document_types}
    for part in parts:
        if part.kind != "text" and part.kind not in takes.kinds:
            can = ", ".join(sorted(takes.kinds)) or "none"
            raise UnsupportedInput(f"{who} takes no {part.kind}; beside text it takes: {can}")
        types = known.get(part.kind)
        if types and not types & {part.media_type, f"{part.media_type.partition('/')[0]}/*"}:
            raise UnsupportedInput(f"{who} takes no {part.media_type}; it takes {', '.join(sorted(types))}")
    if len(images) > takes.most_images:
        raise UnsupportedInput(f"{who} takes {takes.most_images} images in one request; these are {len(images)}")
    for place, image in enumerate(images):
        if image.bytes > takes.most_image_bytes:
            raise MediaTooLarge(
                f"{who}: image {place + 1} has {size(image.bytes)}; at most {size(takes.most_image_bytes)} are taken. "
                "Scale it down, or save it as JPEG."
            )
    total = sum(len(part.data) + len(part.text) for part in parts)
    if total > takes.most_request_bytes:
        raise MediaTooLarge(f"{who}: the request has {size(total)}; at most {size(takes.most_request_bytes)} are taken")


def only_text(who: str, parts: Sequence[Part], where: str) -> list[str]:
    """The texts of a system message, which holds nothing else. Raises ``UnsupportedInput``."""
    for part in parts:
        if part.kind != "text":
            raise UnsupportedInput(f"{where}: {who} takes only text in a system message, no {part.kind}")
    return [part.text for part in parts]


async def written(request: Any, write: Callable[[Any], T]) -> T:
    """What ``write`` makes of a request whose media are inside; in a thread where there are any, which take long to
    read, check and sample.
    """
    if not isinstance(request, ChatRequest) or not kinds_of(request.messages):
        return write(request)
    return await asyncio.to_thread(lambda: write(inlined(request) if is_needed(request) else request))


def with_frames(parts: Sequence[Part], takes: Takes) -> list[Part]:
    """Videos as sampled frames, where the model takes images and no video."""
    if "video" in takes.kinds or "image" not in takes.kinds or not any(part.kind == "video" for part in parts):
        return list(parts)
    from taskrouter.media.frames import sample_jpegs

    found: list[Part] = []
    for part in parts:
        if part.kind != "video":
            found.append(part)
            continue
        frames = sample_jpegs(base64.b64decode(part.data))
        found.append(Part("text", f"A video of {frames.seconds:.1f} s, as {len(frames.jpegs)} frames in order:"))
        found += [Part("image", "", "image/jpeg", base64.b64encode(jpeg).decode()) for jpeg in frames.jpegs]
    return found


def arguments(call: Mapping[str, Any], where: str) -> tuple[str, str, dict[str, Any]]:
    """Id, name and arguments of a tool call as the OpenAI API has it. Raises ``BadInput``."""
    try:
        function = call["function"]
        given = function.get("arguments") or "{}"
        read = given if isinstance(given, dict) else json.loads(given)
        if not isinstance(read, dict):
            raise TypeError(f"arguments are {type(read).__name__}")
        return str(call.get("id", "")), str(function["name"]), read
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"{where}: a tool call needs an id and a function with name and JSON arguments") from error


OPENAI_EXTRAS = ("tools", "tool_choice", "response_format", "parallel_tool_calls")
"""What of the OpenAI API's fields every provider's adapter translates; ``extra`` may hold more, which goes as it is."""


def split_extra(request: ChatRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """``extra`` in two: fields that are translated, and the provider's own."""
    known = {name: request.extra[name] for name in OPENAI_EXTRAS if name in request.extra}
    return known, {name: value for name, value in request.extra.items() if name not in known}
