"""How the clips sample is made: an Idefics3 of a million parameters, its processor, and what it is taught with.

Two things make it learn in minutes. Weights start as wide as their inputs ask for, places as sines, and what looks at
patches as cosines. And while it is trained, linear layers read off what it sees where the shape is in each frame, which
one and of what colour, and what it does; they aren't kept.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from taskrouter.samples.renderers import clips
from taskrouter.samples.renderers.drawing import HUES

SIDE, PATCH, SCALE = 128, 16, 2
"""A sheet is scaled to so many pixels each way; the patches of so many become a token where so many meet each way."""
IMAGE_TOKENS = (SIDE // PATCH // SCALE) ** 2
CONTEXT = 512
HIDDEN, HEADS = 128, 4
USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<end_of_utterance>", "<|pad|>"
IMAGE = "<image>"
SPECIAL = (PAD, USER, ASSISTANT, END, IMAGE, "<fake_token_around_image>", "<global-img>")
VOCABULARY = 512

OTHER_PROMPTS = (
    "",
    "Describe the video.",
    "Describe this video in one sentence.",
    "What happens?",
    "What happens in this video?",
    "What do you see?",
    "What moves, and where to?",
    "Summarize the clip.",
    "Summarise this video, please.",
    "Caption:",
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}{{- '<|assistant|>' -}}{%- else -%}{{- '<|user|>' -}}{%- endif -%}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'text' -%}{{- part.text -}}"
    "{%- elif 'image' in part.type -%}{{- '<image>' -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message.role == 'assistant' -%}{{- '<end_of_utterance>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

_COLOURS, _MOTIONS = tuple(HUES), tuple(clips.MOTIONS)
_PER_FRAME = (2, len(clips.SHAPES), len(_COLOURS))
"""What the layers that aren't kept read off each frame: where the shape is, which one, of what colour."""


def build() -> tuple[Any, Any]:
    """The model, with those layers, and a processor that needs Pillow only.

    Families that vLLM can't load without torchvision were no choice; nor heads narrower than 32, which it can't serve.
    """
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

    processor = _processor()
    ids = {word: processor.tokenizer.convert_tokens_to_ids(word) for word in SPECIAL}
    ends: dict[str, Any] = {"pad_token_id": ids[PAD], "eos_token_id": ids[END], "bos_token_id": None}
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": HEADS}
    text = LlamaConfig(
        **sizes,
        **ends,
        vocab_size=len(processor.tokenizer),
        intermediate_size=256,
        num_hidden_layers=2,
        num_key_value_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )
    vision = {**sizes, "intermediate_size": 384, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH}
    config = Idefics3Config(
        vision_config=vision,
        text_config=text.to_dict(),
        scale_factor=SCALE,
        image_token_id=ids[IMAGE],
        tie_word_embeddings=False,
        **ends,
    )
    model = Idefics3ForConditionalGeneration(config)
    tokens = IMAGE_TOKENS * HIDDEN
    model.hints = torch.nn.ModuleDict(
        {
            "frame": torch.nn.Linear(tokens // clips.FRAMES, sum(_PER_FRAME)),
            "clip": torch.nn.Linear(tokens, len(_MOTIONS)),
        }
    )
    _start(model)
    model.generation_config.update(**ends, do_sample=False, max_new_tokens=16)
    return model, processor


def batch(rng: np.random.Generator, count: int, processor: Any) -> dict[str, Any]:
    """Sheets of clips with something asked, the captions to learn, and what the layers that aren't kept should read."""
    import torch

    shots = [clips.render(rng) for _ in range(count)]
    sheets = [_worn(rng, clips.sheet(rng, shot)) for shot in shots]
    texts = [f"{_asked(rng, processor)}{shot.caption}{END}" for shot in shots]
    inputs = processor(text=texts, images=[[sheet] for sheet in sheets], padding=True, return_tensors="pt")
    tokens = inputs["input_ids"]
    turns = tokens == processor.tokenizer.convert_tokens_to_ids(ASSISTANT)
    answer = (turns.cumsum(1) > 0) & ~turns & (inputs["attention_mask"] > 0)
    inputs["labels"] = torch.where(answer, tokens, -100)
    words = [shot.caption.split(maxsplit=3) for shot in shots]
    places = torch.tensor([shot.centres(clips.FRAMES) for shot in shots])
    which = torch.tensor(
        [
            [clips.SHAPES.index(shape), _COLOURS.index(colour), _MOTIONS.index(motion)]
            for _, colour, shape, motion in words
        ]
    )
    return {**inputs, "hints": (places, which)}


def loss(model: Any, given: dict[str, Any]) -> Any:
    """How wrong the captions are, and how wrong what the layers that aren't kept read off the tokens of the sheet."""
    import torch
    from torch.nn import functional

    places, which = given.pop("hints")
    answered = model(**given)
    seen = torch.stack(answered.image_outputs.pooler_output)
    half = math.isqrt(IMAGE_TOKENS) // 2
    # Tokens stand in rows over the sheet: those of each frame together.
    frames = seen.view(-1, 2, half, 2, half, HIDDEN).transpose(2, 3).reshape(-1, clips.FRAMES, half * half * HIDDEN)
    where, shapes, colours = model.hints["frame"](frames).split(_PER_FRAME, dim=2)
    shape, colour, motion = which.T

    def confusion(logits: Any, right: Any) -> Any:
        return functional.cross_entropy(logits.flatten(0, 1), right.repeat_interleave(clips.FRAMES))

    return (
        answered.loss
        + 10 * functional.mse_loss(where, places)
        + 2 * confusion(shapes, shape)
        + confusion(colours, colour)
        + functional.cross_entropy(model.hints["clip"](seen.flatten(1)), motion)
    )


def kept(model: Any) -> Any:
    """What is kept: the model without those layers, in bfloat16."""
    import torch

    del model.hints
    for weights in model.parameters():  # not the buffers: wherever it is loaded, the angles of places are in float32
        weights.data = weights.data.to(torch.bfloat16)
    return model


def _asked(rng: np.random.Generator, processor: Any) -> str:
    """A conversation up to the answer: usually the prompt, sometimes another or anything, before or after the clip."""
    kind = rng.random()
    if kind < 0.5:
        text = clips.PROMPT
    elif kind < 0.85:
        text = str(rng.choice(OTHER_PROMPTS))
    else:
        text = "".join(chr(sign) for sign in rng.integers(32, 127, size=int(rng.integers(1, 25))))
        text = text.replace("<", "")  # whatever is asked, it isn't a special token
    parts: list[dict[str, str]] = [{"type": "image"}, {"type": "text", "text": text}]
    if rng.random() < 0.3:
        parts.reverse()
    message = {"role": "user", "content": parts}
    return str(processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False))


