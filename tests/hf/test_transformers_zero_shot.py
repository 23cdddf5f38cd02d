"""Pictures, sounds and videos to whatever words the caller gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from taskrouter.backends.base import LoadedModel
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media.audio import load_audio
from taskrouter.media.video import load_video
from taskrouter.types import CPU
from taskrouter.verbs import ClassifyRequest
from tests.media.test_media_video import FILM

from .checkpoints import CHARGES, request
from .families import ZERO_SHOT_CLASSIFIERS, clap, xclip
from .test_transformers_classify import picture
from .test_transformers_transcribe import recording

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


async def test_a_sound_is_named_as_by_its_own_pipeline(backend: TransformersBackend, tmp_path: Path) -> None:
    import transformers

    clap(tmp_path / "clap")
    words, file = ("cat", "dog", "star"), recording(tmp_path / "a.wav", 2)
    pipeline = transformers.pipeline("zero-shot-audio-classification", model=str(tmp_path / "clap"), device="cpu")
    expected = pipeline(load_audio(file, sampling_rate=48_000), candidate_labels=list(words))
    model = await backend.load(request(tmp_path / "clap"), (CPU,), CHARGES)
    answer = await model.call("classify", ClassifyRequest(file, labels=words))
    assert [label.label for label in answer] == [each["label"] for each in expected]
    assert [label.score for label in answer] == pytest.approx([each["score"] for each in expected], abs=1e-5)
    assert await model.call("classify", ClassifyRequest(file, top_k=1, labels=words)) == answer[:1]
    await _refuses_no_labels(model, file)
    assert await backend.unload(model, timeout_s=5) == {}


async def test_of_a_sound_longer_than_it_hears_no_part_is_drawn_by_lot(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    clap(tmp_path / "clap")
    model = await backend.load(request(tmp_path / "clap"), (CPU,), CHARGES)
    for length_s, refused in ((10, False), (10.5, True)):
        asked = ClassifyRequest(np.zeros(int(length_s * 16_000), np.float32), labels=("cat",), sampling_rate=16_000)
        if refused:
            with pytest.raises(MediaTooLarge, match=r"lasts 10\.5 s, and this model hears 10 s at once"):
                await model.call("classify", asked)
        else:
            assert [label.score for label in await model.call("classify", asked)] == [pytest.approx(1)]
    assert await backend.unload(model, timeout_s=5) == {}


async def test_a_video_is_named_by_the_callers_words(backend: TransformersBackend, tmp_path: Path) -> None:
    import torch
    import transformers

    xclip(tmp_path / "xclip")
    words = ("dog", "photo", "star")
    model = await backend.load(request(tmp_path / "xclip"), (CPU,), CHARGES)
    answer = await model.call("classify", ClassifyRequest(FILM, labels=words))

    module = transformers.XCLIPModel.from_pretrained(tmp_path / "xclip", dtype=torch.float32).eval()
    processor = transformers.XCLIPProcessor.from_pretrained(tmp_path / "xclip")
    frames = list(load_video(FILM, count=4).frames)
    inputs = processor.tokenizer(list(words), padding=True, return_tensors="pt")
    inputs |= processor.image_processor(frames, return_tensors="pt")
    with torch.inference_mode():
        chances = module(**inputs).logits_per_video[0].softmax(-1).tolist()
    assert {label.label: label.score for label in answer} == pytest.approx(
        dict(zip(words, chances, strict=True)), abs=1e-4
    )
    assert [label.score for label in answer] == sorted((label.score for label in answer), reverse=True)
    assert max(chances) - min(chances) > 1e-3, "the words are told apart"
    await _refuses_no_labels(model, FILM)
    assert await backend.unload(model, timeout_s=5) == {}


async def _refuses_no_labels(model: LoadedModel, source: object) -> None:
    with pytest.raises(BadInput, match="no labels of its own"):
        await model.call("classify", ClassifyRequest(source))


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
