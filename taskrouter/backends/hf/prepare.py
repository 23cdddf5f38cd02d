"""What prepares pictures where Transformers' own class for a family would want torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_OWN = ("do_resize", "do_rescale", "do_normalize", "rescale_factor")


def sam2_processor(folder: Path) -> Any:
    """SAM 2's pictures by Pillow: all of the picture onto its square, the proportions let go; then as the file says."""
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    told, _ = ViTImageProcessorPil.get_image_processor_dict(folder)
    return ViTImageProcessorPil(
        size=told.get("size") or {"height": 1024, "width": 1024},
        image_mean=told.get("image_mean") or IMAGENET_DEFAULT_MEAN,
        image_std=told.get("image_std") or IMAGENET_DEFAULT_STD,
        resample=told.get("resample", PILImageResampling.BILINEAR),
        **{name: told[name] for name in _OWN if name in told},
    )
