"""What a request asks of a model beside its verb: kinds of content, tools, room for its text. Pure; never raises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

KIND_OF_PART = {
    "text": "text",
    "image_url": "image",
    "input_audio": "audio",
    "audio_url": "audio",
    "video_url": "video",
    "file": "document",
}
"""Content parts of the OpenAI API, and what is in them."""
DEMANDS = frozenset(KIND_OF_PART.values()) - {"text"} | {"tools"}
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
    """The kinds of content in a request, and ``tools`` where the model is to decide which of them it calls."""
    kinds = kinds_of(getattr(request, "messages", ()))
    extra = getattr(request, "extra", None) or {}
    if extra.get("tools") and extra.get("tool_choice", "auto") == "auto":
        return kinds | {"tools"}
    return kinds


def least_tokens(request: Any) -> int:
    """How many tokens its text has at least, whatever the tokenizer."""
    texts = [getattr(request, "prompt", "")]
    for message in getattr(request, "messages", ()):
        content = message.get("content") if isinstance(message, Mapping) else None
        parts = content if isinstance(content, (list, tuple)) else [{"text": content}]
        texts += [part.get("text") for part in parts if isinstance(part, Mapping)]
    return sum(len(text) for text in texts if isinstance(text, str)) // CHARACTERS_PER_TOKEN
