"""Images to objects: boxes in the picture's own pixels, by labels of the model's or of the caller's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, UnsupportedVerb
from taskrouter.types import CPU
from taskrouter.verbs import ClassifyRequest, Detection, DetectRequest

from .checkpoints import CHARGES, request
from .families import DETECTORS, ZERO_SHOT_DETECTORS
from .gone import passes_for_nobody

pytestmark = pytest.mark.anyio
WIDE, HIGH = 120, 80


def picture() -> Any:
    import numpy as np
    import PIL.Image

    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (HIGH, WIDE, 3), dtype=np.uint8))


async def found(backend: TransformersBackend, folder: Path, *asked: DetectRequest) -> list[tuple[Detection, ...]]:
    model = await backend.load(request(folder), (CPU,), CHARGES)
    try:
        return [await model.call("detect", each) for each in asked]
    finally:
        assert await backend.unload(model, timeout_s=5) == {}


def sound(detections: tuple[Detection, ...]) -> bool:
    """Surest first, and nowhere outside of the picture."""
    scores = [each.score for each in detections]
    inside = all(
        0 <= box.left <= box.right <= WIDE and 0 <= box.top <= box.bottom <= HIGH
        for box in (each.box for each in detections)
    )
    return scores == sorted(scores, reverse=True) and inside


@pytest.mark.parametrize("name", DETECTORS)
async def test_objects_are_those_of_transformers_own_pipeline(
    backend: TransformersBackend, tmp_path: Path, name: str
) -> None:
    import transformers

    DETECTORS[name](tmp_path / name)
    everything, sure = await found(
        backend, tmp_path / name, DetectRequest(picture(), threshold=0.0), DetectRequest(picture(), threshold=0.99)
    )
    assert everything
    assert sound(everything)
    assert sure == tuple(each for each in everything if each.score >= 0.99)
    theirs = transformers.pipeline("object-detection", model=str(tmp_path / name))(picture(), threshold=0.0)
    for mine, other in zip(everything, sorted(theirs, key=lambda each: -each["score"]), strict=True):
        assert mine.label == other["label"]
        assert mine.score == pytest.approx(other["score"], abs=1e-4)
        box = other["box"]  # cut to whole pixels there, and not to the picture
        assert mine.box.left == pytest.approx(max(0, box["xmin"]), abs=1.01)
        assert mine.box.bottom == pytest.approx(min(HIGH, box["ymax"]), abs=1.01)


async def test_labels_choose_among_those_the_model_knows(backend: TransformersBackend, tmp_path: Path) -> None:
    DETECTORS["yolos"](tmp_path / "yolos")
    everything, stars = await found(
        backend, tmp_path / "yolos",
        DetectRequest(picture(), threshold=0.0), DetectRequest(picture(), ("square", "star"), 0.0),
    )  # fmt: skip
    assert stars == tuple(each for each in everything if each.label in ("square", "star"))
    with pytest.raises(BadInput, match="names 'moon', which this model can't tell: it knows circle, square, star"):
        await found(backend, tmp_path / "yolos", DetectRequest(picture(), ("star", "moon")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ZERO_SHOT_DETECTORS)
async def test_any_words_are_looked_for_where_the_model_takes_them(
    backend: TransformersBackend, tmp_path: Path, name: str
) -> None:
    ZERO_SHOT_DETECTORS[name](tmp_path / name)
    both, one = await found(
        backend, tmp_path / name,
        DetectRequest(picture(), ("cat", "dog"), 0.0), DetectRequest(picture(), ("star",), 0.0),
    )  # fmt: skip
    assert {each.label for each in both} <= {"cat", "dog"}
    assert {each.label for each in one} == {"star"}
    assert sound(both)
    assert sound(one)
    with pytest.raises(BadInput, match="no labels of its own: say what to look for"):
        await found(backend, tmp_path / name, DetectRequest(picture()))


@pytest.mark.slow
async def test_of_a_caption_each_label_is_told_apart(backend: TransformersBackend, tmp_path: Path) -> None:
    import torch

    from taskrouter.backends.hf.calling import Size
    from taskrouter.backends.hf.detect import _by_phrases

    ZERO_SHOT_DETECTORS["grounding_dino"](tmp_path / "dino")
    with pytest.raises(BadInput, match="parted by full stops: write each without one"):
        await found(backend, tmp_path / "dino", DetectRequest(picture(), ("a cat. a dog",)))

    class Words:
        all_special_ids, unk_token_id = [101, 102], 100

        def convert_tokens_to_ids(self, _: str) -> int:
            return 1012

    class Outputs:
        # The first box fits the second word of the first label best, the second the only word of the other.
        logits = torch.tensor([[[-9, 0, 2, -9, 1, -9, -9], [9, 0, 1, 9, 3, 9, 9]]], dtype=torch.float32)
        pred_boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.5, 1.0]]])

    ids = [101, 7, 100, 1012, 8, 1012, 102]
    with pytest.raises(BadInput, match="can't be told apart in a caption"):
        _by_phrases(Outputs, ids, Words(), ["big cat", "dog", "…"], 0.5, Size(*picture().size))
    scores, names, boxes = _by_phrases(Outputs, ids, Words(), ["big cat", "dog"], 0.5, Size(*picture().size))
    assert names == ["big cat", "dog"]
    assert scores == pytest.approx([torch.sigmoid(torch.tensor(each)).item() for each in (2.0, 3.0)])
    assert boxes == [[30.0, 20.0, 90.0, 60.0], [0.0, 0.0, 60.0, 80.0]]


@pytest.mark.slow
async def test_more_labels_than_the_model_reads_are_refused(backend: TransformersBackend, tmp_path: Path) -> None:
    for name, said in (("grounding_dino", "come to 82 tokens, and the model reads 32"), ("owlv2", "reads 16")):
        ZERO_SHOT_DETECTORS[name](tmp_path / name)
        many = tuple(f"w{place}" for place in range(40)) if name == "grounding_dino" else ("star " * 20,)
        with pytest.raises(BadInput, match=said):
            await found(backend, tmp_path / name, DetectRequest(picture(), many))
    with pytest.raises(BadInput, match="labels has 1,001 names: give 1000 at most"):
        await found(backend, tmp_path / "owlv2", DetectRequest(picture(), tuple(map(str, range(1001)))))


@pytest.mark.slow
async def test_what_is_no_picture_is_refused_and_nothing_is_computed_for_who_is_gone(
    backend: TransformersBackend, tmp_path: Path
) -> None:

    DETECTORS["rt_detr"](tmp_path / "rt")
    with pytest.raises(BadInput, match="isn't there"):
        await found(backend, tmp_path / "rt", DetectRequest(str(tmp_path / "nothing.png")))
    model = await backend.load(request(tmp_path / "rt"), (CPU,), CHARGES)
    with pytest.raises(UnsupportedVerb, match="can't classify: it can detect"):
        await model.call("classify", ClassifyRequest(picture()))
    assert passes_for_nobody(model, "detect", DetectRequest(picture())) == 0
    await backend.unload(model, timeout_s=5)
