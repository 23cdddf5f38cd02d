"""Images to whatever words the caller gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput
from taskrouter.types import CPU
from taskrouter.verbs import ClassifyRequest

from .checkpoints import CHARGES, request
from .families import ZERO_SHOT_CLASSIFIERS
from .test_transformers_classify import picture

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ZERO_SHOT_CLASSIFIERS)
async def test_a_picture_is_named_by_the_callers_words(backend: TransformersBackend, tmp_path: Path, name: str) -> None:
    ZERO_SHOT_CLASSIFIERS[name](tmp_path / name)
    model = await backend.load(request(tmp_path / name), (CPU,), CHARGES)
    words = ("cat", "dog", "star")
    answer = await model.call("classify", ClassifyRequest(picture(), labels=words))
    assert {label.label for label in answer} == set(words)
    scores = [label.score for label in answer]
    assert scores == sorted(scores, reverse=True)
    if name == "clip":
        assert sum(scores) == pytest.approx(1)
    assert await model.call("classify", ClassifyRequest(picture(), top_k=1, labels=words)) == answer[:1]
    with pytest.raises(BadInput, match="no labels of its own"):
        await model.call("classify", ClassifyRequest(picture()))
    assert await backend.unload(model, timeout_s=5) == {}


async def test_who_has_labels_of_its_own_chooses_among_them_only(
    backend: TransformersBackend, image_folder: Path
) -> None:
    model = await backend.load(request(image_folder), (CPU,), CHARGES)
    every = await model.call("classify", ClassifyRequest(picture()))
    some = await model.call("classify", ClassifyRequest(picture(), top_k=1, labels=("star", "circle")))
    assert some == tuple(label for label in every if label.label != "square")[:1]
    with pytest.raises(BadInput, match="names 'dog', which this model can't tell: it knows circle, square, star"):
        await model.call("classify", ClassifyRequest(picture(), labels=("dog",)))
    await backend.unload(model, timeout_s=5)
