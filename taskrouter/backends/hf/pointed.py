"""``segment`` by a model that is pointed at objects (SAM, SAM 2): one region for each, in the order they were given.

The picture is looked at once; each object is a short question about it. A single point may mean a thing or a part of
it, so the model gives three masks for one and the best is answered; several points or a box mean one thing.
"""

from __future__ import annotations

import threading
from typing import Any

from taskrouter.backends.hf.calling import on_device
from taskrouter.backends.hf.loading import Parts
from taskrouter.backends.hf.regions import check_masks, region
from taskrouter.errors import BadInput, UnsupportedInput
from taskrouter.media.image import load_image
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import Box, Point, Region, SegmentRequest


def pointed_at(parts: Parts, request: SegmentRequest, limits: MediaLimits, stop: threading.Event) -> tuple[Region, ...]:
    """The regions of what is pointed at. Blocks. Raises ``BadInput`` for what lies outside of the picture."""
    import torch

    if request.labels:
        raise UnsupportedInput("this model knows no labels: it is pointed at things, with points or boxes.")
    if request.threshold is not None:
        raise BadInput("what this model is pointed at is answered however sure it is: leave threshold out.")
    if not request.points and not request.boxes:
        raise BadInput("this model has to be pointed at something: give points=[(x, y)] or boxes=[(l, t, r, b)].")
    if request.points and request.boxes:
        raise BadInput("give either points or boxes, not both.")
    image = load_image(request.image, limits)
    wanted: tuple[tuple[Point, ...] | Box, ...] = request.points or request.boxes
    for each in wanted:
        _check_inside(each, image.width, image.height)
    check_masks(len(wanted), image, limits)
    if stop.is_set():
        return ()
    inputs = parts.processor(images=image, return_tensors="pt")
    seen = _Seen(inputs, image)
    regions = []
    with torch.inference_mode():
        pixels = on_device({"pixel_values": inputs["pixel_values"]}, parts)["pixel_values"]
        looked = parts.module.get_image_embeddings(pixels)
        for each in wanted:
            if stop.is_set():
                return ()
            one = not isinstance(each, Box) and len(each) == 1
            # In half a precision a point would be pixels away from where it is.
            asked = {name: tensor.to(parts.device) for name, tensor in seen.asked(each).items()}
            found = parts.module(image_embeddings=looked, multimask_output=one, **asked)
            scores = found.iou_scores[0, 0].float()
            best = int(scores.argmax())
            mask = seen.mask(found.pred_masks[0, 0, best].float())
            regions.append(region(None, min(max(scores[best].item(), 0.0), 1.0), mask.cpu().numpy()))
    return tuple(regions)


class _Seen:
    """A picture as the model sees it: what of its square is picture, and how its pixels lie there."""

    def __init__(self, inputs: Any, image: Any) -> None:
        self.whole = tuple(inputs["pixel_values"].shape[-2:])
        # SAM fills its square up below or beside the picture; SAM 2 stretches the picture over all of it.
        shape = inputs["reshaped_input_sizes"][0].tolist() if "reshaped_input_sizes" in inputs else self.whole
        self.height, self.width = shape
        self.image = image

    def asked(self, what: tuple[Point, ...] | Box) -> dict[str, Any]:
        import torch

        across, down = self.width / self.image.width, self.height / self.image.height
        if isinstance(what, Box):
            scaled = [what.left * across, what.top * down, what.right * across, what.bottom * down]
            return {"input_boxes": torch.tensor([[scaled]])}
        places = [[point.x * across, point.y * down] for point in what]
        return {
            "input_points": torch.tensor([[places]]),
            "input_labels": torch.tensor([[[int(point.on) for point in what]]]),
        }

    def mask(self, coarse: Any) -> Any:
        """A mask of the model, in the picture's own pixels."""
        from torch.nn.functional import interpolate

        how: dict[str, Any] = {"mode": "bilinear", "align_corners": False}
        values = coarse[None, None]
        if (self.height, self.width) != self.whole:
            values = interpolate(values, self.whole, **how)[..., : self.height, : self.width]
        return interpolate(values, (self.image.height, self.image.width), **how)[0, 0] > 0


def _check_inside(what: tuple[Point, ...] | Box, width: int, height: int) -> None:
    corners = [(what.left, what.top), (what.right, what.bottom)] if isinstance(what, Box) else what
    for corner in corners:
        if not (0 <= corner[0] <= width and 0 <= corner[1] <= height):
            raise BadInput(
                f"{tuple(what)!r} lies outside of the picture, which has {width} × {height} pixels (upright): give "
                "pixels from its left upper corner."
            )
    if isinstance(what, Box) and not (what.left < what.right and what.top < what.bottom):
        raise BadInput(f"{tuple(what)!r} is no box: give left, top, right and bottom, in this order.")
