"""One pass of a module for several calls: inputs of equal shape are stacked, and each call gets its row.

Nothing is padded, so a call's answer is what it would be alone, but for the last bits of floating point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskrouter.backends.hf.batching import Call, Others, sweep
from taskrouter.backends.hf.calling import on_device
from taskrouter.backends.hf.loading import Parts
from taskrouter.backends.hf.storages import bytes_by_device
from taskrouter.memory.estimate import working_bytes

PICTURES_TAKE, SOUNDS_TAKE = 32, 200
"""Bytes that a pass takes for each byte of its input, about the most that ``bench activations`` counts for families
people use: inputs are stacked as long as that fits the working memory booked for the model."""


def run_passes(parts: Parts, calls: Sequence[Call], _: Others) -> None:
    """Meet the wants of calls, each a mapping of tensors that are the module's arguments."""
    for planned in _groups(parts, calls):
        sweep(calls)
        group = [call for call in planned if call.wants is not None]
        if group:
            outputs = _outputs(parts, [call.wants for call in group])
            for place, call in enumerate(group):
                call.goes_on(outputs if len(group) == 1 else _row(outputs, place, len(group)))


def _groups(parts: Parts, calls: Sequence[Call]) -> list[list[Call]]:
    """Calls whose inputs can be stacked, as many at a time as the memory booked allows."""
    room = working_bytes(sum(bytes_by_device(parts.storages).values()))
    alike: dict[Any, list[Call]] = {}
    for call in calls:
        shape = _shape(call.wants)
        alike.setdefault(id(call) if shape is None else shape, []).append(call)
    groups = []
    for group in alike.values():
        most = max(1, room // _takes(group[0].wants))
        groups += [group[start : start + most] for start in range(0, len(group), most)]
    return groups


def _takes(inputs: Mapping[str, Any]) -> int:
    """About the bytes that a pass takes for one input."""
    size = sum(tensor.nbytes for tensor in inputs.values())
    return max(1, int(size) * (PICTURES_TAKE if "pixel_values" in inputs else SOUNDS_TAKE))


def _shape(inputs: Mapping[str, Any]) -> Any:
    """What must be equal to be stacked; ``None`` where there is no row for the call."""
    if any(tensor.shape[:1] != (1,) for tensor in inputs.values()):
        return None
    return tuple(sorted((name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in inputs.items()))


def _outputs(parts: Parts, wants: Sequence[Mapping[str, Any]]) -> Any:
    import torch

    inputs = {name: torch.cat([each[name] for each in wants]) for name in wants[0]} if len(wants) > 1 else wants[0]
    with torch.inference_mode():
        return parts.module(**on_device(inputs, parts))


def _row(outputs: Any, place: int, count: int) -> Any:
    """What the module answers about one of the stacked inputs, as if it had been alone."""
    import torch

    return type(outputs)(
        **{
            name: value[place : place + 1]
            for name, value in outputs.items()
            if isinstance(value, torch.Tensor) and value.shape[:1] == (count,)
        }
    )
