"""What prepares pictures where Transformers' own class for a family would want torchvision.

Videos come as pictures here, so that what would prepare videos is never asked.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from taskrouter.errors import MissingDependency
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
    names = [] if kind is None else kind.get_attributes()
    if names[-1:] != ["video_processor"]:
        return transformers.AutoProcessor.from_pretrained(folder, **how)
    return _without_videos(kind, names[:-1]).from_pretrained(folder, **how)


def check_pictures(label: str, folder: Path) -> None:
    """See that Transformers' class for a checkpoint's pictures can be had here. Raises ``MissingDependency``."""
    import transformers

    try:
        transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (ImportError, ValueError) as error:
        if "torchvision" not in str(error).lower():
            raise
        raise MissingDependency(
            f"{label}: what prepares its pictures needs torchvision, which is not installed: `pip install "
            "torchvision`, or choose another model."
        ) from error


def _without_videos(kind: Any, names: list[str]) -> Any:
    """This class of processor with these parts only."""

    class Lesser(kind):  # type: ignore[misc]
        video_processor = SimpleNamespace(num_frames=None, fps=None)  # what SmolVLM's asks even about pictures

        @classmethod
        def get_attributes(cls) -> list[str]:
            return list(names)

        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
            return [*super()._get_arguments_from_pretrained(*args, **kwargs), None]

    Lesser.__name__ = kind.__name__  # some of Transformers looks at it
    return Lesser


def _class_named(folder: Path) -> Any:
    """The class of processor that a checkpoint names, of those that Transformers has."""
    import transformers

    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and (named := read_json(folder / name).get("processor_class")):
            return getattr(transformers, str(named), None)
    return None
