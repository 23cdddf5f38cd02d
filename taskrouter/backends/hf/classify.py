"""``classify`` for images, audio and videos: an input becomes labels with probabilities, best first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from taskrouter.backends.hf.batching import Steps
from taskrouter.backends.hf.calling import only_known
from taskrouter.backends.hf.families import Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.backends.hf.watched import frames_of
from taskrouter.backends.hf.zero_shot import SCORED, by_words
from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import ClassifyRequest, Label

MOST_S = 60
"""Seconds of sound that are heard in one pass at most; some models cut what they hear by themselves."""


def classify(
    parts: Parts, family: Family, request: ClassifyRequest, limits: MediaLimits, stop: threading.Event
) -> Steps:
    """Classify one input: wants a pass of the module, returns labels. Blocks between. Raises ``BadInput``."""
    if not isinstance(request.top_k, int) or isinstance(request.top_k, bool) or request.top_k < 1:
        raise BadInput(f"top_k wants a whole number of at least 1, not {request.top_k!r}.")
    if family in SCORED:
        return by_words(parts, family, request, limits, stop)
    module = parts.module
    known = only_known(request.labels, module)
    outputs = yield dict(_PREPARED[family](parts, request, limits))
    scores = outputs.logits[0].float()
    several = getattr(module.config, "problem_type", None) == "multi_label_classification"
    chances = scores.sigmoid() if several else scores.softmax(-1)
    best = chances.sort(descending=True)
    names = module.config.id2label
    labels = (
        Label(str(names[index]), chance)
        for chance, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        if str(names[index]) in known
    )
    return tuple(islice(labels, request.top_k))


def _image(parts: Parts, request: ClassifyRequest, limits: MediaLimits) -> Any:
    from taskrouter.media.image import load_image

    return parts.processor(images=load_image(request.input, limits), return_tensors="pt")


def _audio(parts: Parts, request: ClassifyRequest, limits: MediaLimits) -> Any:
    from taskrouter.media.audio import load_audio

    rate = int(parts.processor.sampling_rate)
    samples = load_audio(request.input, limits, sampling_rate=rate, source_rate=request.sampling_rate)
    inputs = parts.processor(samples, sampling_rate=rate, return_tensors="pt")
    heard = inputs.get("input_values")
    if heard is not None and heard.ndim == 2 and heard.shape[1] > MOST_S * rate:
        raise MediaTooLarge(
            f"the sound lasts {samples.size / rate:.0f} s, and this model would hear all of it at once: give "
            f"{MOST_S} s at most."
        )
    return inputs


def _video(parts: Parts, request: ClassifyRequest, limits: MediaLimits) -> Any:
    """As many frames as the model was trained on."""
    return parts.processor(frames_of(request.input, int(parts.module.config.num_frames), limits), return_tensors="pt")


_PREPARED: Mapping[Family, Callable[[Parts, ClassifyRequest, MediaLimits], Any]] = {
    Family.IMAGE: _image,
    Family.AUDIO: _audio,
    Family.VIDEO: _video,
}
