"""A tiny checkpoint with random weights that listens: Qwen2-Audio. It answers as the one that watches clips does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engines.tiny import byte_words, chat_template, hushed, spread

SPECIAL = ["<pad>", "<eos>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<user>", "<bot>"]
TEMPLATE = chat_template({"audio": "<|audio_bos|><|AUDIO|><|audio_eos|>"})
HIDDEN, LAYERS, HEADS, CONTEXT, MELS = 64, 2, 2, 2048, 80


def sound_checkpoint(folder: Path) -> Path:
    """Write the checkpoint, its processor and its chat template to ``folder``, and return that."""
    import torch

    transformers = hushed()
    torch.manual_seed(0)
    words = byte_words(SPECIAL, pad="<pad>", end="<eos>")
    ids = {word: words.convert_tokens_to_ids(word) for word in SPECIAL}
    ends: dict[str, Any] = {"pad_token_id": ids["<pad>"], "eos_token_id": ids["<eos>"], "bos_token_id": None}
    config = transformers.Qwen2AudioConfig(
        text_config={
            "model_type": "qwen2", "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "vocab_size": len(words),
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
            "max_position_embeddings": CONTEXT, "tie_word_embeddings": False, "use_sliding_window": False, **ends,
        },
        audio_config={
            "model_type": "qwen2_audio_encoder", "num_mel_bins": MELS, "encoder_layers": LAYERS,
            "encoder_attention_heads": HEADS, "encoder_ffn_dim": 2 * HIDDEN, "d_model": HIDDEN,
        },
        audio_token_index=ids["<|AUDIO|>"], **ends,
    )  # fmt: skip
    model = transformers.Qwen2AudioForConditionalGeneration(config)
    spread(model, words)
    model.generation_config.update(**ends, do_sample=False)
    model.save_pretrained(folder)
    _with_published_names(folder / "model.safetensors")
    listener = transformers.WhisperFeatureExtractor(feature_size=MELS)
    transformers.Qwen2AudioProcessor(listener, words, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


def _with_published_names(file: Path) -> None:
    """Call the weights as published checkpoints do: Transformers 5 writes ``model.model`` where they say ``model``."""
    from safetensors.torch import load_file, save_file

    weights = {name.replace("language_model.model.model.", "language_model.model."): each
               for name, each in load_file(file).items()}  # fmt: skip
    save_file(weights, file, metadata={"format": "pt"})
