"""Pictures to regions: by labels, and by what a model is pointed at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskrouter.backends.hf import segment as segment_module
from taskrouter.backends.hf.regions import region
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, MediaTooLarge, MissingDependency, UnsupportedInput
from taskrouter.media.limits import MediaLimits
from taskrouter.types import CPU
from taskrouter.verbs import Box, Point, Region, SegmentRequest

from .checkpoints import CHARGES, request
from .families_seeing import LABELLERS, POINTED, sam2, segformer
from .gone import passes_for_nobody
from .test_transformers_detect import HIGH, WIDE, picture

pytestmark = pytest.mark.anyio

THERE = (Point(30, 20), Point(100, 70, False))
OVER = Box(10, 20, 90, 60)


async def found(backend: TransformersBackend, folder: Path, *asked: SegmentRequest) -> list[tuple[Region, ...]]:
    model = await backend.load(request(folder), (CPU,), CHARGES)
    try:
        return [await model.call("segment", each) for each in asked]
    finally:
        assert await backend.unload(model, timeout_s=5) == {}


def sound(each: Region) -> bool:
    """A mask of the whole picture, in the box that just holds it."""
    left, top, right, bottom = map(int, each.box)
    inside = each.mask[top:bottom, left:right]
    tight = not inside.size or all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    return each.mask.shape == (HIGH, WIDE) and each.mask.dtype == np.bool_ and inside.sum() == each.mask.sum() and tight


@pytest.mark.parametrize("name", LABELLERS)
async def test_regions_are_those_of_transformers_own_pipeline(
    backend: TransformersBackend, tmp_path: Path, name: str
) -> None:
    import transformers

    LABELLERS[name](tmp_path / name)
    (mine,) = await found(backend, tmp_path / name, SegmentRequest(picture(), threshold=_any(name)))
    look = transformers.pipeline("image-segmentation", model=str(tmp_path / name))
    how = {} if name == "segformer" else {"threshold": 0.0, "overlap_mask_area_threshold": 0.8}
    theirs = look(picture(), **how)
    assert len(mine) == len(theirs)
    assert mine
    assert all(map(sound, mine))

    def told(label: Any, score: Any, mask: Any) -> tuple[str, float, int]:
        return str(label), float(score or 0.0), int(np.asarray(mask).astype(bool).sum())

    ours = sorted(told(each.label, each.score, each.mask) for each in mine)
    others = sorted(told(each["label"], each["score"], each["mask"]) for each in theirs)
    for our, other in zip(ours, others, strict=True):
        assert our[0] == other[0]
        assert our[1] == pytest.approx(other[1], abs=1e-4)
        assert our[2] == pytest.approx(other[2], abs=HIGH * WIDE / 500)  # the CPU may add up in another order


def _any(name: str) -> float | None:
    return None if name == "segformer" else 0.0


async def test_every_pixel_has_one_label_and_the_largest_region_is_first(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    segformer(tmp_path / "segformer")
    every, stars = await found(
        backend, tmp_path / "segformer", SegmentRequest(picture()), SegmentRequest(picture(), labels=("star",))
    )
    assert sum(each.mask.astype(int) for each in every).min() == 1  # type: ignore[union-attr]
    assert sum(int(each.mask.sum()) for each in every) == HIGH * WIDE
    sizes = [int(each.mask.sum()) for each in every]
    assert sizes == sorted(sizes, reverse=True)
    assert {each.score for each in every} == {None}
    assert [each.label for each in stars] == ["star"] * len(stars)
    assert len(stars) == sum(each.label == "star" for each in every)
    with pytest.raises(BadInput, match="says of no region how sure it is: leave threshold out"):
        await found(backend, tmp_path / "segformer", SegmentRequest(picture(), threshold=0.1))
    with pytest.raises(BadInput, match="names 'moon'"):
        await found(backend, tmp_path / "segformer", SegmentRequest(picture(), labels=("moon",)))


async def test_what_is_found_in_a_smaller_picture_is_enlarged(
    backend: TransformersBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segformer(tmp_path / "segformer")
    (fine,) = await found(backend, tmp_path / "segformer", SegmentRequest(picture()))
    monkeypatch.setattr(segment_module, "FINEST", HIGH * WIDE // 4)
    (coarse,) = await found(backend, tmp_path / "segformer", SegmentRequest(picture()))
    assert [each.label for each in coarse] == [each.label for each in fine]
    for one, other in zip(fine, coarse, strict=True):
        assert sound(other)
        assert (one.mask == other.mask).mean() > 0.9


@pytest.mark.parametrize("name", POINTED)
async def test_what_is_pointed_at_is_what_transformers_own_processor_finds(
    backend: TransformersBackend, tmp_path: Path, name: str
) -> None:
    import torch
    import transformers

    POINTED[name](tmp_path / name)
    (one,), (several, _), (boxed,) = await found(
        backend, tmp_path / name,
        SegmentRequest(picture(), points=(THERE[:1],)), SegmentRequest(picture(), points=(THERE, THERE[:1])),
        SegmentRequest(picture(), boxes=(OVER,)),
    )  # fmt: skip
    assert all(map(sound, (one, several, boxed)))
    assert {one.label, boxed.label} == {None}
    assert 0 <= min(one.score or 0.0, boxed.score or 0.0) <= 1
    model = transformers.AutoModelForMaskGeneration.from_pretrained(tmp_path / name)
    if name == "sam":
        processor = transformers.AutoProcessor.from_pretrained(tmp_path / name)
        inputs = processor(picture(), return_tensors="pt")
        reshaped = inputs["reshaped_input_sizes"]

        def finish(masks: Any) -> Any:
            return processor.post_process_masks(masks, [(HIGH, WIDE)], reshaped)

        def told(**what: Any) -> Any:
            return processor(picture(), return_tensors="pt", **what)
    else:
        # Of SAM 2 what reads pictures wants torchvision; what scales points, and its mask's last step, don't.
        scaling = _Sam2Scaling()

        def finish(masks: Any) -> Any:
            return [torch.nn.functional.interpolate(masks[0], (HIGH, WIDE), mode="bilinear") > 0]

        def told(**what: Any) -> Any:
            return scaling(**what)

    for mine, what, single in (
        (one, {"input_points": [[[[30.0, 20.0]]]], "input_labels": [[[1]]]}, True),
        (several, {"input_points": [[[[30.0, 20.0], [100.0, 70.0]]]], "input_labels": [[[1, 0]]]}, False),
        (boxed, {"input_boxes": [[[*OVER]]]}, False),
    ):
        asked = {key: value for key, value in told(**what).items() if key in what or key == "pixel_values"}
        with torch.inference_mode():
            floats = {key: value.float() if value.is_floating_point() else value for key, value in asked.items()}
            outputs = model(**floats, multimask_output=single)
        best = int(outputs.iou_scores[0, 0].argmax())
        theirs = finish(outputs.pred_masks)[0][0, best].numpy()
        assert (mine.mask == theirs).mean() > 0.999
        assert mine.score == pytest.approx(min(max(outputs.iou_scores[0, 0, best].item(), 0), 1), abs=1e-4)


class _Sam2Scaling:
    """Transformers' own processor of SAM 2, with pictures read by Pillow as they are by torchvision."""

    def __init__(self) -> None:
        import transformers
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        from .families import SIDE

        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        size = {"height": SIDE, "width": SIDE}
        pictures = ViTImageProcessorPil(size=size, image_mean=mean, image_std=std, resample=2)
        self.pixels = pictures(picture(), return_tensors="pt")["pixel_values"]
        self.processor = transformers.Sam2Processor(pictures)

    def __call__(self, **what: Any) -> dict[str, Any]:
        scaled = self.processor(original_sizes=[[HIGH, WIDE]], return_tensors="pt", **what)
        return {**scaled, "pixel_values": self.pixels}


