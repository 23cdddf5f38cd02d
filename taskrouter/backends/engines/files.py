"""What is known of a hub engine's files before it starts: the folder, its configuration, the bytes of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taskrouter.backends.engines.launch import Checkpoint
from taskrouter.errors import PreflightFailed
from taskrouter.memory.checkpoint import read_config, read_weights
from taskrouter.memory.estimate import ceiling, kv_cache_bytes
from taskrouter.memory.hub import locate
from taskrouter.types import ModelRequest

PICKLES = ("pt", "bin", "npcache", "mistral")
"""Load formats under which weights need not be safetensors."""


def find(request: ModelRequest) -> Checkpoint:
    """Find, or fetch, a model's files. Blocks, for as long as a download takes. Raises ``PreflightFailed`` and its kin.

    A single GGUF file is taken as it is.
    """
    file = Path(request.base_dir) / Path(request.model_id).expanduser()
    if file.is_file() and file.suffix == ".gguf":
        return Checkpoint(str(file.resolve()), file.stat().st_size)
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
    dummy = load_format == "dummy"
    weight_bytes = 0 if dummy else read_weights(folder, allow_pickle=allow_pickle).loaded_bytes(_dtype(request, config))
    width = 4 if (_dtype(request, config) or config.get("dtype") or config.get("torch_dtype")) == "float32" else 2
    return Checkpoint(str(folder.resolve()), weight_bytes, kv_cache_bytes(config, 1, width), ceiling(config))


def _dtype(request: ModelRequest, config: dict[str, Any]) -> str | None:
    """The dtype weights are converted to; ``None``: they stay as they are, quantized ones always."""
    if request.dtype in (None, "auto") or "quantization_config" in config:
        return None
    return request.dtype
