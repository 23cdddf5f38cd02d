"""What one pass of a module takes beside its weights, by its input's size: how many inputs may be stacked.

Counted on torch's meta device, where tensors have sizes and no bytes, with the configurations that Transformers gives
each family by default (the published base sizes): every tensor a pass makes, while it lives.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from taskrouter.memory.estimate import working_bytes
from taskrouter.types import MIB

FAMILIES: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "ViT": ("ViTForImageClassification", "pixel_values", (1, 3, 224, 224)),
    "ViT, 8 pictures": ("ViTForImageClassification", "pixel_values", (8, 3, 224, 224)),
    "ResNet": ("ResNetForImageClassification", "pixel_values", (1, 3, 224, 224)),
    "Swin": ("SwinForImageClassification", "pixel_values", (1, 3, 224, 224)),
    "ConvNeXt": ("ConvNextForImageClassification", "pixel_values", (1, 3, 224, 224)),
    "YOLOS": ("YolosForObjectDetection", "pixel_values", (1, 3, 512, 864)),
    "RT-DETR": ("RTDetrForObjectDetection", "pixel_values", (1, 3, 640, 640)),
    "AST, 10 s": ("ASTForAudioClassification", "input_values", (1, 1024, 128)),
    "wav2vec 2.0, 10 s": ("Wav2Vec2ForSequenceClassification", "input_values", (1, 160_000)),
}


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that the tensors made by ``run`` take at a time."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.alive: dict[int, int] = {}
            self.now = self.peak = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    self.count(tensor.untyped_storage())
            return out

        def count(self, storage: Any) -> None:
            key = storage._cdata
            if key not in self.alive:
                self.alive[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, key)

        def forget(self, key: int) -> None:
            self.now -= self.alive.pop(key)

    with torch.inference_mode(), Counter() as counter:
        run()
    return int(counter.peak)


async def main() -> None:
    import torch
    import transformers

    table = Table(title="one pass, float32 (MiB)", title_justify="left")
    for column in ("family", "input", "takes", "times the input", "booked to work in"):
        table.add_column(column, justify="left" if column == "family" else "right")
    for family, (name, argument, shape) in FAMILIES.items():
        kind = getattr(transformers, name)
        with torch.device("meta"):
            module, given = kind(kind.config_class()).eval(), torch.zeros(shape)

        def run(module: Any = module, inputs: dict[str, Any] = {argument: given}) -> None:  # noqa: B006  one each
            module(**inputs)

        peak, booked = peak_bytes(run), working_bytes(4 * sum(each.numel() for each in module.parameters()))
        table.add_row(
            family,
            f"{given.nbytes / MIB:.2f}",
            f"{peak / MIB:.1f}",
            f"{peak / given.nbytes:.0f}",
            f"{booked / MIB:.0f}",
        )
    Console(width=110).print(table)
