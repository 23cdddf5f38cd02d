"""What the tiny multimodal checkpoints of these tests have in common: random weights, words that are bytes."""

from __future__ import annotations

import logging
import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

SAID = string.ascii_letters + string.digits


def hushed() -> Any:
    """Transformers, which shows no progress and warns of nothing from here on."""
    import transformers
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.ERROR)
    return transformers


def byte_words(special: Sequence[str], *, pad: str, end: str) -> Any:
    """A tokenizer that makes a token of each byte, and of each of these words."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate([*special, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=end)


def chat_template(parts: Mapping[str, str]) -> str:
    """A chat template that writes these words for parts whose type holds ``image``, ``video`` or ``audio``."""
    otherwise = "".join(
        "{% elif '" + kind + "' in part['type'] %}" + words for kind, words in parts.items()
    )  # fmt: skip
    return (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}<bot>{% else %}<user>{% endif %}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}" + otherwise + "{% endif %}{% endfor %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )


def spread(model: Any, words: Any) -> None:
    """Weights large enough for every token to depend on what is seen, and for no two tokens to be about as likely.

    Tokens other than letters and digits have no weights in the head: said only where a grammar leaves no other choice.
    """
    import torch

    said = [words.convert_tokens_to_ids(sign) for sign in SAID]
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1:
                fan_in = math.prod(weights.shape[1:])
                weights.normal_(std=0.5 if "embed" in name else 2 / math.sqrt(fan_in))
        head = torch.zeros_like(model.lm_head.weight)
        head[said] = model.lm_head.weight[said]
        model.lm_head.weight.copy_(head)
