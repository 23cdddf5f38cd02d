"""Average precision, the measure of a detector: how many of its boxes are right while more and more are found.

Boxes go from the surest on; one is right if it overlaps an object of its class that no surer one took, by at least the
threshold (intersection over union). The area under precision by recall, precision made to fall only, is averaged over
the classes, as PASCAL VOC has it since 2010 (Everingham et al., IJCV 2015).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from taskrouter.samples.renderers.scenes import LABELS, Box, Scene, iou, render

Found = tuple[str, float, Box]
"""What, how surely, and where."""

_BATCH = 25


def average_precision(scenes: Sequence[Scene], found: Sequence[Sequence[Found]], threshold: float) -> float:
    """The mean over the labels that occur, 0 to 1."""
    there = sorted({label for scene in scenes for label in scene.labels})
    return float(np.mean([_of_label(label, scenes, found, threshold) for label in there]))


def _of_label(label: str, scenes: Sequence[Scene], found: Sequence[Sequence[Found]], threshold: float) -> float:
    guesses = [(-score, place, box) for place, boxes in enumerate(found) for name, score, box in boxes if name == label]
    taken: set[tuple[int, int]] = set()
    right = []
    for _, place, box in sorted(guesses):
        truth = [
            (iou(box, own), number)
            for number, (name, own) in enumerate(zip(scenes[place].labels, scenes[place].boxes, strict=True))
            if name == label and (place, number) not in taken
        ]
        overlap, number = max(truth, default=(0.0, -1))
        right.append(overlap >= threshold)
        if overlap >= threshold:
            taken.add((place, number))
    if not right:
        return 0.0
    hits = np.cumsum(right)
    recall = hits / sum(scene.labels.count(label) for scene in scenes)
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def look(count: int, folder: Path, *, seed: int) -> tuple[list[Scene], list[list[Found]]]:
    """Held-out scenes, and what the checkpoint sees in each, however unsure."""
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    scenes = [render(rng) for _ in range(count)]
    with torch.inference_mode():
        return scenes, list(_seen(scenes, folder))


def _seen(scenes: Sequence[Scene], folder: Path) -> Iterator[list[Found]]:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    for start in range(0, len(scenes), _BATCH):
        pictures = [scene.picture for scene in scenes[start : start + _BATCH]]
        outputs = model(**processor(pictures, return_tensors="pt"))
        sizes = [(picture.height, picture.width) for picture in pictures]
        for each in processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes):
            columns = (each["labels"].tolist(), each["scores"].tolist(), each["boxes"].tolist())
            yield [(LABELS[label], score, tuple(box)) for label, score, box in zip(*columns, strict=True)]
