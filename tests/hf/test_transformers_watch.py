"""Videos to labels."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media.limits import MediaLimits
from taskrouter.types import CPU
from taskrouter.verbs import ClassifyRequest
from tests.media.files import encoded
from tests.media.test_media_video import FILM, film

from .checkpoints import CHARGES, request
from .families_seeing import WATCHERS, videomae

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", WATCHERS)
async def test_labels_are_those_of_transformers_own_pipeline(
    backend: TransformersBackend, tmp_path: Path, name: str
) -> None:
    import transformers

    WATCHERS[name](tmp_path / name)
    path = tmp_path / "four.mp4"
    # The pipeline takes the first frames there are, so here they are all.
    path.write_bytes(film(1, left_out=lambda place: place >= 4))
    model = await backend.load(request(tmp_path / name), (CPU,), CHARGES)
    mine = await model.call("classify", ClassifyRequest(str(path)))
    theirs = transformers.pipeline("video-classification", model=str(tmp_path / name))(str(path))
    assert [each.label for each in mine] == [each["label"] for each in theirs]
    assert [each.score for each in mine] == pytest.approx([each["score"] for each in theirs], abs=1e-5)
    assert await backend.unload(model, timeout_s=5) == {}


async def test_a_video_is_read_however_it_is_given_and_however_short(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    videomae(tmp_path / "mae")
    model = await backend.load(request(tmp_path / "mae"), (CPU,), CHARGES)
    url = "data:video/mp4;base64," + base64.b64encode(FILM).decode()
    first, second = [await model.call("classify", ClassifyRequest(source)) for source in (FILM, url)]
    assert first == second
    assert sum(each.score for each in first) == pytest.approx(1)
    (star,) = await model.call("classify", ClassifyRequest(FILM, labels=("star",)))
    assert star in first
    assert await model.call("classify", ClassifyRequest(film(1, left_out=bool)))  # one picture four times
    assert await backend.unload(model, timeout_s=5) == {}


async def test_what_has_no_pictures_or_too_many_is_refused_and_the_model_stays(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    videomae(tmp_path / "mae")
    model = await backend.load(request(tmp_path / "mae"), (CPU,), CHARGES)
    with pytest.raises(BadInput, match="has no pictures in it: it is sound only"):
        await model.call("classify", ClassifyRequest(encoded("mp3")))
    with pytest.raises(BadInput, match="can't be decoded as video"):
        await model.call("classify", ClassifyRequest(b"no video"))
    with pytest.raises(MediaTooLarge, match="max_frames allows 3"):
        await model.call("classify", ClassifyRequest(FILM, limits=MediaLimits(max_frames=3)))
    assert await model.call("classify", ClassifyRequest(FILM))
    await backend.unload(model, timeout_s=5)
