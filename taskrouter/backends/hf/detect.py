"""``detect``: an image becomes objects with boxes in its own pixels, surest first."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Generator
from typing import Any

from taskrouter.backends.hf.batching import Steps
from taskrouter.backends.hf.calling import Size, only_known, some
from taskrouter.backends.hf.families import Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.errors import BadInput
from taskrouter.media.image import load_image
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import Box, Detection, DetectRequest

Found = tuple[list[float], list[str], list[list[float]]]
"""Scores, names, and boxes in pixels: left, top, right, bottom."""

Look = Callable[[Any], Generator[Any, Any, tuple[Detection, ...]]]
"""Finds objects in a picture: wants a pass of the module for it."""


def detect(parts: Parts, family: Family, request: DetectRequest, limits: MediaLimits, stop: threading.Event) -> Steps:
    """Find objects in one image: wants a pass of the module, returns detections. Raises ``BadInput``."""
    look = looking_for(parts, family, request.labels, request.threshold)
    return (yield from look(load_image(request.image, limits)))


def looking_for(parts: Parts, family: Family, labels: tuple[str, ...], threshold: float) -> Look:
    """What finds these objects in a picture. Raises ``BadInput`` for labels the model can't look for."""
    wanted = some(labels, parts) if family is Family.ZERO_SHOT_DETECTION else None
    known = only_known(labels, parts.module) if wanted is None else frozenset(labels)

    def look(image: Any) -> Generator[Any, Any, tuple[Detection, ...]]:
        size, inputs = Size(*image.size), _prepared(parts, image, wanted)
        del image  # others may wait with as large a one
        return _detections((yield from _found(parts, inputs, size, wanted, threshold)), size, known)

    return look


def _detections(found: Found, size: Size, known: frozenset[str]) -> tuple[Detection, ...]:
    scores, names, boxes = found
    width, height = map(float, size)
    detections = [
        Detection(name, score, _within(box, width, height))
        for score, name, box in zip(scores, names, boxes, strict=True)
        if name in known
    ]
    return tuple(sorted(detections, key=lambda each: -each.score))


def _finish(parts: Parts, wanted: list[str] | None) -> tuple[Any, bool]:
    """What reads the outputs, and whether they point at the words of a caption."""
    processor = parts.processor
    finish = (
        processor.post_process_object_detection if wanted is None else processor.post_process_grounded_object_detection
    )
    return finish, "input_ids" in inspect.signature(finish).parameters


def _prepared(parts: Parts, image: Any, wanted: list[str] | None) -> dict[str, Any]:
    _, by_phrases = _finish(parts, wanted)
    if wanted is not None and by_phrases and any("." in label for label in wanted):
        raise BadInput(f"labels {wanted!r} go into one caption, parted by full stops: write each without one.")
    inputs = parts.processor(images=image, return_tensors="pt", **({} if wanted is None else {"text": [wanted]}))
    if by_phrases and inputs["input_ids"].shape[1] > parts.module.config.max_text_len:
        raise BadInput(
            f"the {len(wanted or ())} labels come to {inputs['input_ids'].shape[1]} tokens, and the model reads "
            f"{parts.module.config.max_text_len}: look for fewer at a time."
        )
    return dict(inputs)


def _found(
    parts: Parts, inputs: dict[str, Any], size: Size, wanted: list[str] | None, threshold: float
) -> Generator[Any, Any, Found]:
    finish, by_phrases = _finish(parts, wanted)
    outputs = yield inputs
    for name in ("logits", "pred_boxes"):
        outputs[name] = outputs[name].float()  # Half a precision is coarser than a pixel.
    told = {"threshold": threshold, "target_sizes": [(size.height, size.width)]}
    if wanted is None:
        found = finish(outputs, **told)[0]
        own = parts.module.config.id2label
        names = [str(own[index]) for index in found["labels"].tolist()]
    elif by_phrases:
        ids = inputs["input_ids"][0].tolist()
        return _by_phrases(outputs, ids, parts.processor.tokenizer, wanted, threshold, size)
    else:
        found = finish(outputs, **told, text_labels=[wanted])[0]
        names = [str(name) for name in found["text_labels"]]
    return found["scores"].tolist(), names, found["boxes"].tolist()


def _by_phrases(outputs: Any, ids: list[int], tokenizer: Any, wanted: list[str], threshold: float, size: Size) -> Found:
    """Of a model that points at the words of a caption: the label whose words a box fits best.

    Transformers' own reading of it answers with whichever words were pointed at, which may be half a label or two.
    """
    import torch

    full_stop = tokenizer.convert_tokens_to_ids(".")
    spans: list[list[int]] = [[]]
    for place, token in enumerate(ids):
        if token == full_stop:
            spans.append([])
        elif token not in tokenizer.all_special_ids or token == tokenizer.unk_token_id:
            spans[-1].append(place)
    spans = [span for span in spans if span]
    if len(spans) != len(wanted):
        raise BadInput(f"labels {wanted!r} can't be told apart in a caption: write each as plain words.")
    chances = outputs.logits[0].float().sigmoid()
    scores, best = torch.stack([chances[:, span].amax(-1) for span in spans], dim=-1).max(-1)
    middle, extent = outputs.pred_boxes[0].float().split(2, dim=-1)
    corners = torch.cat([middle - extent / 2, middle + extent / 2], dim=-1)
    boxes = corners * torch.tensor([*size] * 2, device=corners.device)
    keep = scores >= threshold
    return scores[keep].tolist(), [wanted[index] for index in best[keep].tolist()], boxes[keep].tolist()


def _within(box: list[float], width: float, height: float) -> Box:
    left, top, right, bottom = box
    return Box(
        min(max(left, 0.0), width), min(max(top, 0.0), height),
        min(max(right, 0.0), width), min(max(bottom, 0.0), height),
    )  # fmt: skip
