"""What each sample is: its architecture, its processor, and one batch of its training data.

The numbers were chosen so that the three checkpoints of the demo are of about one size, and so that each learns in
minutes on one CPU thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskrouter.samples import ears, recipe_clips
from taskrouter.samples.recipe_digits import build_digits, digits_batch
from taskrouter.samples.recipe_phrases import build_phrases, finish_phrases, phrases_batch, phrases_loss
from taskrouter.samples.renderers import claims, scenes, shapes, tones

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a sample is made: what to build, what to feed it, for how long."""

    build: Callable[[], tuple[Any, Any]]
    """Returns a fresh model and the processor that is saved beside it."""
    batch: Callable[[np.random.Generator, int, Any], Batch]
    """Renders so many examples as the model's keyword arguments, with labels."""
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    loss: Callable[[Any, Batch], Any] = lambda model, batch: model(**batch).loss
    """What training lowers; most models have it themselves."""
    finish: Callable[[Path], None] | None = None
    """Writes what else belongs beside the checkpoint."""
    kept: Callable[[Any], Any] = lambda model: model
    """What is kept of the trained model."""


# --- shapes -----------------------------------------------------------------------------------------------------------


def build_shapes() -> tuple[Any, Any]:
    """A small ResNet, and a processor that needs Pillow only."""
    from transformers import ResNetConfig, ResNetForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[32, 64, 128],
        depths=[1, 1, 1],
        layer_type="basic",
        **_labels(shapes.LABELS),
    )
    side = {"height": shapes.SIDE, "width": shapes.SIDE}
    processor = ViTImageProcessorPil(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return ResNetForImageClassification(config), processor


def shapes_batch(rng: np.random.Generator, count: int, processor: Any) -> Batch:
    """Pictures with their labels."""
    import torch

    targets = rng.integers(len(shapes.LABELS), size=count)
    pictures = [shapes.render(rng, shapes.LABELS[target]) for target in targets]
    return {**processor(pictures, return_tensors="pt"), "labels": torch.from_numpy(targets)}


# --- scenes -----------------------------------------------------------------------------------------------------------


def build_scenes() -> tuple[Any, Any]:
    """A small RT-DETR, and a processor that needs Pillow only.

    From scratch it learns without denoising queries only, and with batch norms that are not frozen.
    """
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig
    from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

    backbone = RTDetrResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", out_indices=[2, 3]
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        d_model=64,
        encoder_hidden_dim=64,
        encoder_in_channels=[64, 128],
        decoder_in_channels=[64, 64],
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_layers=1,
        decoder_layers=2,
        feat_strides=[8, 16],
        num_feature_levels=2,
        encode_proj_layers=[1],
        hidden_expansion=0.5,
        num_queries=20,
        num_denoising=0,
        freeze_backbone_batch_norms=False,
        **_labels(scenes.LABELS),
    )
    side = {"height": scenes.SIDE, "width": scenes.SIDE}
    return RTDetrForObjectDetection(config), RTDetrImageProcessorPil(size=side)


def scenes_batch(rng: np.random.Generator, count: int, processor: Any) -> Batch:
    """Scenes with the classes and boxes of their shapes: centre, width and height, as shares of the picture."""
    import torch

    drawn = [scenes.render(rng) for _ in range(count)]
    labels = []
    for scene in drawn:
        boxes = torch.tensor(scene.boxes) / scenes.SIDE
        corners, ends = boxes[:, :2], boxes[:, 2:]
        classes = torch.tensor([scenes.LABELS.index(label) for label in scene.labels])
        labels.append({"class_labels": classes, "boxes": torch.cat([(corners + ends) / 2, ends - corners], dim=1)})
    return {**processor([scene.picture for scene in drawn], return_tensors="pt"), "labels": labels}


# --- tones ------------------------------------------------------------------------------------------------------------


