"""What both packaged engines' command lines have in common: engine_args to words, contexts, and what a start needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskrouter.backends.engines.launch import Checkpoint, Start
from taskrouter.errors import PreflightFailed
from taskrouter.memory.estimate import working_bytes
from taskrouter.residency.messages import size
from taskrouter.types import GIB, MIB, ModelRequest

GPU_OVERHEAD = int(0.6 * GIB) + GIB
"""A CUDA context (0.3–0.6 GiB a process was seen), and what graphs and collectives take beside it (estimated)."""
CPU_OVERHEAD = 2 * GIB
"""The engine's processes themselves, imports included: 1.9 GiB (vLLM 0.32) and 1.6 GB (SGLang 0.5.23) were measured."""
CONTEXT_STEP = 512
USUAL_CONTEXT = 8192
"""Tokens that an undeclared need counts cache for, where the option doesn't say and the model can hold more."""
LEAST_CACHE = 64 * MIB


def overhead(*, on_gpu: bool) -> int:
    """Bytes an engine takes on each device beside weights, activations and KV cache."""
    return GPU_OVERHEAD if on_gpu else CPU_OVERHEAD


def need(request: ModelRequest, checkpoint: Checkpoint, *, on_gpu: bool, max_concurrency: int | None) -> int:
    """Estimated bytes on each device, for an option that declares none.

    Weights, working memory (as everywhere: 20 %), the engine's own overhead, and the KV cache of one request of
    ``max_context`` tokens. More cache, for more requests side by side, is what a declared ``vram_gb`` is for.
    """
    spans = _spans(request)
    weights = -(-checkpoint.weight_bytes // spans)
    context = request.max_context if isinstance(request.max_context, int) else None
    tokens = context or min(checkpoint.ceiling or USUAL_CONTEXT, USUAL_CONTEXT)
    cache = max(-(-tokens * checkpoint.kv_bytes_per_token // spans), LEAST_CACHE)
    return weights + working_bytes(weights) + cache + overhead(on_gpu=on_gpu)


def cache_bytes(request: ModelRequest, checkpoint: Checkpoint, start: Start) -> int:
    """What is left of the smallest grant for the KV cache on one device. Raises ``PreflightFailed`` where nothing is.

    ``granted − weights − working memory − overhead``, the fixed part of the plan in docs/design.md.
    """
    weights = -(-checkpoint.weight_bytes // len(start.places))
    granted = min(place.granted for place in start.places)
    fixed = weights + working_bytes(weights) + overhead(on_gpu=start.on_gpu)
    left = granted - fixed
    if left < 0:
        raise PreflightFailed(
            f"{request.label}: {size(granted)} on {start.places[0].device} leave no room for a KV cache beside "
            f"{size(weights)} of weights, {size(working_bytes(weights))} to work in and the engine's own "
            f"{size(overhead(on_gpu=start.on_gpu))}. Raise vram_gb to at least {(fixed + LEAST_CACHE) / GIB:.1f}."
        )
    return max(left, LEAST_CACHE)


def context(request: ModelRequest, checkpoint: Checkpoint, start: Start) -> int | None:
    """Tokens one request may span: as written, or for ``auto`` the most that fits. ``None``: the engine's own choice.

    ``min(floor(cache / bytes per token), ceiling)``, rounded down to 512. Raises ``PreflightFailed``.
    """
    wanted = request.max_context
    if wanted is None:
        return None
    if isinstance(wanted, int):
        if wanted < 1 or (checkpoint.ceiling is not None and wanted > checkpoint.ceiling):
            raise PreflightFailed(
                f"{request.label}: max_context is {wanted}, but {request.model_id} was built for 1 to "
                f"{checkpoint.ceiling} tokens. Write {checkpoint.ceiling} or less."
            )
        return wanted
    if wanted != "auto":
        raise PreflightFailed(f"{request.label}: max_context wants a number of tokens or auto, not {wanted!r}.")
    if not checkpoint.kv_bytes_per_token:
        return checkpoint.ceiling
    room = cache_bytes(request, checkpoint, start) * len(start.places) // checkpoint.kv_bytes_per_token
    fits = min(room, checkpoint.ceiling) if checkpoint.ceiling is not None else room
    if fits < CONTEXT_STEP:
        return fits
    return fits // CONTEXT_STEP * CONTEXT_STEP


def words(request: ModelRequest, own: Mapping[str, str]) -> Iterator[str]:
    """An option's ``engine_args`` as command-line words. ``own`` are the flags we write, and what to write instead.

    ``true`` is the bare flag, ``false`` its ``--no-`` form, a list several words, a mapping JSON. Raises
    ``PreflightFailed`` for a flag of ours.
    """
    for key, value in request.engine_args.items():
        name = key.lstrip("-").replace("_", "-")
        if name in own:
            raise PreflightFailed(
                f"{request.label}: engine_args.{key} is what taskrouter writes itself; {own[name]} instead."
            )
        if value is None or value is True:
            yield f"--{name}"
        elif value is False:
            yield f"--no-{name}"
        elif isinstance(value, Mapping):
            yield from (f"--{name}", json.dumps(_plain(value)))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield from (f"--{name}", *(str(item) for item in value))
        else:
            yield from (f"--{name}", str(value))


def visible(start: Start) -> dict[str, str]:
    """The environment that shows an engine its GPUs and no other: by UUID, since an index means other things to NVML
    and to CUDA. On the CPU: none.
    """
    if not start.on_gpu:
        return {"CUDA_VISIBLE_DEVICES": ""}
    named = [place.uuid or place.device.removeprefix("cuda:") for place in start.places]
    return {"CUDA_VISIBLE_DEVICES": ",".join(named)}


def fraction(part: int, whole: int) -> str:
    """A share of a device, rounded down to four digits: a grant is never exceeded."""
    return f"{max(part * 10_000 // max(whole, 1), 1) / 10_000:.4f}"


def _spans(request: ModelRequest) -> int:
    return request.devices if isinstance(request.devices, int) else max(len(request.devices), 1)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
