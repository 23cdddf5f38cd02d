"""Texts written together, a token of each at a time, in as much memory as one of them may take.

A row of a batch costs memory for as many tokens as its longest row has, whatever it holds itself; so rows are taken in
as long as all of them fit the context that memory was booked for. Where answers grow beyond it, the batch ends, and
the oldest go on: what was written stays, and is read again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from taskrouter.backends.hf.batching import Call, Others, sweep
from taskrouter.backends.hf.loading import Parts
from taskrouter.backends.hf.writing import Text, ends

JOIN_AFTER = 16
"""Tokens that are written at least before others are let in: then all rows are read again."""


def run_texts(parts: Parts, calls: Sequence[Call], others: Others) -> None:
    """Meet the wants of calls, a ``Text`` each, of those that fit: one that is over goes on at once, whoever is still
    written. Ends when all of them are over, or should others be let in."""
    sweep(calls)
    waiting = [call for call in calls if call.wants is not None]
    if waiting:
        _write(parts, _group(parts, waiting), calls, others)


def _group(parts: Parts, calls: Sequence[Call]) -> list[Call]:
    """The first, and those after it that fit beside it."""
    group = [calls[0]]
    if not _wants_company(parts):
        return group
    for call in calls[1:]:
        if _alike(parts, group[0].wants, call.wants) and _fit([*group, call]):
            group.append(call)
    return group


def _wants_company(parts: Parts) -> bool:
    """Whether a text may be written beside others, and begun again in the middle.

    Not where settings count from the prompt's end, nor by code that came with the checkpoint: nobody knows how it was
    padded.
    """
    settings = parts.module.generation_config
    counted = settings.min_new_tokens or settings.begin_suppress_tokens or settings.forced_bos_token_id is not None
    return not counted and not type(parts.module).__module__.startswith("transformers_modules")


def _fit(calls: Sequence[Call]) -> bool:
    """Whether all of them can be written whole, or else take half of the room at first: the other half is to grow."""
    texts: list[Text] = [call.wants for call in calls]
    room = min(text.prompt.room for text in texts)
    longest, most = max(text.span for text in texts), max(text.most for text in texts)
    return len(texts) * most <= room or 2 * len(texts) * longest <= room


def _alike(parts: Parts, first: Text, text: Text) -> bool:
    """Whether they can be rows of one batch: where a model minds what it is padded with, only if they are as long."""
    return first.span == text.span or not _minds_padding(parts)


def _minds_padding(parts: Parts) -> bool:
    settings = parts.module.generation_config
    counts_tokens = settings.repetition_penalty not in (None, 1.0) or settings.no_repeat_ngram_size
    return bool(getattr(parts.module, "_is_stateful", False) or counts_tokens)


def _write(parts: Parts, calls: Sequence[Call], all_calls: Sequence[Call], others: Others) -> None:
    """Write until all are over, or beyond their room (one alone has all it may need), or others are to be let in."""
    import torch
    import transformers

    texts: list[Text] = [call.wants for call in calls]
    outside = [call for call in all_calls if call not in calls and call.wants is not None]
    rows = _Rows(calls, texts, outside, others if _wants_company(parts) else _nobody)
    settings = _settings(parts, max(text.most - text.span for text in texts))
    with torch.inference_mode():
        parts.module.generate(
            **_inputs(parts, texts, settings.pad_token_id),
            generation_config=settings,
            logits_processor=transformers.LogitsProcessorList(
                [_Draw(texts)] if any(text.sampling for text in texts) else []
            ),
            stopping_criteria=transformers.StoppingCriteriaList([rows]),
        )
    if len(calls) == 1 and calls[0].wants is not None and not rows.interrupted:
        calls[0].goes_on(texts[0].ended())


def _inputs(parts: Parts, texts: Sequence[Text], padding: int) -> dict[str, Any]:
    """What the model reads: of several, or one that goes on, their tokens, padded before the first."""
    import torch

    if len(texts) == 1 and not texts[0].tokens:
        return dict(texts[0].prompt.inputs)
    longest = max(text.span for text in texts)
    ids = torch.full((len(texts), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, text in enumerate(texts):
        known = text.prompt.inputs["input_ids"][0].tolist() + text.tokens
        ids[place, longest - len(known) :] = torch.tensor(known)
        mask[place, longest - len(known) :] = 1
    return {"input_ids": ids.to(parts.device), "attention_mask": mask.to(parts.device)}


def _settings(parts: Parts, answer_tokens: int) -> Any:
    """The model's own generation settings, less its sampling: that is the caller's to choose."""
    settings = copy.deepcopy(parts.module.generation_config)
    settings.do_sample = False
    settings.num_beams = 1
    for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "max_length", "min_length"):
        setattr(settings, name, None)
    settings.max_new_tokens = answer_tokens
    if settings.pad_token_id is None:
        settings.pad_token_id = next(iter(sorted(ends(parts))), 0)
    return settings


def _nobody() -> bool:
    return False


class _Rows:
    """A stopping criterion that sees each row's tokens: who is over goes on at once.

    ``interrupted``: it ended what could have gone on, since the rows outgrew their room, or as others are to be let in,
    who came or were left ``outside``.
    """

    def __init__(self, calls: Sequence[Call], texts: Sequence[Text], outside: Sequence[Call], others: Others) -> None:
        self.interrupted = False
        self._calls = calls
        self._texts = texts
        self._outside = outside
        self._others = others
        self._room = min(text.prompt.room for text in texts) if len(texts) > 1 else None
        self._written = 0

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        self._written += 1
        left = 0
        for call, text, token in zip(self._calls, self._texts, input_ids[:, -1].tolist(), strict=True):
            if call.wants is text:
                text.see(token)
                if text.over:
                    call.goes_on(text.ended())
                else:
                    left += 1
        sweep(self._outside)
        if left and (self._outgrown(input_ids) or self._lets_in(left)):
            self.interrupted = True
        over = [self.interrupted or call.wants is None for call in self._calls]
        return torch.tensor(over, device=input_ids.device)

    def _outgrown(self, input_ids: Any) -> bool:
        return self._room is not None and input_ids.numel() >= self._room

    def _lets_in(self, left: int) -> bool:
        if self._written < JOIN_AFTER:
            return False
        room_again = left < len(self._calls) and any(call.wants is not None for call in self._outside)
        return room_again or self._others()


class _Draw:
    """A logits processor that draws the next token of each row that asks for it, as that row's sampling does."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self._texts = texts

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        rows = scores.split(1)
        drawn = [
            row if text.sampling is None else text.sampling.drawn(row)
            for text, row in zip(self._texts, rows, strict=True)
        ]
        return torch.cat(drawn)
