"""``depth``: how far away each pixel of a picture is."""

from __future__ import annotations

import threading
from typing import Any, Literal

from taskrouter.backends.hf.batching import Steps
from taskrouter.backends.hf.calling import Size
from taskrouter.backends.hf.families import Family
from taskrouter.backends.hf.loading import Parts
from taskrouter.errors import BadInput
from taskrouter.media.image import load_image
from taskrouter.media.limits import MediaLimits
from taskrouter.verbs import Depth, DepthRequest


def depth(parts: Parts, family: Family, request: DepthRequest, limits: MediaLimits, stop: threading.Event) -> Steps:
    """Tell the depth of one image: wants a pass of the module, returns a ``Depth``. Raises ``BadInput``."""
    import torch

    image = load_image(request.image, limits)
    least = getattr(parts.processor, "size_divisor", None) or 1
    if min(image.size) < least:
        raise BadInput(
            f"the image has {image.width} × {image.height} pixels, and this model looks at {least} × {least} at least: "
            "give a larger one."
        )
    size, inputs = Size(*image.size), dict(parts.processor(images=image, return_tensors="pt"))
    del image  # others may wait with as large a one
    outputs = yield inputs
    coarse = outputs.predicted_depth.float()
    # As each family's own processor does, but for pictures one pixel wide, too.
    fine = torch.nn.functional.interpolate(
        coarse.unsqueeze(1), size=(size.height, size.width), mode="bicubic", align_corners=False
    )[0, 0]
    if not bool(fine.isfinite().all()):
        raise ArithmeticError("some depths are no numbers; load it in a wider dtype, such as dtype: float32")
    return Depth(fine.cpu().numpy(), unit_of(parts.module.config))


def unit_of(config: Any) -> Literal["m", "relative"]:
    """What a model's values mean: its configuration says so, or its family (GLPN learns metres only)."""
    told = getattr(config, "depth_estimation_type", None)
    metres = told == "metric" if told is not None else config.model_type == "glpn"
    return "m" if metres else "relative"
