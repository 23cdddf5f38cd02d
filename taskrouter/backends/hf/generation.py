"""One generation, token by token: text pieces, stop strings, sampling, and a stop that is obeyed at the next token."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

_WINDOW = 8
"""Tokens that are decoded together; more for a character that is made of more."""


class Detokenizer:
    """Turns tokens into text pieces whose concatenation is the answer.

    Tokens are decoded together with the ones before them, since spaces and multi-byte characters depend on
    neighbours; a piece ending in an unfinished character is held back. Only the last few tokens are decoded again
    each time, and what came out of them the time before is remembered.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0
        self._read = 0
        self._before = ""  # the text of the tokens from start to read

    def push(self, token: int) -> str:
        """Add a token; returns the text it completes, often one word, sometimes nothing."""
        self._tokens.append(token)
        return self._take(last=False)

    def flush(self) -> str:
        """What was held back, at the end."""
        return self._take(last=True)

    def _take(self, *, last: bool) -> str:
        before, now = self._before, self._decode(self._tokens[self._start :])
        if len(now) <= len(before) or (now.endswith("\ufffd") and not last):
            return ""
        self._before = now
        if len(self._tokens) - self._start > _WINDOW:
            # The last piece's tokens stay: what comes next is decoded with them.
            self._start, self._before = self._read, self._decode(self._tokens[self._read :])
        self._read = len(self._tokens)
        return now[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""


class StopText:
    """Cuts a stream of text at the first stop string, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, piece: str, *, last: bool = False) -> str:
        """Add text; returns what can be shown now. After ``hit`` there is no more."""
        if self.hit:
            return ""
        text = self._held + piece
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.hit, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_start(self, text: str) -> int:
        return max(
            (
                size
                for stop in self._stops
                for size in range(min(len(stop) - 1, len(text)), 0, -1)
                if text.endswith(stop[:size])
            ),
            default=0,
        )


class Watcher:
    """Sees every token of one text: emits what can be shown, and says when it is ``over``, and why.

    Some decoding loops look one token late, so what comes after the end is ignored.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        most: int,
        ends: frozenset[int],
        stops: Sequence[str],
        stop: threading.Event,
        emit: Callable[[str], None],
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._text = StopText(stops)
        self._most = most
        self._ends = ends
        self._stop = stop
        self._emit = emit
        self.over = False
        self.tokens = 0
        self.reason = "length"

    def see(self, token: int) -> None:
        """Add a token."""
        if self.over:
            return
        self.tokens += 1
        if token in self._ends:
            self.over, self.reason = True, "stop"
            return
        self._show(self._text.push(self._detokenizer.push(token)))
        if self._text.hit:
            self.over, self.reason = True, "stop"
        elif self._stop.is_set() or self.tokens >= self._most:
            self.over = True

    def finish(self) -> None:
        """Emit what was held back."""
        self._show(self._text.push(self._detokenizer.flush(), last=True))
        if self._text.hit:
            self.reason = "stop"

    def _show(self, piece: str) -> None:
        if piece:
            self._emit(piece)


class Sampling:
    """Draws one text's next tokens from its own random numbers: turns its scores so that the largest is the one drawn.

    Adding Gumbel noise to log-probabilities and taking the largest is drawing from them (the Gumbel-max trick). Torch's
    global generator, which every thread of the process shares, stays out of it: a seed gives the same text
    whatever else is running.
    """

    def __init__(self, *, temperature: float, top_p: float | None, seed: int | None, device: str) -> None:
        import torch

        self._temperature = temperature
        self._top_p = top_p
        self._random = torch.Generator(device=device)
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed)

    def drawn(self, scores: Any) -> Any:
        """The scores (texts × tokens) with noise, for greedy decoding to choose from."""
        import torch

        scores = scores.float() / self._temperature
        if self._top_p is not None and self._top_p < 1:
            ordered, places = scores.sort(descending=True)
            chances = ordered.softmax(-1)
            # A token is kept while those before it don't add up to top_p yet: the first always is.
            dropped = chances.cumsum(-1) - chances >= self._top_p
            scores = scores.masked_fill(dropped.scatter(-1, places, dropped), float("-inf"))
        uniform = torch.rand(scores.shape, generator=self._random, device=scores.device)
        return scores - (-(uniform.clamp_min(1e-20)).log()).clamp_min(1e-20).log()
