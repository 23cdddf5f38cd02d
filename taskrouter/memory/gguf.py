"""A GGUF file: which one of a folder, and what its tensors take once they are expanded.

Read by the package ``gguf``, which has to be there: who asks sees to that first.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from taskrouter.errors import CheckpointCorrupt, CheckpointMissing, PreflightFailed
from taskrouter.memory.checkpoint import BYTES_OF, Weights
from taskrouter.memory.headers import TensorInfo

NAME_OF = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Names in safetensors of what the values of a GGUF can be expanded to."""

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True, slots=True)
class Gguf:
    """What a file's header says."""

    weights: Weights
    has_chat_template: bool


def has_gguf(folder: Path, name: str | None) -> bool:
    """Whether this file is there, or any."""
    return any(folder.glob("*.gguf")) if name is None else (folder / name).is_file()


def find_gguf(folder: Path, name: str | None) -> Path:
    """A folder's GGUF file of this name, or the only one. Raises ``CheckpointMissing`` listing what is there."""
    there = sorted(file.name for file in folder.glob("*.gguf"))
    listed = f"It holds {', '.join(there[:8])}" if there else "It holds none"
    if name is None and len(there) != 1:
        what = f"{len(there)} GGUF files, and one is wanted" if there else "no GGUF file"
        todo = (
            f"{listed}: write engine_args: {{gguf_file: {there[0]}}}." if there else "Point model_id at one that does."
        )
        raise CheckpointMissing(f"{folder} has {what}. {todo}")
    file = folder / (there[0] if name is None else name)
    if not file.is_file():
        raise CheckpointMissing(f"{folder} has no {name}. {listed}. Correct engine_args.gguf_file.")
    if _PART.search(file.name):
        raise PreflightFailed(
            f"{file} is one part of a split GGUF, and Transformers reads whole ones only. Merge the parts with "
            "`llama-gguf-split --merge`."
        )
    return file


def read_gguf(file: Path, dtype: str) -> Gguf:
    """Read a file's header; its tensors are as large as they will be in this dtype. Raises ``CheckpointCorrupt``."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        shapes = [(tensor.name, tuple(int(size) for size in reversed(tensor.shape))) for tensor in reader.tensors]
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise CheckpointCorrupt(
            f"{file} is no whole GGUF file ({type(error).__name__}: {error}). Download it again."
        ) from error
    tensors = (TensorInfo(name, NAME_OF[dtype], shape, math.prod(shape) * BYTES_OF[dtype]) for name, shape in shapes)
    return Gguf(Weights((file,), tuple(tensors)), "tokenizer.chat_template" in reader.fields)