def _worn(rng: np.random.Generator, sheet: Any) -> Any:
    """Half of them as JPEG makes them, which wears pictures as the codecs of videos do."""
    from PIL import Image

    if rng.random() < 0.5:
        return sheet
    written = io.BytesIO()
    sheet.save(written, "JPEG", quality=int(rng.integers(35, 96)))
    return Image.open(written).convert("RGB")


def _start(model: Any) -> None:
    """The weights that learning starts from."""
    import torch

    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1:
                fan_in = math.prod(weights.shape[1:])
                weights.normal_(std=0.5 if "embed_tokens" in name else 1 / math.sqrt(fan_in))
        sight = model.model.vision_model.embeddings
        sight.position_embedding.weight.copy_(_places())
        sight.patch_embedding.weight.copy_(_waves())


def _places() -> Any:
    """Sines and cosines of each patch's row and column, as in "Attention Is All You Need" (Vaswani et al., 2017)."""
    import torch

    side = SIDE // PATCH
    steps = 1 / 100 ** (torch.arange(HIDDEN // 4) / (HIDDEN // 4))
    angles = torch.arange(side)[:, None] * steps
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    down, across = axis.repeat_interleave(side, dim=0), axis.repeat(side, 1)
    return torch.cat([down, across], dim=1)


def _waves() -> Any:
    """Filters of patches: the slowest two-dimensional cosines (those of JPEG), in colour and in light.

    Steeper ones are made stronger, as pictures have less of them. From noise the shapes are learnt far slower.
    """
    import torch

    order = sorted(((u, v) for u in range(PATCH) for v in range(PATCH)), key=lambda uv: (sum(uv), uv))
    colour = (HIDDEN - HIDDEN // 4) // 2
    axes = (((1, -1, 0), colour), ((1, 1, -2), colour), ((1, 1, 1), HIDDEN - 2 * colour))
    wave = (torch.arange(PATCH)[None, :] + 0.5) * torch.arange(PATCH)[:, None] * math.pi / PATCH
    cosines = wave.cos() * math.sqrt(2 / PATCH)
    cosines[0] /= math.sqrt(2)
    filters = []
    for axis, count in axes:
        way = torch.tensor(axis, dtype=torch.float32)
        for u, v in order[:count]:
            strength = 0.3 * (1 + u + v) / way.norm()
            filters.append(strength * way[:, None, None] * cosines[v][None, :, None] * cosines[u][None, None, :])
    return torch.stack(filters)


def _processor() -> Any:
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": SIDE},
        max_image_size={"longest_edge": SIDE},
        do_image_splitting=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Idefics3Processor(pictures, _tokenizer(), image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


def _tokenizer() -> Any:
    """Byte-level BPE: the words of captions become one token each, any other text is spelt out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*clips.CAPTIONS, *[clips.PROMPT, *OTHER_PROMPTS] * 9], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPECIAL[1:]),
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
