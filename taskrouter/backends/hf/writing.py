"""What is to be written: a prompt, a text that comes after it, and the settings of both; chat and completion share it.

Greedy unless ``temperature`` (or ``top_p``) asks for sampling.
"""

from __future__ import annotations

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
    """What the model reads, how many tokens that is, how many the answer may have, and how many the memory is for."""

    inputs: Mapping[str, Any]
    tokens: int
    answer_tokens: int
    room: int


class Text:
    """A text to be written after a prompt: how it is drawn, and how far it has come.

    Each piece is given to ``emit`` as it comes; once ``stop`` is set it is over with the next token.
    """

    __slots__ = ("_pieces", "_watcher", "prompt", "sampling", "tokens")

    def __init__(
        self, parts: Parts, request: Request, prompt: Prompt, stop: threading.Event, emit: Callable[[str], None]
    ) -> None:
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            emit(piece)

        self.prompt = prompt
        self.sampling = _sampling(parts, request)
        self.tokens: list[int] = []
        self._pieces = pieces
        self._watcher = Watcher(
            tokenizer(parts), most=prompt.answer_tokens, ends=ends(parts), stops=request.stop, stop=stop, emit=show
        )

    @property
    def span(self) -> int:
        """Tokens of the prompt and of what is written."""
        return self.prompt.tokens + len(self.tokens)

    @property
    def most(self) -> int:
        """The most that ``span`` may become."""
        return self.prompt.tokens + self.prompt.answer_tokens

    @property
    def over(self) -> bool:
        return self._watcher.over

    def see(self, token: int) -> None:
        """Write a token."""
        self.tokens.append(token)
        self._watcher.see(token)

    def ended(self) -> tuple[str, str, Usage]:
        """The whole of it, why it ended, and its tokens."""
        self._watcher.finish()
        return "".join(self._pieces), self._watcher.reason, Usage(self.prompt.tokens, self._watcher.tokens)


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
        tokens + left,
    )


def _sampling(parts: Parts, request: Request) -> Sampling | None:
    temperature = request.temperature
    if temperature is None and request.top_p is not None:
        temperature = 1.0
    if not temperature:
        return None
    return Sampling(temperature=temperature, top_p=request.top_p, seed=request.seed, device=parts.device)


def ends(parts: Parts) -> frozenset[int]:
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
