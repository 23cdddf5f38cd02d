"""A tiny checkpoint with random weights that looks at pictures and clips: Qwen2.5-VL.

It answers with letters and digits, nonsense, but always the same for what it sees. Its processor's files are written by
hand: the one for clips can't be made without torchvision.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.engines.tiny import byte_words, chat_template, hushed, spread

SPECIAL = ["<pad>", "<eos>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<user>", "<bot>"]
TEMPLATE = chat_template(
    {
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
        "video": "<|vision_start|><|video_pad|><|vision_end|>",
    }
)
HIDDEN, LAYERS, HEADS, CONTEXT = 64, 2, 2, 2048
SIZES = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN}
PATCHES = {"patch_size": 14, "temporal_patch_size": 2}


def clip_checkpoint(folder: Path) -> Path:
    """Write the checkpoint, its processor and its chat template to ``folder``, and return that."""
    import torch

    transformers = hushed()
    torch.manual_seed(0)
    words = byte_words(SPECIAL, pad="<pad>", end="<eos>")
    ids = {word: words.convert_tokens_to_ids(word) for word in SPECIAL}
    ends: dict[str, Any] = {"pad_token_id": ids["<pad>"], "eos_token_id": ids["<eos>"], "bos_token_id": None}
    rope = {"rope_type": "default", "type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **SIZES, **ends, "vocab_size": len(words), "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS, "max_position_embeddings": CONTEXT, "tie_word_embeddings": False,
            "rope_parameters": rope, "rope_scaling": rope, "use_sliding_window": False,
        },
        vision_config={
            **SIZES, **PATCHES, "depth": LAYERS, "num_heads": HEADS, "spatial_merge_size": 2, "window_size": 112,
            "out_hidden_size": HIDDEN, "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False, **ends,
    )  # fmt: skip
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    spread(model, words)
    model.generation_config.update(**ends, do_sample=False)
    model.save_pretrained(folder)
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    both = {
        **PATCHES, "processor_class": "Qwen2_5_VLProcessor", "merge_size": 2,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 56**2, "longest_edge": 112**2},
    }  # fmt: skip
    pictures = {**both, "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 56**2, "max_pixels": 112**2}
    clips = {**both, "video_processor_type": "Qwen2VLVideoProcessor", "do_sample_frames": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(clips))
    return folder
