"""A tiny vision-language checkpoint with random weights, which Transformers and vLLM both load without torchvision.

Idefics3: a picture becomes 64 patches of 16 × 16 pixels, and those 16 tokens of a Llama. The heads are 32 wide, the
least that vLLM takes on CPU. It answers with letters and digits, nonsense without an end, but always the same for the
same picture and another for another.
"""

from __future__ import annotations

import logging
import math
import string
from pathlib import Path
from typing import Any

SIDE, PATCH, SCALE = 128, 16, 2
IMAGE_TOKENS = (SIDE // PATCH // SCALE) ** 2
CONTEXT = 512
HIDDEN = 64
SAID = string.ascii_letters + string.digits
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
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<bot>{% else %}<user>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


def vision_checkpoint(folder: Path) -> Path:
    """Write the checkpoint, its processor and its chat template to ``folder``, and return that."""
    import torch
    import transformers
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.ERROR)
    torch.manual_seed(0)
    processor = _processor()
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
    _spread(model, [processor.tokenizer.convert_tokens_to_ids(sign) for sign in SAID])
    model.generation_config.update(**ends, do_sample=False)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _spread(model: Any, said: list[int]) -> None:
    """Weights large enough for every token to depend on the picture, and for no two tokens to be about as likely.

    Tokens that are not to be said have no weights in the head: said only where a grammar leaves no other choice.
    """
    import torch

    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1:
                fan_in = math.prod(weights.shape[1:])
                weights.normal_(std=0.5 if "embed" in name else 2 / math.sqrt(fan_in))
        head = torch.zeros_like(model.lm_head.weight)
        head[said] = model.lm_head.weight[said]
        model.lm_head.weight.copy_(head)


def _processor() -> Any:
    """Pictures to 128 × 128 pixels, text to bytes."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate([*SPECIAL, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    pictures = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    return transformers.Idefics3Processor(pictures, words, image_seq_len=IMAGE_TOKENS, chat_template=TEMPLATE)
