"""``embed`` by models that have texts and pictures in one space (CLIP, SigLIP): vectors of length 1.

The cosine of two vectors is their product, whatever each was made from.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from taskrouter.backends.hf.calling import on_device
from taskrouter.backends.hf.loading import Parts
from taskrouter.errors import ContextTooLong
from taskrouter.media.image import load_image
from taskrouter.media.limits import MediaLimits
from taskrouter.memory.estimate import ceiling
from taskrouter.verbs import Embeddings, EmbedRequest, Picture, Usage

MOST_TEXTS = 32
MOST_PICTURES = 8
"""What is read at once at most."""


def embed_in_one_space(parts: Parts, request: EmbedRequest, limits: MediaLimits, stop: threading.Event) -> Embeddings:
    """Vectors in the order of the inputs. Blocks. Raises ``ContextTooLong`` for a text that would have to be cut.

    Returns nothing of use once ``stop`` is set.
    """
    import torch

    texts = {place: each for place, each in enumerate(request.inputs) if isinstance(each, str)}
    pictures = {place: each for place, each in enumerate(request.inputs) if isinstance(each, Picture)}
    tokens = sum(_length(parts, place, text) for place, text in texts.items())
    vectors: dict[int, tuple[float, ...]] = {}
    with torch.inference_mode():
        for places in _batches(list(texts), MOST_TEXTS):
            if stop.is_set():
                return Embeddings(())
            read = _texts(parts, [texts[place] for place in places])
            vectors |= _vectors(places, parts.module.get_text_features(**on_device(read, parts)))
        for places in _batches(list(pictures), MOST_PICTURES):
            seen: list[Mapping[str, Any]] = []
            for place in places:
                if stop.is_set():
                    return Embeddings(())
                # One at a time: as the model sees them they are small.
                image = load_image(pictures[place].source, limits)
                seen.append(parts.processor.image_processor(images=image, return_tensors="pt"))
            looked = {name: torch.cat([each[name] for each in seen]) for name in seen[0]}
            vectors |= _vectors(places, parts.module.get_image_features(**on_device(looked, parts)))
    return Embeddings(tuple(vectors[place] for place in range(len(request.inputs))), Usage(tokens, 0))


def _length(parts: Parts, place: int, text: str) -> int:
    length = len(parts.processor.tokenizer(text)["input_ids"])
    longest = ceiling(parts.module.config.text_config.to_dict())
    if longest is not None and length > longest:
        raise ContextTooLong(
            f"input {place} comes to {length} tokens, and the model reads {longest}: cut it into pieces."
        )
    return length


def _texts(parts: Parts, texts: list[str]) -> Mapping[str, Any]:
    # SigLIP learned with texts that were all filled up to one length, and looks at the filling, too.
    filled = "siglip" in parts.module.config.model_type
    longest = parts.module.config.text_config.max_position_embeddings
    how = {"padding": "max_length", "max_length": longest} if filled else {"padding": True}
    read: Mapping[str, Any] = parts.processor.tokenizer(texts, return_tensors="pt", **how)
    return read


def _batches(places: list[int], most: int) -> Iterator[list[int]]:
    for start in range(0, len(places), most):
        yield places[start : start + most]


def _vectors(places: list[int], features: Any) -> dict[int, tuple[float, ...]]:
    from torch.nn.functional import normalize

    rows = normalize(getattr(features, "pooler_output", features).float(), dim=-1).tolist()
    return {place: tuple(row) for place, row in zip(places, rows, strict=True)}
