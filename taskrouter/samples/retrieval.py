"""Retrieval at 1, the measure of an embedding: how many paraphrases are nearest to their own sentence of all.

The sentences come in families of near twins, so that a vector which only tells what a sentence is
about is mostly wrong.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskrouter.samples.recipe_phrases import pooled
from taskrouter.samples.renderers.phrases import Pair, family

TWINS = 8
_BATCH = 64

Missed = tuple[Pair, str]
"""A paraphrase with its sentence, and the sentence that was nearer."""


def held_out(count: int, *, seed: int) -> list[Pair]:
    """So many pairs, in families of eight near twins, of claims that training never saw."""
    rng = np.random.default_rng(seed)
    families = [family(rng, TWINS, "held-out") for _ in range(-(-count // TWINS))]
    return [pair for each in families for pair in each][:count]


def missed(pairs: list[Pair], folder: Path) -> list[Missed]:
    """Ask with every paraphrase for its sentence among all; returns those for which another was nearest."""
    queries, sentences = (_vectors([getattr(pair, side) for pair in pairs], folder) for side in Pair.__slots__[::-1])
    nearest = (queries @ sentences.T).argmax(1)
    return [
        (pair, pairs[best].sentence)
        for place, (pair, best) in enumerate(zip(pairs, nearest, strict=True))
        if place != best
    ]


def _vectors(texts: list[str], folder: Path) -> NDArray[np.float32]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        batches = [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]
        vectors = [pooled(model, dict(tokenizer(batch, padding=True, return_tensors="pt"))) for batch in batches]
        return np.asarray(torch.cat(vectors))
