"""Videos to objects that keep their ids."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from taskrouter.backends.hf.association import Association, overlap
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media import load_video
from taskrouter.media.limits import MediaLimits
from taskrouter.media.video import watch_video
from taskrouter.samples import sample_dir
from taskrouter.samples.renderers.drawing import OVERSAMPLING, background, finished, outline, paint
from taskrouter.types import CPU
from taskrouter.verbs import Box, Detection, SegmentRequest, Track, TrackRequest
from tests.media.files import encoded
from tests.media.test_media_video import film as encode_film

from .checkpoints import CHARGES, request
from .families import owlv2
from .families_seeing import LABELLERS
from .gone import passes_for_nobody

pytestmark = pytest.mark.anyio

FPS = 10
WIDE, HIGH = 96, 96
Path_ = Callable[[float], tuple[float, float] | None]
"""Where the middle of something is at a second, in pixels; ``None``: it isn't there."""

PATHS: dict[tuple[str, str, float], Path_] = {
    ("circle", "red", 13): lambda t: (16 + 32 * t, 18),
    ("star", "blue", 17): lambda t: (78 - 30 * t, 76),
    ("square", "green", 13): lambda t: (80, 26 + 20 * (t - 1)) if t >= 1 else None,
}


def moving(seconds: float = 2.0) -> bytes:
    """A film of shapes on their paths, over one background."""
    rng = np.random.default_rng(5)
    canvas = (WIDE * OVERSAMPLING, HIGH * OVERSAMPLING)
    ground, paints = background(rng, *canvas), {key: paint(rng, key[1]) for key in PATHS}
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDE, HIGH, "yuv420p"
        for place in range(round(seconds * FPS)):
            picture = PIL.Image.fromarray(ground)
            draw = PIL.ImageDraw.Draw(picture)
            for key, where in PATHS.items():
                if (middle := where(place / FPS)) is not None:
                    corners = outline(key[0], turn=math.pi / 4)
                    points = [
                        (OVERSAMPLING * (middle[0] + key[2] * x), OVERSAMPLING * (middle[1] + key[2] * y))
                        for x, y in corners
                    ]
                    draw.polygon(points, fill=paints[key])
            frame = av.VideoFrame.from_image(finished(np.random.default_rng(place), picture, (WIDE, HIGH)))
            frame.pts = place
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return written.getvalue()


async def followed(backend: TransformersBackend, *asked: TrackRequest) -> list[tuple[Track, ...]]:
    model = await backend.load(request(sample_dir("scenes")), (CPU,), CHARGES)
    try:
        return [await model.call("track", each) for each in asked]
    finally:
        assert await backend.unload(model, timeout_s=5) == {}


@pytest.mark.slow
async def test_objects_keep_their_ids_along_their_paths(backend: TransformersBackend, tmp_path: Path) -> None:
    film = moving()
    (tmp_path / "film.mp4").write_bytes(film)
    pictures = load_video(film, fps=10).frames
    found, stars, again = await followed(
        backend,
        TrackRequest(str(tmp_path / "film.mp4")),
        TrackRequest(film, labels=("star",), fps=5),
        TrackRequest(pictures),
    )
    assert again == found
    assert [each.id for each in found] == [1, 2, 3]
    assert {each.label for each in found} == {"circle", "star", "square"}
    paths = {key[0]: (key[2], path) for key, path in PATHS.items()}
    for each in found:
        radius, path = paths[each.label]
        frames = [seen.frame for seen in each.sightings]
        assert frames == sorted(set(frames))
        assert len(frames) >= (18 if each.label != "square" else 8)
        for seen in each.sightings:
            assert seen.time_s == pytest.approx(seen.frame / FPS)
            middle = path(seen.time_s)
            assert middle is not None
            across, down = (seen.box.left + seen.box.right) / 2, (seen.box.top + seen.box.bottom) / 2
            assert math.dist((across, down), middle) < radius / 2, (each.label, seen)
    assert [each.label for each in stars] == ["star"]
    assert 8 <= len(stars[0].sightings) <= 10


