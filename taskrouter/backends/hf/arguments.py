"""What an option may say to Transformers, and the refusal of everything else."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from taskrouter.backends.showing import OF_VIDEOS, showing_of, spelled
from taskrouter.errors import PreflightFailed
from taskrouter.media.showing import Showing
from taskrouter.types import ModelRequest

DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "float32": "float32",
        "fp32": "float32",
        "float": "float32",
        "float16": "float16",
        "fp16": "float16",
        "half": "float16",
        "bfloat16": "bfloat16",
        "bf16": "bfloat16",
    }
)
"""Spellings of the dtypes a model can be loaded as; ``auto`` is the checkpoint's own."""

OWN_KEYS = ("dtype", "torch_dtype", "quantization", "trust_remote_code", "revision", "devices", "device_map")


@dataclass(frozen=True, slots=True)
class Arguments:
    """An option's ``engine_args``, checked.

    attn_implementation
        ``eager``, ``sdpa``, ``flash_attention_2``, …: passed to ``from_pretrained``.
    use_safetensors
        ``false`` allows weights that exist only as pickles (``pytorch_model.bin``).
    torchao_config
        How ``quantization: torchao`` does it: ``int8wo``, ``int8dq`` or ``fp8wo``.
    gguf_file
        Which file ``quantization: gguf`` reads, where there are several.
    showing
        How a vision language model is shown videos (``video_frames``, ``video_layout``).
    """

    attn_implementation: str | None = None
    use_safetensors: bool = True
    torchao_config: str | None = None
    gguf_file: str | None = None
    showing: Showing = field(default_factory=Showing)


_TYPES: Mapping[str, type] = MappingProxyType(
    {
        "attn_implementation": str,
        "use_safetensors": bool,
        "torchao_config": str,
        "gguf_file": str,
    }
)
_ONLY_WITH: Mapping[str, str] = MappingProxyType({"torchao_config": "torchao", "gguf_file": "gguf"})
"""Keys that would do nothing without this ``quantization``."""


def check_arguments(request: ModelRequest) -> Arguments:
    """Check ``engine_args``. Raises ``PreflightFailed`` naming the key, what is allowed, and the nearest spelling."""
    known: dict[str, Any] = {}
    for key, value in request.engine_args.items():
        name = spelled(key)
        if name in OF_VIDEOS:
            continue
        if name not in _TYPES:
            raise PreflightFailed(
                f"{request.label}: engine_args has no key {key!r} for framework transformers; {_hint(name)}."
            )
        if type(value) is not _TYPES[name]:
            raise PreflightFailed(f"{request.label}: engine_args.{key} wants a {_TYPES[name].__name__}, not {value!r}.")
        if name in _ONLY_WITH and request.quantization != _ONLY_WITH[name]:
            raise PreflightFailed(
                f"{request.label}: engine_args.{key} goes with quantization: {_ONLY_WITH[name]}. Write that beside "
                "model_id, or remove it."
            )
        known[name] = value
    return Arguments(**known, showing=showing_of(request) or Showing())


def check_dtype(request: ModelRequest) -> str | None:
    """The dtype to load as, by torch's name; ``None`` is the checkpoint's own. Raises ``PreflightFailed``."""
    if request.dtype is None or request.dtype == "auto":
        return None
    if request.dtype not in DTYPES:
        raise PreflightFailed(
            f"{request.label}: dtype {request.dtype!r} is not one of auto, "
            f"{', '.join(DTYPES)}{_nearest(request.dtype, DTYPES)}."
        )
    return DTYPES[request.dtype]


def check_context(request: ModelRequest, ceiling: int | None) -> int | None:
    """The tokens a call may span: ``max_context``, never above what the model was built for."""
    wanted = request.max_context
    if wanted is None or wanted == "auto":
        return ceiling
    if isinstance(wanted, str) or wanted < 1:
        raise PreflightFailed(f"{request.label}: max_context wants a number of tokens or auto, not {wanted!r}.")
    if ceiling is not None and wanted > ceiling:
        raise PreflightFailed(
            f"{request.label}: max_context is {wanted}, but {request.model_id} was built for at most {ceiling} tokens. "
            f"Write {ceiling} or less."
        )
    return wanted


def _hint(name: str) -> str:
    if name in OWN_KEYS:
        return f"write {'devices' if name == 'device_map' else name.removeprefix('torch_')} beside model_id instead"
    known = {**_TYPES, **dict.fromkeys(OF_VIDEOS)}
    return f"known are {', '.join(known)}{_nearest(name, known)}"


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
