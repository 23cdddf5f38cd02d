"""How much memory a model will take before it was ever measured: weights, working memory, KV cache.

The rule: weights as loaded, exact from the headers; plus working memory of 20 % of them (accelerate's documented
margin for inference: "up to an additional 20 %"), at least ``WORKING_FLOOR``; plus the KV cache of ``max_context``
tokens where that is written, with the per-token formulas of multi-head, grouped-query and latent (MLA) attention, and
sliding windows counted at most whole. Over several devices the weights are split, with one largest tensor of slack on
each, since a layer isn't cut in two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskrouter.memory.checkpoint import BYTES_OF, Weights
from taskrouter.memory.headers import FLOATS
from taskrouter.types import MIB, Footprint

WORKING_SHARE = 0.2
WORKING_FLOOR = 32 * MIB
"""cuBLAS alone takes a 32 MiB workspace on recent GPUs; nothing runs in much less on a CPU."""

QUANTIZED_BYTES = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}
"""Bytes per weight of a linear layer quantized while loading; 4-bit blocks of 64 carry a 4-byte scale."""


def working_bytes(weight_bytes: int) -> int:
    """Bytes of activations and workspaces that running a model takes beside its weights."""
    return max(int(weight_bytes * WORKING_SHARE), WORKING_FLOOR)


def estimate(
    weights: Weights,
    *,
    dtype: str | None,
    cache_bytes: int = 0,
    share: float | None = None,
    devices: int = 1,
) -> Footprint:
    """Estimate a model's footprint on each of its devices.

    ``dtype`` is the one weights are converted to, ``cache_bytes`` the KV cache (``kv_cache_bytes``); ``share`` the
    bytes a value of linear layers that are quantized while loading, ``None`` where they aren't.
    """
    loaded = weights.loaded_bytes(dtype) if share is None else quantized_bytes(weights, dtype, share)
    total = loaded + cache_bytes
    if devices > 1:
        largest = max((tensor.bytes for tensor in weights.tensors), default=0)
        total = min(-(-total // devices) + largest, total)
    return Footprint(total + working_bytes(-(-loaded // devices)))


def ceiling(config: Mapping[str, Any]) -> int | None:
    """The longest context the model was built for, where its configuration says."""
    text = config.get("text_config")
    for values in (config, text if isinstance(text, dict) else {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(values.get(key), int):
                return int(values[key]) - _positions_lost(values)
    return None


_COUNT_FROM_THE_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "ibert", "esm"}
)
"""Families whose first place is the one after the padding token's number."""


def _positions_lost(values: Mapping[str, Any]) -> int:
    """Rows of the table of places that no token can have."""
    if values.get("model_type") not in _COUNT_FROM_THE_PADDING:
        return 0
    padding = values.get("pad_token_id")
    return (padding if isinstance(padding, int) else 1) + 1


def kv_cache_bytes(config: Mapping[str, Any], context: int, width: int) -> int:
    """Bytes of a KV cache of ``context`` tokens, ``width`` bytes a value.

    Per layer and token: ``kv_heads × head_dim × 2`` values, or ``kv_lora_rank + qk_rope_head_dim`` with latent
    attention. Layers with a sliding window keep at most the window; linear-attention layers keep no cache per token.
    """
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else None
    values: Mapping[str, Any] = text if text is not None else config
    layers = int(values.get("num_hidden_layers") or values.get("n_layer") or 0)
    heads = int(values.get("num_attention_heads") or values.get("n_head") or 0)
    hidden = int(values.get("hidden_size") or values.get("n_embd") or 0)
    if not (layers and heads):
        return 0
    if values.get("kv_lora_rank"):
        per_token = int(values["kv_lora_rank"]) + int(values.get("qk_rope_head_dim") or 0)
    else:
        head_dim = int(values.get("head_dim") or hidden // heads)
        per_token = int(values.get("num_key_value_heads") or heads) * head_dim * 2
    window = values.get("sliding_window") if values.get("use_sliding_window", True) else None
    kinds = values.get("layer_types") or ["sliding_attention" if window else "full_attention"] * layers
    tokens = 0
    for kind in kinds:
        if kind == "full_attention":
            tokens += context
        elif "sliding" in kind or "chunked" in kind:
            tokens += min(context, int(window or context))
    return tokens * per_token * width


def quantized_bytes(weights: Weights, dtype: str | None, share: float) -> int:
    """Bytes of weights whose linear layers are quantized while loading, to ``share`` bytes a value."""
    # What bitsandbytes replaces are the linear layers; embeddings, norms and the output head keep the load dtype.
    total, width = 0.0, 2 if dtype is None else BYTES_OF[dtype]
    for tensor in weights.tensors:
        linear = len(tensor.shape) == 2 and "embed" not in tensor.name and "lm_head" not in tensor.name
        if tensor.dtype not in FLOATS:
            total += tensor.bytes
        else:
            total += tensor.values * (share if linear else width)
    return int(total) + int(weights.pickled_bytes * share / 2)
