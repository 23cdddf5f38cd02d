"""``chat`` and ``stream_chat``: OpenAI-style messages through the model's chat template to text.

Both verbs run the same generation and cut the same pieces, so a stream's pieces put together are the answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from taskrouter.backends.hf.batching import Steps
from taskrouter.backends.hf.calling import Stopped
from taskrouter.backends.hf.conversation import with_media
from taskrouter.backends.hf.families import TAKES, Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.backends.hf.writing import Prompt, Text, check, fitting
from taskrouter.errors import BadInput, UnsupportedInput
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import ChatAnswer, ChatRequest


def chat(
    parts: Parts,
    family: Family,
    request: ChatRequest,
    context: int | None,
    limits: MediaLimits,
    stop: threading.Event,
    emit: Callable[[str], None],
) -> Steps:
    """Answer, giving each piece of text to ``emit`` as it comes: wants a text written. Blocks between.

    Raises ``BadInput`` for messages the template doesn't take, a prompt longer than the context, or nonsensical
    sampling.
    """
    check(request)
    prompt = (
        _told(parts, family, request, context, limits, stop) if family in TAKES else _prompt(parts, request, context)
    )
    text, reason, usage = yield Text(parts, request, prompt, stop, emit)
    return ChatAnswer(text, reason, usage)


def _prompt(parts: Parts, request: ChatRequest, context: int | None) -> Prompt:
    tokenizer = parts.processor
    text = _templated(parts, [_message(index, message) for index, message in enumerate(request.messages)])
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
    return fitting(parts, request, context, inputs)


def _told(
    parts: Parts,
    family: Family,
    request: ChatRequest,
    context: int | None,
    limits: MediaLimits,
    stop: threading.Event,
) -> Prompt:
    """The same with media, each of which becomes as many tokens as the processor makes of it."""
    for index, message in enumerate(request.messages):
        _check_message(index, message)
    messages = with_media(request.messages, parts, family, limits, stop)
    if stop.is_set():
        raise Stopped
    _templated(parts, messages)
    _check_marks(parts, messages)
    inputs = parts.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return fitting(parts, request, context, inputs)


def _check_marks(parts: Parts, messages: list[dict[str, Any]]) -> None:
    """What stands for a picture or sound may not be written by hand: there would be more marks than media."""
    marks = {kind: getattr(parts.processor, f"{kind}_token", None) for kind in ("image", "audio")}
    for index, message in enumerate(messages):
        for part in message["content"]:
            for kind, mark in marks.items():
                if isinstance(mark, str) and mark and mark in part.get("text", ""):
                    what = "a picture" if kind == "image" else "a sound"
                    raise BadInput(
                        f"message {index} has {mark!r} in its text, which stands for {what} here: leave it out."
                    )


def _templated(parts: Parts, messages: list[dict[str, Any]]) -> str:
    if not messages:
        raise BadInput("chat wants at least one message.")
    try:
        return str(parts.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # the template is the model's own code: it raises what it likes
        raise BadInput(f"the model's chat template does not take these messages: {error}") from error


def _message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    _check_message(index, message)
    return {**message, "content": _text(index, message.get("content"))}


def _check_message(index: int, message: Mapping[str, Any]) -> None:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadInput(f"message {index} wants a role (system, user or assistant) and a content.")


def _text(index: int, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise BadInput(f"message {index}: content wants text or a list of parts, not {type(content).__name__}.")
    pieces = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise UnsupportedInput(f"message {index} has a part of type {kind!r}; this model takes text only.")
        pieces.append(part["text"])
    return "".join(pieces)