@pytest.mark.slow
async def test_what_cant_be_followed_is_refused_and_nobody_gone_is_computed_for(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    film = moving(0.5)
    refused: list[tuple[TrackRequest, type[Exception], str]] = [
        (TrackRequest(encoded("mp3")), BadInput, "no pictures in it: it is sound only"),
        (TrackRequest(b"no video"), BadInput, "can't be decoded as video"),
        (TrackRequest(film, labels=("moon",)), BadInput, "names 'moon'"),
        (
            TrackRequest(film, limits=MediaLimits(max_frames=4)),
            MediaTooLarge,
            "5 frames of the video were asked for, and",
        ),
        (TrackRequest(film, limits=MediaLimits(max_seconds=0.1)), MediaTooLarge, "longer than"),
    ]
    for asked, error, said in refused:
        with pytest.raises(error, match=said):
            await followed(backend, asked)
    model = await backend.load(request(sample_dir("scenes")), (CPU,), CHARGES)
    assert passes_for_nobody(model, "track", TrackRequest(film)) == 0
    await backend.unload(model, timeout_s=5)


async def test_any_words_are_followed_where_the_model_takes_them(backend: TransformersBackend, tmp_path: Path) -> None:
    owlv2(tmp_path / "owl")
    model = await backend.load(request(tmp_path / "owl"), (CPU,), CHARGES)
    asked = TrackRequest(moving(0.3), ("cat", "dog"), threshold=0.0)
    found = await model.call("track", asked)
    assert found
    assert {each.label for each in found} <= {"cat", "dog"}
    with pytest.raises(BadInput, match="no labels of its own"):
        await model.call("track", TrackRequest(moving(0.3)))
    await backend.unload(model, timeout_s=5)


@pytest.mark.parametrize("name", ["mask2former", "maskformer"])
async def test_who_tells_things_apart_by_masks_follows_them_by_masks(
    backend: TransformersBackend, tmp_path: Path, name: str
) -> None:
    LABELLERS[name](tmp_path / name)
    model = await backend.load(request(tmp_path / name), (CPU,), CHARGES)
    assert "track" in model.verbs
    pictures = [PIL.Image.effect_noise((60, 40), 80).convert("RGB")] * 3
    regions = await model.call("segment", SegmentRequest(pictures[0], threshold=0.0))
    tracks = await model.call("track", TrackRequest(pictures, threshold=0.0))
    assert tracks
    by_box = {each.box: each for each in regions}
    for each in tracks:
        assert [seen.frame for seen in each.sightings] == [0, 1, 2]
        for seen in each.sightings:
            region = by_box[seen.box]
            assert (each.label, seen.score) == (region.label, region.score)
            assert np.array_equal(seen.mask, region.mask)
            assert seen.mask.any()
    await backend.unload(model, timeout_s=5)


async def test_the_masks_of_all_frames_are_the_answer_and_bounded(backend: TransformersBackend, tmp_path: Path) -> None:
    LABELLERS["mask2former"](tmp_path / "m")
    model = await backend.load(request(tmp_path / "m"), (CPU,), CHARGES)
    film, most = encode_film(8), MediaLimits(max_pixels=64 * 32)
    assert await model.call("segment", SegmentRequest(load_video(film, count=1).frames[0], threshold=0.0, limits=most))
    with pytest.raises(MediaTooLarge, match="masks of 64 × 32 pixels"):
        await model.call("track", TrackRequest(film, threshold=0.0, limits=most))
    await backend.unload(model, timeout_s=5)


def test_a_picture_is_looked_at_once_however_many_a_second_are_asked_for() -> None:
    film = encode_film(8)
    times = [time_s for _, time_s in watch_video(film, fps=30)]
    assert times == pytest.approx([place / 10 for place in range(80)])
    tight = MediaLimits(max_pixels=64 * 32, max_frames=40)  # one is held at a time
    assert len(list(watch_video(film, tight, fps=5))) == 40
    assert [time_s for _, time_s in watch_video(film, fps=0.2)] == [0.0, 5.0]


def test_a_video_is_opened_once_however_long_it_is_watched_and_closed_when_nobody_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []
    real = av.open

    def noted(*args: Any, **how: Any) -> Any:
        opened.append(real(*args, **how))
        return opened[-1]

    film = encode_film(8)
    monkeypatch.setattr(av, "open", noted)
    frames = watch_video(film, fps=10)
    assert [next(frames)[1] for _ in range(3)] == pytest.approx([0.0, 0.1, 0.2])
    frames.close()
    assert len(opened) == 1
    with pytest.raises((ValueError, AssertionError)):
        next(opened[0].decode(video=0))  # closed


def at(x: float, y: float = 0.0, *, label: str = "a", score: float = 0.9, side: float = 10.0) -> Detection:
    return Detection(label, score, Box(x, y, x + side, y + side))


def test_two_that_cross_stay_who_they_are() -> None:
    objects = Association(10)
    for step in range(11):
        objects.look([at(4.0 * step), at(40 - 4.0 * step, 3)], step / 10)
    one, other = objects.tracks()
    assert [seen.box.left for seen in one.sightings] == [4.0 * step for step in range(11)]
    assert [seen.box.left for seen in other.sightings] == [40 - 4.0 * step for step in range(11)]


def test_what_is_hidden_for_a_while_is_who_it_was_and_what_comes_later_is_new() -> None:
    objects = Association(10)
    for step in (0, 1, 2, 3, 9, 10, 25, 26):
        objects.look([at(5.0 * step)], step / 10)
    one, other = objects.tracks()
    assert [round(10 * seen.time_s) for seen in one.sightings] == [0, 1, 2, 3, 9, 10]
    assert [round(10 * seen.time_s) for seen in other.sightings] == [25, 26]
    assert (one.id, other.id) == (1, 2)


def test_a_label_is_what_it_was_taken_for_most_and_one_thing_is_found_once() -> None:
    objects = Association(10)
    for step in range(4):
        label = "b" if step == 1 else "a"
        objects.look([at(step, label=label), at(step + 0.5, label="c", score=0.5)], step / 10)
    (only,) = objects.tracks()
    assert only.label == "a"
    assert [seen.score for seen in only.sightings] == [0.9] * 4


def test_what_flashes_up_once_is_no_object_but_of_one_frame_everything_is() -> None:
    objects = Association(10)
    for step in range(3):
        objects.look([at(0), *([at(90)] if step == 1 else [])], step / 10)
    assert len(objects.tracks()) == 1
    alone = Association(10)
    alone.look([at(0), at(90)], 0.0)
    assert len(alone.tracks()) == 2
    assert Association(10).tracks() == ()


def test_boxes_apart_share_nothing() -> None:
    assert overlap(Box(0, 0, 2, 2), Box(2, 0, 4, 2)) == 0
    assert overlap(Box(0, 0, 2, 2), Box(1, 0, 3, 2)) == pytest.approx(1 / 3)
