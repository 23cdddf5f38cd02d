"""Pictures to depths, in their own pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, CallFailed
from taskrouter.types import CPU
from taskrouter.verbs import Depth, DepthRequest

from .checkpoints import CHARGES, request
from .families_seeing import DEPTHS, depth_anything, dpt, glpn
from .gone import passes_for_nobody
from .test_transformers_detect import HIGH, WIDE, picture

pytestmark = pytest.mark.anyio


async def seen(backend: TransformersBackend, folder: Path, *sources: Any, **options: Any) -> list[Depth]:
    model = await backend.load(request(folder, **options), (CPU,), CHARGES)
    try:
        return [await model.call("depth", DepthRequest(source)) for source in sources]
    finally:
        assert await backend.unload(model, timeout_s=5) == {}


@pytest.mark.parametrize("name", DEPTHS)
async def test_depths_are_those_of_transformers_own_pipeline(
    backend: TransformersBackend, tmp_path: Path, name: str
) -> None:
    import transformers

    DEPTHS[name](tmp_path / name)
    (mine,) = await seen(backend, tmp_path / name, picture())
    theirs = transformers.pipeline("depth-estimation", model=str(tmp_path / name))(picture())["predicted_depth"]
    assert mine.values.dtype == np.float32
    assert mine.values.shape == (HIGH, WIDE)
    assert mine.values.std() > 0
    np.testing.assert_allclose(mine.values, theirs.numpy(), atol=1e-5)
    assert mine.unit == ("m" if name == "glpn" else "relative")


async def test_a_model_of_metres_says_so(backend: TransformersBackend, tmp_path: Path) -> None:
    depth_anything(tmp_path / "metric", metres=20)
    (told,) = await seen(backend, tmp_path / "metric", picture())
    assert told.unit == "m"
    assert 0 <= told.values.min() <= told.values.max() <= 20


async def test_rows_are_those_of_the_upright_picture_however_narrow(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    dpt(tmp_path / "dpt")
    turned = tmp_path / "turned.png"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn to the right
    picture().save(turned, exif=exif)
    upright, narrow = await seen(backend, tmp_path / "dpt", str(turned), PIL.Image.new("RGB", (1, 9)))
    assert upright.values.shape == (WIDE, HIGH)
    assert narrow.values.shape == (9, 1)


async def test_a_picture_that_is_too_small_for_the_model_is_refused(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    glpn(tmp_path / "glpn")
    with pytest.raises(BadInput, match="40 × 30 pixels, and this model looks at 32 × 32 at least"):
        await seen(backend, tmp_path / "glpn", PIL.Image.new("RGB", (40, 30)))


async def test_what_is_no_number_is_no_answer_and_the_model_stays(backend: TransformersBackend, tmp_path: Path) -> None:
    import torch

    dpt(tmp_path / "dpt")
    model = await backend.load(request(tmp_path / "dpt"), (CPU,), CHARGES)
    head = model.raw.head.head[-2].bias
    with torch.no_grad():
        kept = head.clone()
        head.fill_(float("nan"))
    with pytest.raises(CallFailed, match="some depths are no numbers; load it in a wider dtype"):
        await model.call("depth", DepthRequest(picture()))
    with torch.no_grad():
        head.copy_(kept)
    assert np.isfinite((await model.call("depth", DepthRequest(picture()))).values).all()
    with pytest.raises(BadInput, match="is no image"):
        await model.call("depth", DepthRequest(b"no image"))
    model.raw.forward = None  # would fail if it were called
    assert passes_for_nobody(model, "depth", DepthRequest(picture())) == 0
    del model.raw.forward, head, kept
    await backend.unload(model, timeout_s=5)
