"""How the digits sample is built, and one batch of what it hears in training."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from taskrouter.samples import ears
from taskrouter.samples.renderers import digits, tones

_BLANK, _UNKNOWN, _BETWEEN = "<pad>", "<unk>", "|"
_VOCABULARY = (_BLANK, _UNKNOWN, _BETWEEN, *digits.WORDS)
"""Whole words: letters are learnt far slower. One ends with a mark of its own, from which a reader tells its time."""


def build_digits() -> tuple[Any, Any]:
    """A small Wav2Vec2 that writes words, one frame every 20 ms."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor

    config = Wav2Vec2Config(
        **ears.HEARING,
        conv_dim=[160, 128, 128],
        num_hidden_layers=3,
        intermediate_size=192,
        activation_dropout=0.0,
        ctc_loss_reduction="mean",
        vocab_size=len(_VOCABULARY),
        pad_token_id=_VOCABULARY.index(_BLANK),
        bos_token_id=None,
        eos_token_id=None,
    )
    model = Wav2Vec2ForCTC(config)
    ears.listen_for_pitch(model.wav2vec2.feature_extractor.conv_layers[0].conv)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=tones.RATE, return_attention_mask=True)
    return model, Wav2Vec2Processor(extractor, _tokenizer())


def digits_batch(rng: np.random.Generator, count: int, processor: Any) -> dict[str, Any]:
    """Utterances with their words, padded to the longest; all are of as many words, so that little is padded."""
    import torch

    words = int(rng.integers(1, digits.MOST + 1))
    heard = [digits.render(rng, count=words) for _ in range(count)]
    inputs = processor([each.sound for each in heard], sampling_rate=tones.RATE, padding=True, return_tensors="pt")
    labels = np.full((count, 2 * words), _VOCABULARY.index(_BETWEEN))
    labels[:, ::2] = [[_VOCABULARY.index(word) for word in each.text.split()] for each in heard]
    return {**inputs, "labels": torch.from_numpy(labels)}


def _tokenizer() -> Any:
    from transformers import Wav2Vec2CTCTokenizer

    with TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps({token: place for place, token in enumerate(_VOCABULARY)}))
        return Wav2Vec2CTCTokenizer(
            str(file),
            pad_token=_BLANK,
            unk_token=_UNKNOWN,
            word_delimiter_token=_BETWEEN,
            bos_token=None,
            eos_token=None,
            do_lower_case=False,
        )
