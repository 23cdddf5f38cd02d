"""What a caller asks about pictures, and what it gets: checked, typed, the same blocking."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from taskrouter.errors import BadInput, UnsupportedInput
from taskrouter.manager.inputs import inputs_of
from taskrouter.manager.pointing import boxes_of, points_of
from taskrouter.verbs import Box, Depth, EmbedRequest, Picture, Point, Region, SegmentRequest, Sighting, Track

from .stage import Stage, play

CUP = [{"label": "cup", "box": [0, 0, 2, 3]}]


def seeing(folder: Path) -> Stage:
    return Stage(
        folder,
        {
            "far": {"kind": "depth", "answer": [[1, 2]], "vram_gb": 1},
            "parts": {"kind": "segmentation", "answer": CUP, "vram_gb": 1},
            "paths": {"kind": "tracking", "answer": CUP, "vram_gb": 1},
            "words": {"kind": "embedding", "lacks": ["image"], "vram_gb": 1},
            "both": {"kind": "embedding", "vram_gb": 1},
        },
    )


def test_a_handle_and_a_lease_answer_in_types(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        far = await (await stage.manager.get_model("far")).depth(b"picture")
        assert isinstance(far, Depth)
        assert (far.values.tolist(), far.values.dtype.name, far.unit) == ([[1, 2]], "float32", "relative")
        async with stage.manager.lease("parts") as model:
            (cup,) = await model.segment(b"picture", points=[(1, 2)])
            assert isinstance(cup, Region)
            assert (cup.label, cup.score, cup.box, cup.mask.shape) == ("cup", 1.0, Box(0, 0, 2, 3), (3, 2))
            (path,) = await (await stage.manager.get_model("paths")).track(b"video", fps=5)
            assert path == Track(1, "cup", (Sighting(0, 0.0, Box(0, 0, 2, 3), 1.0),))
            for fps in (0, -1, "fast", True):
                with pytest.raises(BadInput, match="fps is"):
                    await (await stage.manager.get_model("paths")).track(b"video", fps=fps)  # type: ignore[arg-type]
            for wrong in ({"points": [(1, "2")]}, {"boxes": [(1, 2, 3)]}, {"threshold": 2}, {"labels": "cup"}):
                with pytest.raises(BadInput):
                    await model.segment(b"picture", **wrong)

    play(seeing(tmp_path), main)


def test_a_picture_for_a_model_of_texts_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    async def main(stage: Stage) -> None:
        words = stage.manager.lease("words")
        with pytest.raises(UnsupportedInput, match="image"):
            async with words as model:
                await model.embed(["a text", b"a picture"])
        async with stage.manager.lease("both") as model:
            mixed = await model.embed(["a text", Path("p.png"), {"type": "text", "text": "a text"}])
            one = await model.embed(b"a picture")
        assert mixed.vectors[0] == mixed.vectors[2] != mixed.vectors[1]
        assert len(one.vectors) == 1

    play(seeing(tmp_path), main)


def test_answers_cross_processes_whole() -> None:
    mask = np.asarray([[True, False]])
    far = pickle.loads(pickle.dumps(Depth(np.asarray([[1.5]], np.float32), "m")))
    assert (far.values.tolist(), far.unit) == ([[1.5]], "m")
    part = pickle.loads(pickle.dumps(Region("cup", 0.5, Box(0, 0, 1, 1), mask)))
    assert (part.label, part.box, part.mask.tolist()) == ("cup", Box(0, 0, 1, 1), [[True, False]])
    for plain in (
        Track(1, "cup", (Sighting(0, 0.0, Box(0, 0, 1, 1), 0.5),)),
        SegmentRequest("a.png", ((Point(1, 2),),), (Box(0, 0, 1, 1),)),
        EmbedRequest(("a", Picture(b"b"))),
    ):
        assert pickle.loads(pickle.dumps(plain)) == plain


def test_blocking_answers_the_same(tmp_path: Path) -> None:
    with seeing(tmp_path).manager.blocking() as manager:
        assert manager.get_model("far").depth(b"").values.tolist() == [[1, 2]]
        with manager.lease("parts") as model:
            assert model.segment(b"", boxes=[(0, 0, 1, 1)])[0].label == "cup"


def test_points_are_those_of_one_object_each_or_of_several() -> None:
    assert points_of([(1, 2), [(3, 4.5), (5, 6, False)]]) == ((Point(1, 2),), (Point(3, 4.5), Point(5, 6, on=False)))
    assert points_of(np.asarray([[1, 2], [3, 4]])) == ((Point(1, 2),), (Point(3, 4),))
    assert boxes_of([(1, 2, 3, 4)]) == (Box(1, 2, 3, 4),)
    assert not points_of(())


@pytest.mark.parametrize(
    "wrong", [3, "12", [1, 2], [()], [(1,)], [(1, 2, 3)], [(1, True)], [(1, float("nan"))], [[(1, 2), 3]], [("1", 2)]]
)
def test_what_is_no_point_is_refused(wrong: Any) -> None:
    with pytest.raises(BadInput, match="points has"):
        points_of(wrong)


@pytest.mark.parametrize("wrong", [3, [(1, 2, 3)], [3], [(1, 2, 3, "4")]])
def test_what_is_no_box_is_refused(wrong: Any) -> None:
    with pytest.raises(BadInput, match="boxes has"):
        boxes_of(wrong)


def test_texts_and_pictures_are_told_apart() -> None:
    picture, array, file = PIL.Image.new("RGB", (2, 2)), np.zeros((2, 2)), io.BytesIO(b"x")
    part = {"type": "image_url", "image_url": {"url": "data:x"}}
    assert inputs_of("a.png") == ("a.png",)
    for alone in (picture, array, file, b"x", Path("a.png")):
        (found,) = inputs_of(alone)
        assert isinstance(found, Picture)
        assert found.source is alone
    assert inputs_of(part) == inputs_of([{**part, "image_url": "data:x"}]) == (Picture("data:x"),)
    assert inputs_of(text for text in ("a", "b")) == ("a", "b")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (3, "not int"),
        ([], "it is empty"),
        (["a", 3], r"inputs\[1\] is int"),
        ({"type": "input_audio"}, "part of type 'input_audio'"),
        ({"type": "image_url"}, "with something in it"),
    ],
)
def test_what_is_neither_is_refused(wrong: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        inputs_of(wrong)
