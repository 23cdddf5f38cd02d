"""Tiny random checkpoints of the families that talk about pictures."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .checkpoints import save
from .families import SIDE, SMALL


def idefics3(folder: Path) -> None:
    """Pictures and text to text, each picture as a few tokens."""
    import transformers
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = _chatting(("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"))
    config = transformers.Idefics3Config(
        text_config=_text(transformers.LlamaConfig, tokenizer),
        vision_config={**SMALL, "image_size": SIDE, "patch_size": 16},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, tie_word_embeddings=False,
        pad_token_id=0,
    )  # fmt: skip
    longest = {"longest_edge": SIDE}
    pictures = Idefics3ImageProcessorPil(size=longest, max_image_size=longest, do_image_splitting=False)
    processor = transformers.Idefics3Processor(
        pictures, tokenizer, image_seq_len=(SIDE // 16) ** 2 // 4, chat_template=_TEMPLATE
    )
    save(transformers.Idefics3ForConditionalGeneration(config), folder)
    processor.save_pretrained(folder)


def llava(folder: Path) -> None:
    """Pictures and text to text, each picture as all its patches."""
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _chatting(("<image>",))
    config = transformers.LlavaConfig(
        text_config=_text(transformers.LlamaConfig, tokenizer),
        vision_config=transformers.CLIPVisionConfig(**SMALL, image_size=SIDE, patch_size=16),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
    )  # fmt: skip
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = transformers.LlavaProcessor(
        pictures, tokenizer, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )  # fmt: skip
    save(transformers.LlavaForConditionalGeneration(config), folder)
    processor.save_pretrained(folder)


_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('no such role: ' + message['role']) }}{% endif %}<{{ message['role'] }}> "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} "
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _chatting(more: tuple[str, ...]) -> Any:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from .checkpoints import WORDS

    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        extra_special_tokens={name.strip("<>").replace("-", "_") + "_token": name for name in more},
    )  # fmt: skip
    return tokenizer


def _text(kind: Any, tokenizer: Any) -> Any:
    return kind(
        **SMALL, vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip


def qwen2_5_vl(folder: Path) -> None:
    """Pictures and text to text, each picture as its own size makes it."""
    import transformers

    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
              "window_size": 32, "fullatt_block_indexes": [1]}  # fmt: skip
    _qwen(folder, "Qwen2_5_VL", transformers.Qwen2_5_VLConfig, vision)


def qwen3_vl(folder: Path) -> None:
    """The same, what is seen handed to several layers."""
    import transformers

    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
              "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}  # fmt: skip
    _qwen(folder, "Qwen3VL", transformers.Qwen3VLConfig, vision)


def _qwen(folder: Path, name: str, kind: Any, vision: dict[str, Any]) -> None:
    import json

    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = _chatting(marks)
    at = dict(zip(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
                  tokenizer.convert_tokens_to_ids(list(marks)), strict=True))  # fmt: skip
    text = {**SMALL, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "max_position_embeddings": 512,
            "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}  # fmt: skip
    seeing = {**vision, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
    config = kind(text_config=text, vision_config=seeing, tie_word_embeddings=False, **at)
    save(getattr(transformers, f"{name}ForConditionalGeneration")(config), folder)
    tokenizer.chat_template = _TEMPLATE.replace("<image>", "<|vision_start|> <|image_pad|> <|vision_end|>")
    tokenizer.save_pretrained(folder)
    pictures = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 16 * 16, "longest_edge": SIDE * SIDE}
    )
    told = {**json.loads(pictures.to_json_string()), "processor_class": f"{name}Processor"}
    # The class that would write this file needs torchvision.
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


def smolvlm(folder: Path) -> None:
    """Pictures and text to text, by Idefics3's younger brother."""
    import json

    import transformers
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    marks = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    tokenizer = _chatting(marks)
    config = transformers.SmolVLMConfig(
        text_config=_text(transformers.LlamaConfig, tokenizer),
        vision_config={**SMALL, "image_size": SIDE, "patch_size": 16},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, tie_word_embeddings=False,
        pad_token_id=0,
    )  # fmt: skip
    save(transformers.SmolVLMForConditionalGeneration(config), folder)
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    longest = {"longest_edge": SIDE}
    pictures = SmolVLMImageProcessorPil(size=longest, max_image_size=longest, do_image_splitting=False)
    told = {"image_seq_len": (SIDE // 16) ** 2 // 4, "processor_class": "SmolVLMProcessor"}
    # The class that would write these files needs torchvision.
    (folder / "preprocessor_config.json").write_text(pictures.to_json_string())
    (folder / "processor_config.json").write_text(json.dumps(told))


TALKERS: Mapping[str, Callable[[Path], None]] = {
    "idefics3": idefics3, "llava": llava, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl,
    **({"smolvlm": smolvlm} if importlib.util.find_spec("num2words") else {}),
}  # fmt: skip
