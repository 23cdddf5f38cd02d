"""Tiny checkpoints with random weights: real Transformers folders, built in milliseconds, needing no network."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskrouter.types import CPU, Charges, ModelKey, ModelRequest
from taskrouter.verbs import ChatRequest

WORDS = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", *(f"w{n}" for n in range(59))]
CONTEXT = 128
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('no such role: ' + message['role']) }}{% endif %}"
    "<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save(module: Any, folder: Path, **options: Any) -> None:
    """``save_pretrained`` without its progress bar and advice."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.ERROR)
    module.save_pretrained(folder, **options)


def chat_checkpoint(folder: Path, *, hidden: int = 32, layers: int = 2, dtype: str = "float32", **options: Any) -> Path:
    """A Llama with a word-level tokenizer, which (being random) practically never ends an answer by itself."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    save(transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)), folder, **options)
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def image_checkpoint(folder: Path) -> Path:
    """A ViT for 32 × 32 pixels and three labels."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        id2label={0: "circle", 1: "square", 2: "star"}, label2id={"circle": 0, "square": 1, "star": 2},
    )  # fmt: skip
    save(transformers.ViTForImageClassification(config), folder)
    size = {"height": 32, "width": 32}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": size})
    )
    return folder


def audio_checkpoint(folder: Path) -> Path:
    """A Wav2Vec2 for 16 kHz and two labels."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=[8, 8],
        conv_kernel=[10, 4], conv_stride=[8, 4], num_feat_extract_layers=2, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, classifier_proj_size=8, id2label={0: "low", 1: "high"},
        label2id={"low": 0, "high": 1},
    )  # fmt: skip
    save(transformers.Wav2Vec2ForSequenceClassification(config), folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000).save_pretrained(folder)
    return folder


def request(folder: Path | str, **options: Any) -> ModelRequest:
    """The request for a checkpoint, its key made from the folder's name."""
    name = Path(folder).name
    options = {"framework": "transformers", "model_id": str(folder), **options}
    return ModelRequest(key=ModelKey(f"{name}#1"), label=name, **options)


def say(*words: str, **options: Any) -> ChatRequest:
    """A chat request of one user message."""
    return ChatRequest(messages=({"role": "user", "content": " ".join(words)},), **options)


CHARGES: Charges = {CPU: 1 << 20}


async def seen(condition: Callable[[], bool], bound_s: float = 20.0) -> None:
    """Wait for something that is seen, not announced."""
    end = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < end, "it took too long"
        await asyncio.sleep(0.001)
