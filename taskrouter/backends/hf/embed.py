"""``embed``: each text becomes one vector, as the checkpoint's recipe says."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from taskrouter.backends.hf.batching import Call, Others, Steps, sweep
from taskrouter.backends.hf.calling import Stopped, on_device
from taskrouter.backends.hf.loading import Parts
from taskrouter.backends.hf.one_space import embed_in_one_space
from taskrouter.errors import BadInput, ContextTooLong, UnsupportedInput
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import Embeddings, EmbedRequest, Usage

MOST_TEXTS = 32
MOST_TOKENS = 16_384
"""What is read at once at most, padding counted; texts of like length go together."""


@dataclass(slots=True, eq=False)
class Texts:
    """Texts that want a vector each: how many tokens they are, which are left (the shortest last), and the vectors."""

    texts: list[str]
    lengths: list[int]
    left: list[int]
    vectors: dict[int, tuple[float, ...]]


def embed(
    parts: Parts, request: EmbedRequest, context: int | None, limits: MediaLimits, stop: threading.Event
) -> Steps:
    """Vectors in the order of the texts: wants them of the module. Blocks between.

    Raises ``ContextTooLong`` for a text that would have to be cut.
    """
    if request.extra:
        raise UnsupportedInput(
            f"extra has {', '.join(sorted(request.extra))}, which Transformers models here don't take."
        )
    recipe = parts.recipe
    if recipe is None:
        return embed_in_one_space(parts, request, limits, stop)
    texts = [recipe.prepared(text) for text in request.texts("this model")]
    longest = min((bound for bound in (context, recipe.longest) if bound is not None), default=None)
    lengths = []
    for place, text in enumerate(texts):
        if stop.is_set():
            raise Stopped
        lengths.append(_length(parts, place, text, longest))
    vectors = yield Texts(texts, lengths, sorted(range(len(texts)), key=lambda place: -lengths[place]), {})
    return Embeddings(vectors, Usage(sum(lengths), 0))


def run_vectors(parts: Parts, calls: Sequence[Call], _: Others) -> None:
    """Meet the wants of calls, ``Texts`` each: some texts of every call, so that nobody waits for another's many."""
    share = max(1, MOST_TEXTS // len(calls))
    texts = [(call, call.wants, place) for call in calls for place in call.wants.left[-share:]]
    for batch in _batches([wanted.lengths[place] for _, wanted, place in texts]):
        sweep(calls)
        chosen = [texts[each] for each in batch if texts[each][0].wants is not None]
        if not chosen:
            continue
        rows = _vectors(parts, [wanted.texts[place] for _, wanted, place in chosen])
        for (call, wanted, place), row in zip(chosen, rows, strict=True):
            wanted.vectors[place] = tuple(row)
            wanted.left.remove(place)
            if not wanted.left:
                call.goes_on(tuple(wanted.vectors[place] for place in range(len(wanted.texts))))


def _length(parts: Parts, place: int, text: str, longest: int | None) -> int:
    """How many tokens a text is. Raises ``BadInput`` for none, ``ContextTooLong`` for too many."""
    length = len(parts.processor(text)["input_ids"])
    if not length:
        raise BadInput(f"text {place} comes to no tokens at all, so it has no vector.")
    if longest is not None and length > longest:
        raise ContextTooLong(
            f"text {place} comes to {length} tokens, and the model's context is {longest}: cut it into pieces."
        )
    return length


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    """Places of texts that are read together, the shortest first."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        # The last is the longest, and all are padded to it.
        if batch and (len(batch) == MOST_TEXTS or (len(batch) + 1) * lengths[place] > MOST_TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _vectors(parts: Parts, texts: list[str]) -> list[list[float]]:
    import torch

    assert parts.recipe is not None
    batch = on_device(parts.processor(texts, padding=True, return_tensors="pt"), parts)
    with torch.inference_mode():
        states = parts.module(**batch).last_hidden_state.float()
        vectors = _pooled(states, batch["attention_mask"], parts.recipe.pooling)
        if parts.recipe.normalized:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
    rows: list[list[float]] = vectors.tolist()
    return rows


def _pooled(states: Any, mask: Any, pooling: str) -> Any:
    """``states``: texts × tokens × dimensions; ``mask``: which tokens are text. Texts × dimensions."""
    import torch

    rows = torch.arange(len(states), device=states.device)
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp_min(1e-9)
    if pooling == "cls":
        return states[rows, mask.argmax(-1)]  # the first that is text, on whichever side the padding is
    places = torch.arange(mask.shape[1], device=states.device)
    return states[rows, (mask * (places + 1)).argmax(-1)]
