"""A Transformers Llama checkpoint as one GGUF file, for llama.cpp: weights, byte-level tokenizer and chat template.

Only what such a checkpoint needs: matrices of one kind, and GPT-2's way of splitting words. Transformers rotates each
value of a head's first half with one of its second, llama.cpp rotates neighbours: rows of the query and key weights
change places for that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, TokenType, get_tensor_name_map, quants
from safetensors.numpy import load_file


def write_gguf(checkpoint: Path, target: Path, *, kind: str = "F32") -> Path:
    """Write the checkpoint of a folder to ``target``, its matrices as this kind (``Q8_0``, …), and return that."""
    config = _json(checkpoint / "config.json")
    writer = GGUFWriter(target, "llama")
    _write_sizes(writer, config)
    _write_tokenizer(writer, _json(checkpoint / "tokenizer.json"))
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_chat_template((checkpoint / "chat_template.jinja").read_text())
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, values in load_file(checkpoint / "model.safetensors").items():
        target_name = names.get_name(name, try_suffixes=(".weight",))
        if target_name is None:
            raise ValueError(f"{checkpoint}: a Llama has no weight {name}")
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _pairs(values, config["head_dim"])
        stored = GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(target_name, quants.quantize(values.astype(np.float32), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _write_sizes(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _write_tokenizer(writer: GGUFWriter, tokenizer: dict[str, Any]) -> None:
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL if place in special else TokenType.NORMAL for place, _ in enumerate(tokens)]
    )
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_add_bos_token(False)


def _pairs(values: npt.NDArray[Any], head_dim: int) -> npt.NDArray[Any]:
    """Rows 0, 1, 2 … of each head's two halves, one of each half in turn."""
    rows, columns = values.shape
    return values.reshape(rows // head_dim, 2, head_dim // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
