"""A tiny vision-language checkpoint with random weights, which Transformers and vLLM both load without torchvision.

Idefics3: a picture becomes 64 patches of 16 × 16 pixels, and those 16 tokens of a Llama. The heads are 32 wide, the
least that vLLM takes on CPU. It answers with letters and digits, nonsense without an end, but always the same for the
same picture and another for another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engines.tiny import byte_words, chat_template, hushed, spread

SIDE, PATCH, SCALE = 128, 16, 2
IMAGE_TOKENS = (SIDE // PATCH // SCALE) ** 2
CONTEXT = 512
HIDDEN = 64
SPECIAL = [
    "<pad>",
    "<eos>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<user>",
    "<bot>",
]


def vision_checkpoint(folder: Path) -> Path:
    """Write the checkpoint, its processor and its chat template to ``folder``, and return that."""
    import torch

    transformers = hushed()
    torch.manual_seed(0)
    processor = _processor(transformers)
    ids = {word: processor.tokenizer.convert_tokens_to_ids(word) for word in SPECIAL}
    ends: dict[str, Any] = {"pad_token_id": ids["<pad>"], "eos_token_id": ids["<eos>"], "bos_token_id": None}
    text = transformers.LlamaConfig(
        vocab_size=len(processor.tokenizer), hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=CONTEXT,
        tie_word_embeddings=False, **ends,
    )  # fmt: skip
    config = transformers.Idefics3Config(
        vision_config={
            "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIDE, "patch_size": PATCH,
        },
        text_config=text.to_dict(), scale_factor=SCALE, image_token_id=ids["<image>"], tie_word_embeddings=False,
        **ends,
    )  # fmt: skip
    model = transformers.Idefics3ForConditionalGeneration(config)
    spread(model, processor.tokenizer)
    model.generation_config.update(**ends, do_sample=False)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _processor(transformers: Any) -> Any:
    """Pictures to 128 × 128 pixels, text to bytes."""
    pictures = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    words = byte_words(SPECIAL, pad="<pad>", end="<eos>")
    template = chat_template({"image": "<image>"})
    return transformers.Idefics3Processor(pictures, words, image_seq_len=IMAGE_TOKENS, chat_template=template)
