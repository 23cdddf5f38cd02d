"""``classify`` for images and for audio: an input becomes labels with probabilities, best first."""

from __future__ import annotations

import threading
from typing import Any

from taskrouter.backends.hf.examine import Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.errors import BadInput
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import ClassifyRequest, Label


def classify(
    parts: Parts, family: Family, request: ClassifyRequest, limits: MediaLimits, stop: threading.Event
) -> tuple[Label, ...]:
    """Classify one input. Blocks. Raises ``BadInput``; returns nothing of use once ``stop`` is set."""
    import torch

    if not isinstance(request.top_k, int) or isinstance(request.top_k, bool) or request.top_k < 1:
        raise BadInput(f"top_k wants a whole number of at least 1, not {request.top_k!r}.")
    prepare = _image if family is Family.IMAGE else _audio
    inputs = prepare(parts, request, limits)
    if stop.is_set():
        return ()
    module = parts.module
    inputs = {name: _to(tensor, parts.device, module.dtype) for name, tensor in inputs.items()}
    with torch.inference_mode():
        scores = module(**inputs).logits[0].float()
        several = getattr(module.config, "problem_type", None) == "multi_label_classification"
        chances = scores.sigmoid() if several else scores.softmax(-1)
        best = chances.topk(min(request.top_k, chances.numel()))
    names = module.config.id2label
    return tuple(
        Label(str(names[index]), chance)
        for chance, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )


def _image(parts: Parts, request: ClassifyRequest, limits: MediaLimits) -> Any:
    from taskrouter.media.image import load_image

    return parts.processor(images=load_image(request.input, limits), return_tensors="pt")


def _audio(parts: Parts, request: ClassifyRequest, limits: MediaLimits) -> Any:
    from taskrouter.media.audio import load_audio

    rate = int(parts.processor.sampling_rate)
    samples = load_audio(request.input, limits, sampling_rate=rate, source_rate=request.sampling_rate)
    return parts.processor(samples, sampling_rate=rate, return_tensors="pt")


def _to(tensor: Any, device: str, dtype: Any) -> Any:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
