"""``embed``: each text becomes one vector, as the checkpoint's recipe says."""

from __future__ import annotations

import threading
from typing import Any

from taskrouter.backends.hf.calling import on_device
from taskrouter.backends.hf.loading import Parts
from taskrouter.errors import ContextTooLong, UnsupportedInput
from taskrouter.verbs import Embeddings, EmbedRequest, Usage

BATCH = 32
"""Texts that are read at once, those of like length together."""


def embed(parts: Parts, request: EmbedRequest, context: int | None, stop: threading.Event) -> Embeddings:
    """Vectors in the order of the texts. Blocks. Raises ``ContextTooLong`` for a text that would have to be cut.

    Returns nothing of use once ``stop`` is set.
    """
    if request.extra:
        raise UnsupportedInput(
            f"extra has {', '.join(sorted(request.extra))}, which Transformers models here don't take."
        )
    lengths = [len(ids) for ids in parts.processor(list(request.inputs))["input_ids"]]
    for place, length in enumerate(lengths):
        if context is not None and length > context:
            raise ContextTooLong(
                f"text {place} comes to {length} tokens, and the model's context is {context}: cut it into pieces."
            )
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    vectors: dict[int, tuple[float, ...]] = {}
    for start in range(0, len(order), BATCH):
        if stop.is_set():
            return Embeddings(())
        places = order[start : start + BATCH]
        for place, vector in zip(places, _vectors(parts, [request.inputs[place] for place in places]), strict=True):
            vectors[place] = tuple(vector)
    return Embeddings(tuple(vectors[place] for place in range(len(order))), Usage(sum(lengths), 0))


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
