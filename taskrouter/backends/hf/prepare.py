"""What prepares pictures where Transformers' own class for a family would want torchvision.

Videos come as pictures here, so that what would prepare videos is never asked.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from taskrouter.memory.checkpoint import read_json

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


def pictures_and_text(folder: Path, **how: Any) -> Any:
    """The ``AutoProcessor`` of a checkpoint, without the part for videos where torchvision isn't there for it."""
    import transformers

    kind = None if importlib.util.find_spec("torchvision") else _class_named(folder)
    if kind is None or "video_processor" not in kind.get_attributes():
        return transformers.AutoProcessor.from_pretrained(folder, **how)
    left = [name for name in kind.get_attributes() if name != "video_processor"]
    # By the same name: some of Transformers looks at it.
    lesser: Any = type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: list(left))})
    return lesser.from_pretrained(folder, **how)


def _class_named(folder: Path) -> Any:
    """The class of processor that a checkpoint names, of those that Transformers has."""
    import transformers

    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and (named := read_json(folder / name).get("processor_class")):
            return getattr(transformers, str(named), None)
    return None
