"""What a request asks of a model beside its verb: kinds of content, tools, room for its text. Pure; never raises."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from taskrouter.verbs import Picture

KIND_OF_PART = {
    "text": "text",
    "image_url": "image",
    "input_audio": "audio",
    "audio_url": "audio",
    "video_url": "video",
    "file": "document",
}
"""Content parts of the OpenAI API, and what is in them."""
DEMANDS = frozenset(KIND_OF_PART.values()) - {"text"} | {"tools", "automatic tools", "extra"}
_RUN = re.compile(r"(.)\1+", re.DOTALL)
CHARACTERS_PER_TOKEN = 8
"""More than any tokenizer's average: a text is refused for its length unread only where it is surely too long."""


def kinds_of(messages: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """What a conversation holds beside text: ``image``, ``audio``, ``video``, ``document``."""
    found = set()
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, (list, tuple)) else ():
            kind = KIND_OF_PART.get(str(part.get("type"))) if isinstance(part, Mapping) else None
            if kind not in (None, "text"):
                found.add(str(kind))
    return frozenset(found)


def demands_of(request: Any) -> frozenset[str]:
    """The kinds of content in a request; ``tools``, and ``automatic tools`` where the model is to decide which of them
    it calls; and ``extra``, where anything else is asked for than every backend knows."""
    kinds = kinds_of(getattr(request, "messages", ()))
    if any(isinstance(each, Picture) for each in getattr(request, "inputs", ())):
        kinds |= {"image"}
    extra = getattr(request, "extra", None) or {}
    found = {"extra"} if extra else set()
    if extra.get("tools") and extra.get("tool_choice") != "none":
        found.add("tools")
        if extra.get("tool_choice") in (None, "auto"):
            found.add("automatic tools")
    return kinds | found


def fields_of(request: Any) -> tuple[str, ...]:
    """The names of what a request asks for by ``extra``."""
    return tuple(str(name) for name in getattr(request, "extra", None) or ())


def least_tokens(request: Any) -> int:
    """How many tokens its text has at least, whatever the tokenizer."""
    return sum(map(len, _texts(request))) // CHARACTERS_PER_TOKEN


def _texts(request: Any) -> list[str]:
    texts = [getattr(request, "prompt", "")]
    for message in getattr(request, "messages", ()):
        content = message.get("content") if isinstance(message, Mapping) else None
        parts = content if isinstance(content, (list, tuple)) else [{"text": content}]
        texts += [part.get("text") for part in parts if isinstance(part, Mapping)]
    return [text for text in texts if isinstance(text, str)]


def surely_longer(request: Any, context: int) -> int | None:
    """How many tokens its text has at least, where those are more than the context; ``None``: it may fit.

    Long runs of one sign are a few tokens, so they count as one sign.
    """
    if least_tokens(request) <= context:
        return None
    least = sum(len(_RUN.sub(r"\1", text)) for text in _texts(request)) // CHARACTERS_PER_TOKEN
    return least if least > context else None
