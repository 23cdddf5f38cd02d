"""What is known of a hub engine's files before it starts: the folder, its configuration, the bytes of its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from taskrouter.backends.engines.launch import Checkpoint
from taskrouter.backends.showing import OF_VIDEOS, showing_of, spelled
from taskrouter.errors import PreflightFailed
from taskrouter.media.showing import Showing
from taskrouter.memory.checkpoint import read_config, read_weights
from taskrouter.memory.estimate import QUANTIZED_BYTES, ceiling, kv_cache_bytes, quantized_bytes
from taskrouter.memory.hub import locate
from taskrouter.memory.senses import lacks, sees_pictures_only
from taskrouter.types import ModelRequest

PICKLES = ("pt", "bin", "npcache", "mistral")
"""Load formats under which weights need not be safetensors."""

ON_LOAD = {**QUANTIZED_BYTES, "fp8": 1.0}
"""Bytes a value of what engines quantize while they load, where the checkpoint isn't quantized already."""


def find(request: ModelRequest) -> Checkpoint:
    """Find, or fetch, a model's files. Blocks, for as long as a download takes. Raises ``PreflightFailed`` and its kin.

    A single GGUF file is taken as it is.
    """
    file = Path(request.base_dir) / os.path.expanduser(request.model_id)
    if file.is_file() and file.suffix == ".gguf":
        return Checkpoint(str(file.resolve()), file.stat().st_size, showing=showing_of(request))
    load_format = str(request.engine_args.get("load_format", request.engine_args.get("load-format", "auto")))
    allow_pickle = load_format in PICKLES
    folder = locate(
        request.model_id,
        revision=request.revision,
        base_dir=request.base_dir,
        allow_pickle=allow_pickle,
        allow_code=request.trust_remote_code,
    )
    config = read_config(folder)
    if isinstance(config.get("auto_map"), dict) and config["auto_map"] and not request.trust_remote_code:
        names = config.get("architectures") or ["its architecture"]
        raise PreflightFailed(
            f"{request.label}: {request.model_id} brings its own Python code for {names[0]} (auto_map in config.json), "
            "which runs with all your rights. If you trust it, write `trust_remote_code: true` in this option."
        )
    dtype = _dtype(request, config)
    weights = read_weights(folder, allow_pickle=allow_pickle)
    share = None if "quantization_config" in config else ON_LOAD.get(request.quantization or "")
    weight_bytes = weights.loaded_bytes(dtype) if share is None else quantized_bytes(weights, dtype, share)
    per_token = kv_cache_bytes(config, 1, 4 if dtype == "float32" else 2)
    if _latent(config):
        # Multi-head latent attention has nothing to split: every device keeps all of it.
        per_token *= request.devices if isinstance(request.devices, int) else max(len(request.devices), 1)
    showing = showing_of(request) or (Showing() if sees_pictures_only(folder, config) else None)
    return Checkpoint(
        str(folder.resolve()), weight_bytes, per_token, ceiling(config), _lacks(request, folder, config), showing
    )


def _lacks(request: ModelRequest, folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Raises ``PreflightFailed`` where the option says how videos are shown to a model that sees nothing."""
    found = lacks(folder, config)
    idle = [key for key in request.engine_args if spelled(key) in OF_VIDEOS]
    if idle and "image" in found:
        raise PreflightFailed(
            f"{request.label}: engine_args.{idle[0]} says how a model is shown videos, and {request.model_id} sees "
            f"none. Remove {idle[0]}."
        )
    return found


def _dtype(request: ModelRequest, config: dict[str, Any]) -> str | None:
    """The dtype weights are converted to; ``None``: they stay as they are, quantized ones always.

    Where the option doesn't say, both engines take a float32 checkpoint in 16 bits.
    """
    if "quantization_config" in config:
        return None
    if request.dtype in (None, "auto"):
        return "bfloat16" if (config.get("dtype") or config.get("torch_dtype")) == "float32" else None
    return request.dtype


def _latent(config: dict[str, Any]) -> bool:
    text = config.get("text_config")
    return bool(config.get("kv_lora_rank") or (isinstance(text, dict) and text.get("kv_lora_rank")))
