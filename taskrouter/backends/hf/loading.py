"""Loading a checkpoint onto its devices, under the one lock that Transformers needs.

``from_pretrained`` swaps process-wide state (default dtype, initialisation functions) while it runs: two at once leave
parameters on the meta device and the process broken for good. So every load in this process holds ``LOAD_LOCK``,
whichever backend instance it belongs to.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskrouter.backends.hf.arguments import Arguments
from taskrouter.backends.hf.examine import Checkpoint
from taskrouter.backends.hf.failures import load_error
from taskrouter.backends.hf.families import PREPARES, Family
from taskrouter.backends.hf.gguf import bars_like_all_others
from taskrouter.backends.hf.prepare import pictures_and_text, sam2_processor
from taskrouter.backends.hf.quantization import on_load
from taskrouter.backends.hf.quiet import quiet
from taskrouter.backends.hf.recipe import Recipe, read_recipe
from taskrouter.backends.hf.stopping import Stop, stoppable
from taskrouter.backends.hf.storages import StorageRef, bytes_by_device, give_back, storages_of
from taskrouter.errors import CheckpointCorrupt, LoadFailed, OutOfMemory
from taskrouter.memory.estimate import working_bytes
from taskrouter.memory.ram import HostRam
from taskrouter.types import CPU, GIB, Charges, DeviceId, Footprint, ModelRequest

LOAD_LOCK = threading.Lock()


@dataclass(slots=True)
class Parts:
    """A loaded checkpoint: the module, what prepares its input (tokenizer or processor), and what it takes.

    ``recipe``: how one that embeds makes a vector of a text. ``pieces``: of a long input, how many are worked on at a
    time. ``arguments``: what its option said.
    """

    module: Any
    processor: Any
    device: str
    storages: tuple[StorageRef, ...]
    measured: Footprint
    recipe: Recipe | None = None
    pieces: int = 1
    arguments: Arguments = field(default_factory=Arguments)


def load_parts(
    request: ModelRequest, checkpoint: Checkpoint, devices: tuple[DeviceId, ...], charges: Charges, stop: Stop
) -> Parts:
    """Load. Blocks for as long as it takes, or until ``stop`` is set: call it in a thread of its own.

    Raises ``OutOfMemory``, ``LoadFailed`` or ``CheckpointCorrupt``, and has given all memory back when it does.
    """
    stop.acquire(LOAD_LOCK)
    try:
        bars = contextlib.nullcontext() if checkpoint.arguments.gguf_file is None else bars_like_all_others()
        with quiet(), stoppable(stop), bars:
            check_room(request.label, devices, charges)
            if checkpoint.arguments.gguf_file is not None and CPU not in devices:
                check_way(request.label, checkpoint.weights.stored_bytes)
            return _load(request, checkpoint, devices, charges, stop)
    except Exception as error:
        failure = load_error(error, request.label)
        # The tracebacks are gone: only cycles can still hold weights.
        give_back(collect=True)
        if failure is error:
            raise
        raise failure from error
    finally:
        LOAD_LOCK.release()


def check_room(label: str, devices: tuple[DeviceId, ...], charges: Charges) -> None:
    """See that what the books promise is really free, just before it is taken. Raises ``OutOfMemory``."""
    for device in devices:
        need = charges.get(device, 0)
        free = HostRam().available() if device == CPU else _cuda_free(device)
        if free < need:
            raise OutOfMemory(
                f"{label} was given {need / GIB:.2f} GiB on {device}, but only {free / GIB:.2f} GiB are really free "
                f"there: somebody else took it. Try again, or lower memory.devices.{device}.budget."
            )


def check_way(label: str, size: int) -> None:
    """See that RAM holds a GGUF, which is expanded there as a whole on its way to a GPU. Raises ``OutOfMemory``."""
    free = HostRam().available()
    if free < size:
        raise OutOfMemory(
            f"{label} is expanded in RAM before it goes to its device, which takes {size / GIB:.2f} GiB, and "
            f"{free / GIB:.2f} GiB are free. Free some, or write a smaller dtype."
        )


def _cuda_free(device: DeviceId) -> int:
    import torch

    # What torch's allocator has cached is ours to use, but counts as used for the driver until it is given back.
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(torch.device(device))[0])


def _load(
    request: ModelRequest, checkpoint: Checkpoint, devices: tuple[DeviceId, ...], charges: Charges, stop: Stop
) -> Parts:
    import transformers

    on_gpu = tuple(device for device in devices if device != CPU)
    before = {device: _reserved(device) for device in on_gpu}
    loader = getattr(transformers, checkpoint.family.value)
    stop.check()
    module, info = loader.from_pretrained(
        checkpoint.folder,
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code=request.trust_remote_code,
        use_safetensors=checkpoint.arguments.use_safetensors,
        dtype=checkpoint.dtype or "auto",
        **_optional(request, checkpoint),
        **_placement(devices, charges),
    )
    stop.check()
    _check_whole(request, module, info)
    _free_standing(module)
    module.eval()
    module.requires_grad_(requires_grad=False)
    processor = _processor(request, checkpoint)
    storages = storages_of(module)
    grown = {each: _reserved(each) - before[each] for each in on_gpu}
    measured = _measure(bytes_by_device(storages), grown, cache_bytes=checkpoint.cache_bytes)
    recipe = read_recipe(request.label, checkpoint.folder) if checkpoint.family is Family.EMBEDDING else None
    return Parts(
        module, processor, devices[0], storages, measured, recipe, pieces=request.pieces, arguments=checkpoint.arguments
    )


def _optional(request: ModelRequest, checkpoint: Checkpoint) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if checkpoint.arguments.attn_implementation is not None:
        options["attn_implementation"] = checkpoint.arguments.attn_implementation
    options.update(on_load(request, checkpoint.arguments, checkpoint.config))
    return options


def _placement(devices: tuple[DeviceId, ...], charges: Charges) -> dict[str, Any]:
    if devices == (CPU,):
        return {}
    if len(devices) == 1:
        return {"device_map": {"": str(devices[0])}}
    # Only the devices that were booked, and no more of each than was: accelerate fills every GPU it can see otherwise.
    return {
        "device_map": "balanced",
        "max_memory": {int(device.removeprefix("cuda:")): charges.get(device, 0) for device in devices},
    }


def _free_standing(module: Any) -> None:
    """Let buffers be no views: as they come from the file, each keeps its storage alive, whatever else it points at."""
    seen: dict[int, Any] = {}
    for each in module.modules():
        for name, buffer in each._buffers.items():
            if buffer is not None and buffer._is_view():
                each._buffers[name] = seen.setdefault(id(buffer), buffer.data)


def _check_whole(request: ModelRequest, module: Any, info: Mapping[str, Any]) -> None:
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise CheckpointCorrupt(
            f"{request.label}: {len(missing)} weights of {type(module).__name__} are not in the checkpoint (such as "
            f"{missing[0]}) and would be random. Fetch the whole model, or correct `architectures` in its config.json."
        )
    places = {str(place) for place in getattr(module, "hf_device_map", {}).values()}
    if places & {"cpu", "disk"}:
        raise OutOfMemory(f"{request.label} does not fit on its devices: parts of it would be left in RAM or on disk.")
    meta = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if meta:
        raise LoadFailed(f"{request.label}: {len(meta)} tensors were left without data (such as {meta[0]}).")


def _processor(request: ModelRequest, checkpoint: Checkpoint) -> Any:
    import transformers

    if checkpoint.family is Family.POINTED and checkpoint.config.get("model_type") != "sam":
        return sam2_processor(checkpoint.folder)
    how: dict[str, Any] = {"local_files_only": True, "trust_remote_code": request.trust_remote_code}
    if checkpoint.family not in PREPARES:
        return pictures_and_text(checkpoint.folder, **how)
    if checkpoint.arguments.gguf_file is not None:
        how["gguf_file"] = checkpoint.arguments.gguf_file
    return getattr(transformers, PREPARES[checkpoint.family]).from_pretrained(checkpoint.folder, **how)


def _measure(stored: Charges, reserved: Charges, *, cache_bytes: int) -> Footprint:
    """Weights as measured; working memory and KV cache as estimated, since nothing was asked of the model yet.

    On a GPU the allocator's own growth is the better figure, as it rounds up; but calls of other models may be growing
    it meanwhile, so it is believed only within a fifth of what the storages add up to.
    """
    host = stored.get(CPU, 0) if reserved else 0
    most = 0
    spans = {device: size for device, size in stored.items() if device in reserved} or stored
    for device, size in spans.items():
        grown = min(max(reserved.get(device, 0), size), size + size // 5)
        most = max(most, grown + working_bytes(size) + cache_bytes // len(spans))
    return Footprint(most, host)


def _reserved(device: DeviceId) -> int:
    import torch

    return int(torch.cuda.memory_reserved(torch.device(device)))
