"""``segment``: an image becomes regions, by labels the model knows or by what it is pointed at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

from taskrouter.backends.hf.batching import Steps
from taskrouter.backends.hf.calling import Size, only_known
from taskrouter.backends.hf.families import Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.backends.hf.pointed import pointed_at
from taskrouter.backends.hf.regions import check_masks, region
from taskrouter.errors import BadInput, UnsupportedInput
from taskrouter.media.image import load_image
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import Region, SegmentRequest

FINEST = 1 << 20
"""Pixels that labels are told apart in at most: of a larger picture, regions are enlarged from so many.

Transformers holds a whole picture of floats for each label or object at once.
"""
_SURE = 0.5

Cut = Callable[[Any], Generator[Any, Any, tuple[Region, ...]]]
"""Finds regions in a picture: wants a pass of the module for it."""


def segment(parts: Parts, family: Family, request: SegmentRequest, limits: MediaLimits, stop: threading.Event) -> Steps:
    """Find regions in one image: wants a pass of a module with labels, returns regions. Raises ``BadInput``."""
    if family is Family.POINTED:
        return pointed_at(parts, request, limits, stop)
    if request.points or request.boxes:
        raise UnsupportedInput(
            "this model takes no points and no boxes: it finds what it has labels for. Ask without them, or a model "
            "that is pointed at things, such as SAM 2."
        )
    if request.threshold is not None and family is Family.CLASSES:
        raise BadInput("this model says of no region how sure it is: leave threshold out.")
    cut = cutting(parts, family, request.labels, request.threshold, limits)
    return (yield from cut(load_image(request.image, limits)))


def cutting(parts: Parts, family: Family, labels: tuple[str, ...], threshold: float | None, limits: MediaLimits) -> Cut:
    """What finds the regions of these labels in a picture. Raises ``BadInput`` for labels the model can't tell."""
    known = only_known(labels, parts.module)
    names = parts.module.config.id2label

    def cut(image: Any) -> Generator[Any, Any, tuple[Region, ...]]:
        size, steps = Size(*image.size), _found(parts, family, image, threshold)
        del image  # others may wait with as large a one
        places, found = yield from steps
        wanted = [(place, name, score) for place, label, score in found if (name := str(names[label])) in known]
        check_masks(len(wanted), size, limits)
        regions = [region(name, score, places == place) for place, name, score in wanted]
        if family is Family.SEGMENTS:
            regions.sort(key=lambda each: -(each.score or 0.0))
        else:
            regions.sort(key=lambda each: -int(each.mask.sum()))
        return tuple(regions)

    return cut


def _found(
    parts: Parts, family: Family, image: Any, threshold: float | None
) -> Generator[Any, Any, tuple[Any, list[tuple[int, int, float | None]]]]:
    """Which of the found each pixel belongs to, and what was found: its number there, its label's, its score."""
    import numpy as np
    import torch

    shrink = min(1.0, (FINEST / (image.width * image.height)) ** 0.5)
    size = (max(1, round(image.height * shrink)), max(1, round(image.width * shrink)))
    width, height = image.size
    inputs = dict(parts.processor(images=image, return_tensors="pt"))
    del image
    found: list[tuple[int, int, float | None]]
    outputs = yield inputs
    for name, values in outputs.items():
        if name in ("logits", "class_queries_logits", "masks_queries_logits"):
            outputs[name] = values.float()
    if family is Family.CLASSES:
        places = parts.processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
        found = [(label, label, None) for label in places.unique().tolist()]
    else:
        told = parts.processor.post_process_panoptic_segmentation(
            outputs, threshold=_SURE if threshold is None else threshold, label_ids_to_fuse=set(),
            target_sizes=[size],
        )[0]  # fmt: skip
        places = told["segmentation"]
        found = [(each["id"], each["label_id"], float(each["score"])) for each in told["segments_info"]]
    whole = places.to(torch.int32).cpu().numpy()
    if shrink < 1:
        rows = np.minimum(np.arange(height) * size[0] // height, size[0] - 1)
        columns = np.minimum(np.arange(width) * size[1] // width, size[1] - 1)
        whole = whole[rows[:, None], columns]
    return whole, found