@pytest.mark.parametrize("name", POINTED)
async def test_a_point_stays_where_it_is_in_half_precision(
    backend: TransformersBackend, tmp_path: Path, name: str
) -> None:
    import torch

    POINTED[name](tmp_path / name)
    model = await backend.load(request(tmp_path / name, dtype="bfloat16"), (CPU,), CHARGES)
    told: list[Any] = []
    hook = model.raw.register_forward_pre_hook(lambda _, __, how: told.append(how["input_points"]), with_kwargs=True)
    (found,) = await model.call("segment", SegmentRequest(picture(), points=((Point(101.3, 41.7),),)))
    hook.remove()
    assert sound(found)
    assert told[0].dtype == torch.float32
    assert told[0][0, 0, 0, 0].item() == pytest.approx(101.3 * 64 / WIDE, abs=1e-3)
    assert await backend.unload(model, timeout_s=5) == {}


async def test_the_checkpoint_for_videos_answers_about_pictures_the_same(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    sam2(tmp_path / "video", video=True)
    three = tuple((Point(x, 10),) for x in (10, 50, 90))
    (mine,) = await found(backend, tmp_path / "video", SegmentRequest(picture(), points=three))
    assert len(mine) == 3
    assert all(map(sound, mine))


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({}, BadInput, "has to be pointed at something"),
        ({"points": (THERE,), "boxes": (OVER,)}, BadInput, "either points or boxes, not both"),
        ({"points": ((Point(121, 3),),)}, BadInput, r"outside of the picture, which has 120 × 80 pixels \(upright\)"),
        ({"points": ((Point(3, -1),),)}, BadInput, "outside of the picture"),
        ({"boxes": (Box(0, 0, 8, 81),)}, BadInput, "outside of the picture"),
        ({"boxes": (Box(8, 0, 8, 8),)}, BadInput, "is no box: give left, top, right and bottom"),
        ({"points": (THERE,), "labels": ("star",)}, UnsupportedInput, "knows no labels"),
        ({"points": (THERE,), "threshold": 0.5}, BadInput, "leave threshold out"),
        ({"points": (THERE,) * 9, "limits": MediaLimits(max_pixels=10_000)}, MediaTooLarge, "9 masks of 120 × 80"),
    ],
)
async def test_what_a_model_that_is_pointed_at_things_cant_be_asked(
    backend: TransformersBackend, tmp_path: Path, asked: dict[str, Any], error: type[Exception], said: str
) -> None:
    sam2(tmp_path / "sam2")
    with pytest.raises(error, match=said):
        await found(backend, tmp_path / "sam2", SegmentRequest(picture(), **asked))


