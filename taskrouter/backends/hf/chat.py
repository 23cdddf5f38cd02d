"""``chat`` and ``stream_chat``: OpenAI-style messages through the model's chat template to text.

Greedy unless ``temperature`` (or ``top_p``) asks for sampling. Both verbs run the same generation and cut
the same pieces, so a stream's pieces put together are the answer.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from taskrouter.backends.hf.calling import on_device
from taskrouter.backends.hf.examine import Family
from taskrouter.backends.hf.generation import Sampling, Watcher
from taskrouter.backends.hf.loading import Parts
from taskrouter.backends.hf.seen import with_pictures
from taskrouter.errors import BadInput, ContextTooLong, UnsupportedInput
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import ChatAnswer, ChatRequest, Usage

UNBOUNDED_TOKENS = 2048
"""The longest answer where neither the caller nor the model's configuration gives a bound."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    inputs: Mapping[str, Any]
    tokens: int
    answer_tokens: int


def chat(
    parts: Parts,
    family: Family,
    request: ChatRequest,
    context: int | None,
    limits: MediaLimits,
    stop: threading.Event,
    emit: Callable[[str], None],
) -> ChatAnswer:
    """Answer, giving each piece of text to ``emit`` as it comes. Blocks until the answer is complete or ``stop`` is
    set.

    Raises ``BadInput`` for messages the template doesn't take, a prompt longer than the context, or nonsensical
    sampling.
    """
    if request.extra:
        raise UnsupportedInput(
            f"extra has {', '.join(sorted(request.extra))}, which Transformers models here don't take."
        )
    _check_sampling(request)
    prompt = _seen(parts, request, context, limits) if family is Family.VISION else _prompt(parts, request, context)
    pieces: list[str] = []

    def show(piece: str) -> None:
        pieces.append(piece)
        emit(piece)

    watcher = Watcher(_tokenizer(parts), ends=_ends(parts), stops=request.stop, stop=stop, emit=show)
    if not stop.is_set():
        _generate(parts, request, prompt, watcher)
        watcher.finish()
    return ChatAnswer("".join(pieces), watcher.reason, Usage(prompt.tokens, watcher.tokens))


def _generate(parts: Parts, request: ChatRequest, prompt: _Prompt, watcher: Watcher) -> None:
    import torch

    with torch.inference_mode():
        parts.module.generate(
            **prompt.inputs,
            generation_config=_settings(parts, request, prompt.answer_tokens),
            logits_processor=_sampling(parts, request),
            stopping_criteria=_criteria(watcher),
        )


def _criteria(watcher: Watcher) -> Any:
    import transformers

    return transformers.StoppingCriteriaList([watcher])


def _sampling(parts: Parts, request: ChatRequest) -> Any:
    import transformers

    temperature = request.temperature
    if temperature is None and request.top_p is not None:
        temperature = 1.0
    processors = transformers.LogitsProcessorList()
    if temperature:
        processors.append(
            Sampling(temperature=temperature, top_p=request.top_p, seed=request.seed, device=parts.device)
        )
    return processors


def _settings(parts: Parts, request: ChatRequest, answer_tokens: int) -> Any:
    """The model's own generation settings, less its sampling: that is the caller's to choose."""
    settings = copy.deepcopy(parts.module.generation_config)
    settings.do_sample = False
    settings.num_beams = 1
    for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "max_length", "min_length"):
        setattr(settings, name, None)
    settings.max_new_tokens = answer_tokens
    if settings.pad_token_id is None:
        settings.pad_token_id = next(iter(sorted(_ends(parts))), 0)
    return settings


def _ends(parts: Parts) -> frozenset[int]:
    """The tokens that end an answer, as the model or else its tokenizer names them."""
    named = parts.module.generation_config.eos_token_id
    if named is None:
        named = _tokenizer(parts).eos_token_id
    if named is None:
        return frozenset()
    return frozenset([named] if isinstance(named, int) else named)


def _tokenizer(parts: Parts) -> Any:
    return getattr(parts.processor, "tokenizer", parts.processor)


def _prompt(parts: Parts, request: ChatRequest, context: int | None) -> _Prompt:
    tokenizer = parts.processor
    text = _templated(parts, [_message(index, message) for index, message in enumerate(request.messages)])
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
    return _fitting(parts, request, context, inputs)


def _seen(parts: Parts, request: ChatRequest, context: int | None, limits: MediaLimits) -> _Prompt:
    """The same with pictures, each of which becomes as many tokens as the processor makes of it."""
    for index, message in enumerate(request.messages):
        _check_message(index, message)
    messages = with_pictures(request.messages, limits)
    _templated(parts, messages)
    inputs = parts.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return _fitting(parts, request, context, inputs)


def _templated(parts: Parts, messages: list[dict[str, Any]]) -> str:
    if not messages:
        raise BadInput("chat wants at least one message.")
    try:
        return str(parts.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # the template is the model's own code: it raises what it likes
        raise BadInput(f"the model's chat template does not take these messages: {error}") from error


def _fitting(parts: Parts, request: ChatRequest, context: int | None, inputs: Mapping[str, Any]) -> _Prompt:
    tokens = int(inputs["input_ids"].shape[1])
    if not tokens:
        raise BadInput("the messages come to no tokens at all.")
    left = UNBOUNDED_TOKENS if context is None else context - tokens
    if left < 1:
        raise ContextTooLong(
            f"the messages come to {tokens} tokens, and the model's context is {context}, which also has to hold "
            "the answer. Send less."
        )
    return _Prompt(
        on_device(inputs, parts),
        tokens,
        min(request.max_tokens or left, left),
    )


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


def _check_sampling(request: ChatRequest) -> None:
    _check("max_tokens", request.max_tokens, whole=True, least=1)
    _check("temperature", request.temperature, least=0)
    _check("top_p", request.top_p, above=0, most=1)
    _check("seed", request.seed, whole=True, least=0, most=(1 << 63) - 1)
    if not all(isinstance(text, str) and text for text in request.stop):
        raise BadInput("stop wants texts that are not empty.")


def _check(
    name: str,
    value: Any,
    *,
    whole: bool = False,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> None:
    if value is None:
        return
    kind = int if whole else (int, float)
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or value < least or value <= above or value > most:
        bounds = [f"at least {least}"] * (least > -math.inf) + [f"above {above}"] * (above > -math.inf)
        bounds += [f"at most {most}"] * (most < math.inf)
        raise BadInput(f"{name} wants a {'whole ' * whole}number {' and '.join(bounds)}, not {value!r}.")
