"""How the digits sample is built, and one batch of what it hears in training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from taskrouter.samples.renderers import digits, tones

_BLANK, _UNKNOWN, _BETWEEN = "<pad>", "<unk>", "|"
_VOCABULARY = (_BLANK, _UNKNOWN, _BETWEEN, *digits.WORDS)
"""Whole words: letters are learnt far slower. One ends with a mark of its own, from which a reader tells its time."""


def build_digits() -> tuple[Any, Any]:
    """A small Wav2Vec2 that writes words, one frame every 20 ms."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor

    config = Wav2Vec2Config(
        conv_dim=[160, 128, 128],
        conv_kernel=[400, 3, 3],
        conv_stride=[160, 2, 1],
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        initializer_range=0.1,
        layerdrop=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        apply_spec_augment=False,
        ctc_loss_reduction="mean",
        vocab_size=len(_VOCABULARY),
        pad_token_id=_VOCABULARY.index(_BLANK),
        bos_token_id=None,
        eos_token_id=None,
    )
    model = Wav2Vec2ForCTC(config)
    listen_for_pitch(model.wav2vec2.feature_extractor.conv_layers[0].conv)
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


def listen_for_pitch(conv: Any) -> None:
    """Start the filters as windowed sinusoids, 40 mel-spaced pitches by 4 phases: from noise it learns far slower."""
    import torch

    filters, _, width = conv.weight.shape
    mel = np.linspace(2595 * math.log10(1 + 80 / 700), 2595 * math.log10(1 + 7000 / 700), filters // 4)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    time = np.arange(width) / tones.RATE
    waves = [np.sin(2 * np.pi * f * time + phase * np.pi / 2) for f in hertz for phase in range(4)]
    kernel = np.stack(waves) * np.hanning(width) * math.sqrt(2 / width)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(kernel.astype(np.float32))[:, None, :])


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
