"""Word error rate, the measure of a transcription: how many words would have to be changed, put in or taken out.

By all words said, over all utterances together (the Levenshtein distance of their words).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from taskrouter.samples.renderers.digits import Sound, Utterance, render
from taskrouter.samples.renderers.tones import RATE


def word_error(said: Sequence[str], heard: Sequence[str]) -> float:
    """0 if all is right; above 1 where more is put in than was said."""
    wrong = sum(_changes(one.split(), other.split()) for one, other in zip(said, heard, strict=True))
    return wrong / sum(len(text.split()) for text in said)


def _changes(said: list[str], heard: list[str]) -> int:
    least = list(range(len(heard) + 1))
    for place, word in enumerate(said, 1):
        before, least[0] = least[0], place
        for other_place, other in enumerate(heard, 1):
            kept = before + (word != other)
            before = least[other_place]
            least[other_place] = min(kept, before + 1, least[other_place - 1] + 1)
    return least[-1]


def held_out(count: int, *, seed: int) -> list[Utterance]:
    """Utterances of voices that training never heard. Needs espeak-ng."""
    rng = np.random.default_rng(seed)
    return [render(rng, "held-out") for _ in range(count)]


def heard(sounds: Sequence[Sound], folder: Path) -> list[str]:
    """What the checkpoint writes down of each."""
    import torch
    from transformers import AutoModelForCTC, AutoProcessor

    torch.set_num_threads(1)
    model = AutoModelForCTC.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    texts: list[str] = []
    with torch.inference_mode():
        for sound in sounds:
            inputs = processor(sound, sampling_rate=RATE, return_tensors="pt")
            texts += processor.batch_decode(model(**inputs).logits.argmax(-1))
    return texts
