"""What a checkpoint folder holds: its configuration, and the exact bytes of its weights by dtype.

Safetensors only: other formats are pickles, which run code when opened, and are refused unless the option's
``engine_args`` say ``use_safetensors: false``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskrouter.errors import CheckpointCorrupt, CheckpointMissing, PreflightFailed
from taskrouter.memory.headers import FLOATS, TensorInfo, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"

BYTES_OF = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
"""Bytes per value of the dtypes a model can be loaded as."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one checkpoint. Tied tensors are stored, and counted, once.

    ``pickled_bytes`` is the size of weights that aren't safetensors, whose dtype can't be known without running them.
    """

    files: tuple[Path, ...]
    tensors: tuple[TensorInfo, ...]
    pickled_bytes: int = 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(tensor.bytes for tensor in self.tensors) + self.pickled_bytes

    def loaded_bytes(self, dtype: str | None) -> int:
        """Bytes once floating-point tensors are converted to this dtype (``None``: kept as they are)."""
        if dtype is None:
            return self.stored_bytes
        width = BYTES_OF[dtype]
        return self.pickled_bytes + sum(
            tensor.values * width if tensor.dtype in FLOATS else tensor.bytes for tensor in self.tensors
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's ``config.json``. Raises ``CheckpointMissing`` or ``CheckpointCorrupt``."""
    if not (folder / "config.json").is_file():
        raise CheckpointMissing(
            f"{folder} is no Transformers checkpoint: it has no config.json. Point model_id at the folder that has one."
        )
    return read_json(folder / "config.json")


def read_weights(folder: Path, *, allow_pickle: bool = False) -> Weights:
    """Find and measure a checkpoint's weights from its headers, reading no weight.

    Raises ``CheckpointMissing`` (no weights, or a shard that isn't there), ``CheckpointCorrupt`` (cut off,
    unreadable) and ``PreflightFailed`` (only pickled weights, and they aren't allowed).
    """
    if (folder / SINGLE).exists():
        return Weights((folder / SINGLE,), read_header(folder / SINGLE))
    if (folder / INDEX).exists():
        return _sharded(folder)
    pickles = tuple(sorted(path for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)))
    if not pickles:
        adapter = " It holds an adapter: point model_id at a merged model." if _is_adapter(folder) else ""
        raise CheckpointMissing(f"{folder} holds no weights: neither {SINGLE} nor {INDEX} is there.{adapter}")
    if not allow_pickle:
        raise PreflightFailed(
            f"{folder} has its weights only as pickles ({', '.join(path.name for path in pickles[:3])}), which can "
            "run code when opened. Convert them to safetensors (save_pretrained does), or, if you trust them, write "
            "`engine_args: {use_safetensors: false}`."
        )
    return _pickled(folder)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint. Raises ``CheckpointCorrupt`` naming the file."""
    data = _read_json(file)
    if not isinstance(data, dict):
        raise CheckpointCorrupt(f"{file} should hold a JSON object, not a {type(data).__name__}. Download it again.")
    return data


def read_json_objects(file: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects. Raises ``CheckpointCorrupt`` naming the file."""
    data = _read_json(file)
    if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
        raise CheckpointCorrupt(f"{file} should hold a JSON list of objects. Download it again.")
    return data


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointCorrupt(f"{file} is not readable JSON ({error}). Download it again.") from error


def _sharded(folder: Path) -> Weights:
    places = _shards_of(folder / INDEX)
    files = tuple(folder / name for name in sorted(set(places.values())))
    _require(folder, files, INDEX)
    tensors: list[TensorInfo] = []
    for file in files:
        found = read_header(file)
        tensors += found
        promised = {tensor for tensor, name in places.items() if name == file.name}
        lost = promised - {tensor.name for tensor in found}
        if lost:
            raise CheckpointCorrupt(
                f"{file} lacks {len(lost)} of the tensors that {INDEX} places there (such as {min(lost)}): files of "
                "different versions are mixed. Download all of them again."
            )
    return Weights(files, tuple(tensors))


def _pickled(folder: Path) -> Weights:
    if (folder / PICKLE).exists():
        files: tuple[Path, ...] = (folder / PICKLE,)
    elif (folder / PICKLE_INDEX).exists():
        files = tuple(folder / name for name in sorted(set(_shards_of(folder / PICKLE_INDEX).values())))
        _require(folder, files, PICKLE_INDEX)
    else:
        raise CheckpointMissing(
            f"{folder} holds no weights under a name Transformers reads ({SINGLE}, {INDEX}, {PICKLE})."
        )
    return Weights(files, (), sum(file.stat().st_size for file in files))


def _shards_of(index: Path) -> dict[str, str]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointCorrupt(f"{index} has no weight_map that places each tensor in a file. Download it again.")
    return places


def _require(folder: Path, files: tuple[Path, ...], index: str) -> None:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointMissing(
            f"{folder} lacks {len(missing)} of the {len(files)} weight files named by {index}: "
            f"{', '.join(missing[:5])}. Download them again."
        )


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists()