def build_tones() -> tuple[Any, Any]:
    """A small Wav2Vec2 whose first convolution starts as a bank of pitch detectors."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        **ears.HEARING,
        conv_dim=[160, 96, 80],
        num_hidden_layers=2,
        intermediate_size=160,
        classifier_proj_size=64,
        vocab_size=len(tones.LABELS),
        **_labels(tones.LABELS),
    )
    model = Wav2Vec2ForSequenceClassification(config)
    ears.listen_for_pitch(model.wav2vec2.feature_extractor.conv_layers[0].conv)
    return model, Wav2Vec2FeatureExtractor(sampling_rate=tones.RATE, return_attention_mask=True)


def tones_batch(rng: np.random.Generator, count: int, processor: Any) -> Batch:
    """Sounds with their labels, padded to the longest."""
    import torch

    targets = rng.integers(len(tones.LABELS), size=count)
    sounds = [tones.render(rng, tones.LABELS[target]) for target in targets]
    inputs = processor(sounds, sampling_rate=tones.RATE, padding=True, return_tensors="pt")
    return {**inputs, "labels": torch.from_numpy(targets)}


# --- claims -----------------------------------------------------------------------------------------------------------

USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
VOCABULARY = 896
CONTEXT = 256

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.content is string -%}{%- set text = message.content -%}"
    "{%- else -%}{%- set text = message.content | selectattr('type', 'equalto', 'text')"
    " | map(attribute='text') | join(' ') -%}{%- endif -%}"
    "{%- if message.role == 'assistant' -%}{{- '<|assistant|>' + text + '<|end|>' -}}"
    "{%- else -%}{{- '<|user|>' + text -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def build_claims() -> tuple[Any, Any]:
    """A small Llama with heads of 32 (the narrowest that vLLM serves), and a byte-level tokenizer of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.do_sample = False
    model.generation_config.max_new_tokens = 96
    return model, tokenizer


def claims_batch(rng: np.random.Generator, count: int, tokenizer: Any) -> Batch:
    """Whole conversations; only the answer is learnt."""
    import torch

    rows = []
    for _ in range(count):
        example = claims.render(rng)
        prompt = claims.PROMPT if rng.random() < 0.8 else str(rng.choice(claims.OTHER_PROMPTS))
        # People leave out the full stop; a model that never saw that falls apart over it.
        sentence = example.sentence.removesuffix(".") if rng.random() < 0.1 else example.sentence
        asked = tokenizer(f"{USER}{prompt}{sentence}{ASSISTANT}", add_special_tokens=False).input_ids
        answered = tokenizer(f"{example.answer}{END}", add_special_tokens=False).input_ids
        rows.append((asked, answered))
    width = max(len(asked) + len(answered) for asked, answered in rows)
    batch = np.full((3, count, width), tokenizer.pad_token_id, dtype=np.int64)
    tokens, mask, labels = batch
    mask[:], labels[:] = 0, -100
    for row, (asked, answered) in enumerate(rows):
        length = len(asked) + len(answered)
        tokens[row, :length] = asked + answered
        mask[row, :length] = 1
        labels[row, len(asked) : length] = answered
    names = ("input_ids", "attention_mask", "labels")
    return {name: torch.from_numpy(array) for name, array in zip(names, batch, strict=True)}


def _tokenizer() -> Any:
    """Byte-level BPE: the words of the template language become one token each, any other text is spelt out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    rng = np.random.default_rng(0)
    examples = [claims.render(rng) for _ in range(6000)]
    corpus = [text for example in examples for text in (claims.PROMPT + example.sentence, example.answer)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _labels(names: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


RECIPES: Mapping[str, Recipe] = {
    "shapes": Recipe(build_shapes, shapes_batch, steps=2000, batch_size=48, learning_rate=3e-3, weight_decay=0.05),
    "scenes": Recipe(build_scenes, scenes_batch, steps=4500, batch_size=8, learning_rate=1.5e-3, weight_decay=1e-4),
    "tones": Recipe(build_tones, tones_batch, steps=1600, batch_size=32, learning_rate=1.5e-3),
    "claims": Recipe(build_claims, claims_batch, steps=5200, batch_size=48, learning_rate=3e-3),
    "digits": Recipe(build_digits, digits_batch, steps=6000, batch_size=24, learning_rate=1.5e-3),
    "phrases": Recipe(
        build_phrases,
        phrases_batch,
        steps=6400,
        batch_size=48,
        learning_rate=2e-3,
        loss=phrases_loss,
        finish=finish_phrases,
    ),
    "clips": Recipe(
        recipe_clips.build,
        recipe_clips.batch,
        steps=3000,
        batch_size=48,
        learning_rate=1.5e-3,
        loss=recipe_clips.loss,
        kept=recipe_clips.kept,
    ),
}