async def test_points_to_a_model_that_takes_none_are_refused_and_nobody_gone_is_computed_for(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    for name, asked in (("segformer", SegmentRequest(picture())), ("sam2", SegmentRequest(picture(), (THERE,)))):
        {**LABELLERS, **POINTED}[name](tmp_path / name)
        model = await backend.load(request(tmp_path / name), (CPU,), CHARGES)
        if name == "segformer":
            for pointing in ({"points": (THERE,)}, {"boxes": (OVER,)}):
                with pytest.raises(UnsupportedInput, match="takes no points and no boxes"):
                    await model.call("segment", SegmentRequest(picture(), **pointing))
        assert passes_for_nobody(model, "segment", asked) == 0
        await backend.unload(model, timeout_s=5)


def test_a_mask_of_nothing_has_a_box_of_no_size() -> None:
    assert region("cup", 0.5, np.zeros((3, 4), np.bool_)).box == Box(0, 0, 0, 0)


async def test_what_reads_no_picture_without_torchvision_is_told_before_anything_is_loaded(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    import importlib.util

    segformer(tmp_path / "segformer")
    config = tmp_path / "segformer" / "preprocessor_config.json"
    config.write_text(config.read_text().replace("SegformerImageProcessor", "Sam3ImageProcessor"))
    if importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is here")
    with pytest.raises(MissingDependency, match="what prepares its pictures needs torchvision"):
        await backend.preflight(request(tmp_path / "segformer"))
