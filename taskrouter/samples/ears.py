"""What the samples that hear are built with: a small Wav2Vec2 that begins as a bank of pitch detectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from taskrouter.samples.renderers import tones

HEARING: dict[str, Any] = {
    "conv_kernel": [400, 3, 3],
    "conv_stride": [160, 2, 1],
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "hidden_size": 96,
    "num_attention_heads": 4,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "initializer_range": 0.1,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "apply_spec_augment": False,
}
"""The configuration that both have: a frame every 20 ms, and little dropped, as no sound is heard twice."""


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
