"""Writing text, token by token, after a prompt: what chat and completion share.

Greedy unless ``temperature`` (or ``top_p``) asks for sampling.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from taskrouter.backends.hf.calling import on_device
from taskrouter.backends.hf.generation import Sampling, Watcher
from taskrouter.backends.hf.loading import Parts
from taskrouter.errors import BadInput, ContextTooLong, UnsupportedInput
from taskrouter.verbs import ChatRequest, GenerateRequest, Usage

Request = ChatRequest | GenerateRequest

UNBOUNDED_TOKENS = 2048
"""The longest answer where neither the caller nor the model's configuration gives a bound."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads, how many tokens that is, and how many the answer may have."""

    inputs: Mapping[str, Any]
    tokens: int
    answer_tokens: int


def write(
    parts: Parts, request: Request, prompt: Prompt, stop: threading.Event, emit: Callable[[str], None]
) -> tuple[str, str, Usage]:
    """The text that comes after a prompt, why it ended, and its tokens; each piece is given to ``emit`` as it comes.

    Blocks until all of it is there, or ``stop`` is set.
    """
    pieces: list[str] = []

    def show(piece: str) -> None:
        pieces.append(piece)
        emit(piece)

    watcher = Watcher(tokenizer(parts), ends=_ends(parts), stops=request.stop, stop=stop, emit=show)
    if not stop.is_set():
        _generate(parts, request, prompt, watcher)
        watcher.finish()
    return "".join(pieces), watcher.reason, Usage(prompt.tokens, watcher.tokens)


def tokenizer(parts: Parts) -> Any:
    """What turns text into tokens: the processor itself, or a part of it."""
    return getattr(parts.processor, "tokenizer", parts.processor)


def fitting(parts: Parts, request: Request, context: int | None, inputs: Mapping[str, Any]) -> Prompt:
    """A prompt on the model's device. Raises ``ContextTooLong`` where it leaves no room for an answer."""
    tokens = int(inputs["input_ids"].shape[1])
    if not tokens:
        raise BadInput("the messages come to no tokens at all.")
    left = UNBOUNDED_TOKENS if context is None else context - tokens
    if left < 1:
        raise ContextTooLong(
            f"the messages come to {tokens} tokens, and the model's context is {context}, which also has to hold "
            "the answer. Send less."
        )
    return Prompt(
        on_device(inputs, parts),
        tokens,
        min(request.max_tokens or left, left),
    )


def _generate(parts: Parts, request: Request, prompt: Prompt, watcher: Watcher) -> None:
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


def _sampling(parts: Parts, request: Request) -> Any:
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


def _settings(parts: Parts, request: Request, answer_tokens: int) -> Any:
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
        named = tokenizer(parts).eos_token_id
    if named is None:
        return frozenset()
    return frozenset([named] if isinstance(named, int) else named)


def check(request: Request) -> None:
    """Refuse what can't be done: nonsensical sampling (``BadInput``), further fields (``UnsupportedInput``)."""
    if request.extra:
        raise UnsupportedInput(
            f"extra has {', '.join(sorted(request.extra))}, which Transformers models here don't take."
        )
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
