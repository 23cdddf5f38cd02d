"""``classify`` by models that have no labels of their own: pictures (CLIP, SigLIP), sounds (CLAP) and videos (X-CLIP).

Of pictures and sounds by Transformers' own pipelines, which know how each family was trained to be asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskrouter.backends.hf.calling import on_device, place, some
from taskrouter.backends.hf.families import Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.backends.hf.watched import frames_of
from taskrouter.errors import MediaTooLarge
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import ClassifyRequest, Label

Scored = Sequence[tuple[str, float]]
"""Each label with its chance, 0 to 1, best first."""


def by_words(
    parts: Parts, family: Family, request: ClassifyRequest, limits: MediaLimits, stop: threading.Event
) -> tuple[Label, ...]:
    """Labels by what their words mean. Blocks. Raises ``BadInput``; returns nothing of use once ``stop`` is set."""
    labels = some(request.labels, parts)
    scored = SCORED[family](parts, labels, request, limits, stop)
    return tuple(Label(label, score) for label, score in scored[: request.top_k])


def _pictures(
    parts: Parts, labels: list[str], request: ClassifyRequest, limits: MediaLimits, stop: threading.Event
) -> Scored:
    from transformers import ZeroShotImageClassificationPipeline

    from taskrouter.media.image import load_image

    image = load_image(request.input, limits)
    if stop.is_set():
        return ()
    look = ZeroShotImageClassificationPipeline(
        model=parts.module,
        tokenizer=parts.processor.tokenizer,
        image_processor=parts.processor.image_processor,
        **place(parts.module),
    )
    return _scored(look(image, candidate_labels=labels))


def _sounds(
    parts: Parts, labels: list[str], request: ClassifyRequest, limits: MediaLimits, stop: threading.Event
) -> Scored:
    from transformers import ZeroShotAudioClassificationPipeline

    from taskrouter.media.audio import load_audio

    extractor = parts.processor.feature_extractor
    rate, most_s = int(extractor.sampling_rate), int(extractor.max_length_s)
    samples = load_audio(request.input, limits, sampling_rate=rate, source_rate=request.sampling_rate)
    if samples.size > most_s * rate:  # of a longer one it would hear some part, drawn by lot
        raise MediaTooLarge(
            f"the sound lasts {samples.size / rate:.1f} s, and this model hears {most_s} s at once: give a part of it."
        )
    if stop.is_set():
        return ()
    listen = ZeroShotAudioClassificationPipeline(
        model=parts.module, tokenizer=parts.processor.tokenizer, feature_extractor=extractor, **place(parts.module)
    )
    return _scored(listen(samples, candidate_labels=labels))


def _videos(
    parts: Parts, labels: list[str], request: ClassifyRequest, limits: MediaLimits, stop: threading.Event
) -> Scored:
    import torch

    count = int(parts.module.config.vision_config.num_frames)
    shown = parts.processor.image_processor(frames_of(request.input, count, limits), return_tensors="pt")
    if stop.is_set():
        return ()
    read = parts.processor.tokenizer(labels, padding=True, return_tensors="pt")
    with torch.inference_mode():
        outputs = parts.module(**on_device({**read, **shown}, parts))
        best = outputs.logits_per_video[0].float().softmax(-1).sort(descending=True)
    return [(labels[index], chance) for chance, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def _scored(found: Any) -> Scored:
    return [(str(each["label"]), float(each["score"])) for each in found]


SCORED: Mapping[Family, Callable[[Parts, list[str], ClassifyRequest, MediaLimits, threading.Event], Scored]] = {
    Family.ZERO_SHOT_IMAGE: _pictures,
    Family.ZERO_SHOT_AUDIO: _sounds,
    Family.ZERO_SHOT_VIDEO: _videos,
}
"""The families that are asked by words."""
