"""What every call of a module needs: its input where the module is, labels checked, and a way to end early."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from taskrouter.backends.hf.loading import Parts
from taskrouter.errors import BadInput

_SHOWN = 20

MOST_LABELS = 1000
"""A zero-shot model reads all of them at once."""


class Size(NamedTuple):
    """A picture's pixels: what is remembered of it while its pass is waited for."""

    width: int
    height: int


class Stopped(Exception):
    """Nobody waits for the answer any more."""


@contextlib.contextmanager
def interruptible(module: Any, stop: threading.Event) -> Iterator[None]:
    """Within, each pass of the module raises ``Stopped`` once ``stop`` is set: a long answer ends early."""

    def look(*_: Any) -> None:
        if stop.is_set():
            raise Stopped

    hook = module.register_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def on_device(inputs: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """The tensors of a batch on the module's device, fractions in its dtype."""
    dtype = parts.module.dtype
    return {
        name: tensor.to(parts.device, dtype) if tensor.is_floating_point() else tensor.to(parts.device)
        for name, tensor in inputs.items()
    }


def only_known(labels: tuple[str, ...], module: Any) -> frozenset[str]:
    """The labels to answer with, of a module that has its own: all of them, or those asked for.

    Raises ``BadInput`` for one it was not trained for.
    """
    names = {str(name) for name in module.config.id2label.values()}
    if unknown := [label for label in labels if label not in names]:
        shown = ", ".join(sorted(names)[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        raise BadInput(f"labels names {unknown[0]!r}, which this model can't tell: it knows {shown}.")
    return frozenset(labels or names)


def some(labels: tuple[str, ...], parts: Parts) -> list[str]:
    """The labels for a model that has none of its own. Raises ``BadInput`` for none, too many, or too long ones."""
    if not labels:
        raise BadInput("this model has no labels of its own: say what to look for, such as labels=['a cat', 'a dog'].")
    if len(labels) > MOST_LABELS:
        raise BadInput(f"labels has {len(labels):,} names: give {MOST_LABELS} at most at a time.")
    text = getattr(parts.module.config, "text_config", None)
    most = getattr(text, "max_position_embeddings", None)
    if isinstance(most, int):
        for label, ids in zip(labels, parts.processor.tokenizer(list(labels))["input_ids"], strict=True):
            if len(ids) > most:
                raise BadInput(f"the label {label[:60]!r} comes to {len(ids)} tokens, and the model reads {most}.")
    return list(labels)


def place(module: Any) -> dict[str, Any]:
    """What a pipeline is told of where its module is: nothing of one that lies on several devices."""
    return {} if getattr(module, "hf_device_map", None) is not None else {"device": module.device}
