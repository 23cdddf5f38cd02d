"""Texts and pictures to vectors in one space."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, ContextTooLong, MediaTooLarge, UnsupportedInput
from taskrouter.media.limits import MediaLimits
from taskrouter.types import CPU
from taskrouter.verbs import EmbedRequest, Picture

from .checkpoints import CHARGES, request
from .families import ZERO_SHOT_CLASSIFIERS, clip, sentence_bert
from .gone import passes_for_nobody
from .test_transformers_detect import picture

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ZERO_SHOT_CLASSIFIERS)
async def test_vectors_are_those_the_whole_model_compares(
    backend: TransformersBackend, tmp_path: Path, name: str
) -> None:
    import torch
    import transformers

    ZERO_SHOT_CLASSIFIERS[name](tmp_path / name)
    model = await backend.load(request(tmp_path / name), (CPU,), CHARGES)
    small = picture().resize((30, 50))
    asked = EmbedRequest(("a cat", Picture(picture()), "a photo of this dog", Picture(small), "star"))
    mine = await model.call("embed", asked)
    whole = transformers.AutoModel.from_pretrained(tmp_path / name)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / name)
    with torch.inference_mode():
        theirs = whole(**processor(
            text=["a cat", "a photo of this dog", "star"], images=[picture(), small], return_tensors="pt",
            padding="max_length" if name == "siglip" else True,
        ))  # fmt: skip
    texts, images = theirs.text_embeds.numpy(), theirs.image_embeds.numpy()
    together = np.stack([texts[0], images[0], texts[1], images[1], texts[2]])
    np.testing.assert_allclose(np.asarray(mine.vectors), together, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(mine.vectors), axis=1), 1, atol=1e-5)
    assert mine.usage is not None
    assert mine.usage.prompt_tokens > 6
    assert await backend.unload(model, timeout_s=5) == {}


async def test_many_are_read_in_parts_and_a_picture_however_it_is_given(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    clip(tmp_path / "clip")
    packed = io.BytesIO()
    picture().save(packed, "PNG")
    (tmp_path / "p.png").write_bytes(packed.getvalue())
    sources = [picture(), packed.getvalue(), tmp_path / "p.png", np.asarray(picture())] * 3
    model = await backend.load(request(tmp_path / "clip"), (CPU,), CHARGES)
    inputs: tuple[str | Picture, ...] = (*(Picture(source) for source in sources), *(["star", "a cat"] * 20))
    vectors = np.asarray((await model.call("embed", EmbedRequest(inputs))).vectors)
    assert vectors.shape == (52, 32)
    np.testing.assert_allclose(vectors[:12], np.broadcast_to(vectors[0], (12, 32)), atol=1e-5)
    np.testing.assert_allclose(vectors[12::2], np.broadcast_to(vectors[12], (20, 32)), atol=1e-5)
    assert await backend.unload(model, timeout_s=5) == {}


async def test_what_cant_be_embedded_is_refused_and_nobody_gone_is_computed_for(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    clip(tmp_path / "clip")
    model = await backend.load(request(tmp_path / "clip"), (CPU,), CHARGES)
    refused: list[tuple[EmbedRequest, type[Exception], str]] = [
        (EmbedRequest(("star " * 20,)), ContextTooLong, "input 0 comes to 62 tokens, and the model reads 16"),
        (EmbedRequest((Picture(b"no picture"),)), BadInput, "is no image"),
        (EmbedRequest((Picture(picture()),), limits=MediaLimits(max_pixels=99)), MediaTooLarge, "media.max_pixels"),
        (EmbedRequest(("star",), {"dimensions": 3}), UnsupportedInput, "extra has dimensions"),
    ]
    for asked, error, said in refused:
        with pytest.raises(error, match=said):
            await model.call("embed", asked)
    for inputs in ("star", Picture(picture())):
        assert passes_for_nobody(model, "embed", EmbedRequest((inputs,))) == 0
    await backend.unload(model, timeout_s=5)


async def test_a_model_of_texts_takes_no_picture(backend: TransformersBackend, tmp_path: Path) -> None:
    sentence_bert(tmp_path / "bert")
    found: Any = await backend.preflight(request(tmp_path / "bert"))
    assert found.lacks["image"] == "it embeds texts"
    model = await backend.load(request(tmp_path / "bert"), (CPU,), CHARGES)
    with pytest.raises(UnsupportedInput, match="this model embeds texts only"):
        await model.call("embed", EmbedRequest(("w1", Picture(picture()))))
    await backend.unload(model, timeout_s=5)
