"""Checkpoints measured from their headers, and everything that can be wrong with one."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from taskrouter.errors import CheckpointCorrupt, CheckpointMissing, PreflightFailed
from taskrouter.memory.checkpoint import INDEX, SINGLE, read_config, read_weights
from taskrouter.memory.estimate import QUANTIZED_BYTES, WORKING_FLOOR, estimate, kv_cache_bytes, working_bytes
from taskrouter.memory.hub import locate
from taskrouter.types import GIB, Footprint

Shape = tuple[int, ...]
WIDTH = {"F32": 4, "BF16": 2, "I64": 8, "U8": 1}


def safetensors(tensors: Mapping[str, tuple[str, Shape]], *, cut: int = 0, extra: int = 0) -> bytes:
    """Write the format by hand, so that the reader isn't tested against its own idea of it."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, (dtype, shape) in tensors.items():
        size = WIDTH[dtype]
        for side in shape:
            size *= side
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    header = json.dumps(described).encode()
    return struct.pack("<Q", len(header)) + header + bytes(place + extra - cut)


A = {"a": ("F32", (10, 10)), "ids": ("I64", (5,))}
B = {"b": ("BF16", (100,))}


def single(folder: Path, **options: int) -> Path:
    (folder / SINGLE).write_bytes(safetensors(A, **options))
    return folder


def sharded(folder: Path) -> Path:
    (folder / "model-00001-of-00002.safetensors").write_bytes(safetensors(A))
    (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors(B))
    places = {"a": 1, "ids": 1, "b": 2}
    index = {"weight_map": {name: f"model-0000{shard}-of-00002.safetensors" for name, shard in places.items()}}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_bytes_are_exact_per_dtype_and_converted_only_where_they_are_floats(tmp_path: Path) -> None:
    weights = read_weights(sharded(tmp_path))
    assert {tensor.dtype: tensor.bytes for tensor in weights.tensors} == {"F32": 400, "I64": 40, "BF16": 200}
    assert weights.stored_bytes == weights.loaded_bytes(None) == 640
    assert weights.loaded_bytes("float32") == 400 + 40 + 400
    assert weights.loaded_bytes("bfloat16") == 200 + 40 + 200
    assert [file.name[:11] for file in weights.files] == ["model-00001", "model-00002"]


def test_a_single_file_is_preferred_to_shards(tmp_path: Path) -> None:
    assert read_weights(single(sharded(tmp_path))).stored_bytes == 440


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointMissing, match=r"lacks 1 of the 2 weight files .*model-00002-of-00002.safetensors"):
        read_weights(tmp_path)


def test_a_shard_of_another_version_is_found_out(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-00002-of-00002.safetensors").write_bytes(safetensors({"c": ("BF16", (3,))}))
    with pytest.raises(CheckpointCorrupt, match="such as b"):
        read_weights(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_named(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(CheckpointCorrupt, match=INDEX):
        read_weights(tmp_path)


@pytest.mark.parametrize(("options", "what"), [({"cut": 1}, "cut off"), ({"extra": 1}, "too long")])
def test_a_file_of_the_wrong_length_is_corrupt(tmp_path: Path, options: dict[str, int], what: str) -> None:
    with pytest.raises(CheckpointCorrupt, match=what):
        read_weights(single(tmp_path, **options))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234",
        struct.pack("<Q", 1 << 40),
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        safetensors({"a": ("F32", (4,))}).replace(b"[0, 16]", b"[0, 99]"),
        safetensors({"a": ("F32", (4,))}).replace(b"[0, 16]", b"[-16,0]"),
        safetensors({"a": ("F32", (4,))}).replace(b'"F32"', b'"F99"'),
        safetensors({"a": ("F32", (4,))}).replace(b'"shape"', b'"spahe"'),
    ],
)
def test_what_is_no_safetensors_file_is_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=SINGLE):
        read_weights(tmp_path)


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointCorrupt, match="git lfs pull"):
        read_weights(tmp_path)


def test_pickled_weights_are_refused_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(77))
    with pytest.raises(PreflightFailed, match="use_safetensors: false"):
        read_weights(tmp_path)
    assert read_weights(tmp_path, allow_pickle=True).stored_bytes == 77


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match="holds no weights"):
        read_weights(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointMissing, match="adapter"):
        read_weights(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"1")
    with pytest.raises(CheckpointMissing, match="under a name"):
        read_weights(tmp_path, allow_pickle=True)


def test_a_config_that_is_not_there_or_not_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"config\.json"):
        read_config(tmp_path)
    for text in (b"{", b"3", b"\xff"):
        (tmp_path / "config.json").write_bytes(text)
        with pytest.raises(CheckpointCorrupt, match=r"config\.json"):
            read_config(tmp_path)


# --- where it is ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import huggingface_hub.constants as constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def snapshot_in(cache: Path) -> Path:
    commit = "0" * 40
    folder = cache / "models--org--tiny" / "snapshots" / commit
    folder.mkdir(parents=True)
    refs = cache / "models--org--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    (folder / "config.json").write_text("{}")
    return single(folder)


def test_a_local_folder_is_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert locate("models", base_dir=tmp_path) == tmp_path / "models"
    assert locate(str(tmp_path / "models"), base_dir="/nowhere") == tmp_path / "models"


@pytest.mark.parametrize("model_id", ["./gone", "a/b/c", "/no/such/folder", "~/no-such-folder-here"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path, model_id: str) -> None:
    with pytest.raises(CheckpointMissing, match="no such folder"):
        locate(model_id, base_dir=tmp_path)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("")
    with pytest.raises(CheckpointMissing, match="is a file"):
        locate("m.gguf", base_dir=tmp_path)


def test_a_complete_snapshot_in_the_cache_is_used_offline(hub_cache: Path, tmp_path: Path) -> None:
    folder = snapshot_in(hub_cache)
    assert locate("org/tiny", base_dir=tmp_path) == folder


def test_offline_a_model_that_is_not_in_the_cache_says_how_to_fetch_it(hub_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"HF_HUB_OFFLINE.*hf download org/gone --revision v2"):
        locate("org/gone", revision="v2", base_dir=tmp_path)


def test_an_interrupted_download_is_not_taken_for_the_model(hub_cache: Path, tmp_path: Path) -> None:
    (snapshot_in(hub_cache) / SINGLE).unlink()
    with pytest.raises(CheckpointMissing, match="nor complete in the Hugging Face cache"):
        locate("org/tiny", base_dir=tmp_path)


def test_a_hub_that_cannot_be_reached_and_a_full_disk_are_told_apart(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import huggingface_hub.constants as constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    trouble: list[Exception] = [ConnectionError("no route to host"), OSError(28, "No space left on device")]

    def snapshot_download(model_id: str, *, local_files_only: bool = False, **_: object) -> str:
        raise LocalEntryNotFoundError(model_id) if local_files_only else trouble.pop(0)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointMissing, match=r"can't be reached .ConnectionError.*hf download org/tiny"):
        locate("org/tiny", base_dir=tmp_path)
    with pytest.raises(PreflightFailed, match="disk is full"):
        locate("org/tiny", base_dir=tmp_path)


@pytest.mark.parametrize(
    ("kind", "expected", "message"),
    [
        ("GatedRepoError", PreflightFailed, "accept its terms"),
        ("RevisionNotFoundError", CheckpointMissing, "no revision 'v9'"),
        ("RepositoryNotFoundError", CheckpointMissing, "Correct model_id, or set HF_TOKEN"),
        ("HfHubHTTPError", CheckpointMissing, "can't be reached"),
    ],
)
def test_what_the_hub_answers_becomes_what_to_do(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, expected: type[Exception], message: str
) -> None:
    import huggingface_hub
    import huggingface_hub.constants as constants
    from huggingface_hub import errors

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    answer = getattr(errors, kind).__new__(getattr(errors, kind))  # its constructor wants a whole HTTP response

    def snapshot_download(model_id: str, *, local_files_only: bool = False, **_: object) -> str:
        raise errors.LocalEntryNotFoundError(model_id) if local_files_only else answer

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(expected, match=message):
        locate("org/tiny", revision="v9", base_dir=tmp_path)


def test_a_download_asks_for_safetensors_only_and_draws_no_bar(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import huggingface_hub.constants as constants
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import are_progress_bars_disabled

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: list[list[str]] = []

    def snapshot_download(
        model_id: str, *, local_files_only: bool = False, allow_patterns: list[str] | None = None, **_: object
    ) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError(model_id)
        assert are_progress_bars_disabled()
        asked.append(allow_patterns or [])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    before = are_progress_bars_disabled()
    assert locate("org/tiny", base_dir=tmp_path) == tmp_path
    assert locate("org/tiny", base_dir=tmp_path, allow_pickle=True, allow_code=True) == tmp_path
    assert are_progress_bars_disabled() == before
    assert "*.safetensors" in asked[0]
    assert not {"*.bin", "*.py"} & set(asked[0])
    assert {"*.bin", "*.py"} <= set(asked[1])


# --- how much it takes ------------------------------------------------------------------------------------------------


def test_working_memory_is_a_fifth_with_a_floor() -> None:
    assert working_bytes(10 * GIB) == 2 * GIB
    assert working_bytes(1) == WORKING_FLOOR


def test_an_estimate_is_weights_working_memory_and_cache(tmp_path: Path) -> None:
    weights = read_weights(sharded(tmp_path))
    plain = estimate(weights, dtype="bfloat16")
    assert plain == Footprint(440 + WORKING_FLOOR)
    assert estimate(weights, dtype="bfloat16", cache_bytes=512) == Footprint(plain.device_bytes + 512)
    # over two devices: half of the weights, and room for one tensor that can't be cut
    assert estimate(weights, dtype=None, devices=2).device_bytes == 320 + 400 + WORKING_FLOOR - 80


def test_quantizing_while_loading_shrinks_the_linear_layers(tmp_path: Path) -> None:
    tensors = {"layers.0.q_proj.weight": ("F32", (64, 64)), "embed_tokens.weight": ("BF16", (8, 8))}
    (tmp_path / SINGLE).write_bytes(safetensors(tensors))
    weights = read_weights(tmp_path)

    def need(share: float, dtype: str | None = None) -> int:
        return estimate(weights, dtype=dtype, share=share).device_bytes - WORKING_FLOOR

    assert need(QUANTIZED_BYTES["4bit"]) == 4096 * 9 // 16 + 128
    assert need(QUANTIZED_BYTES["8bit"]) == 4096 + 128
    assert need(QUANTIZED_BYTES["8bit"], "float32") == 4096 + 256


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # the figure an engine's own log was checked against: 512 bytes a token
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}, 512),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}, 2 * 64 * 2 * 2),
        ({"n_layer": 2, "n_head": 4, "n_embd": 64}, 2 * 64 * 2 * 2),
        ({"num_hidden_layers": 3, "num_attention_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 4}, 3 * 20 * 2),
        ({"text_config": {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8}}, 8 * 2 * 2),
        ({"num_hidden_layers": 1}, 0),
    ],
)
def test_cache_bytes_per_token(config: dict[str, Any], expected: int) -> None:
    assert kv_cache_bytes(config, 1000, 2) == 1000 * expected


def test_a_sliding_window_bounds_its_layers_and_linear_attention_keeps_nothing() -> None:
    config = {"num_hidden_layers": 3, "num_attention_heads": 1, "hidden_size": 8, "sliding_window": 10}
    assert kv_cache_bytes(config, 1000, 2) == 3 * 10 * 32
    kinds = ["full_attention", "sliding_attention", "linear_attention"]
    assert kv_cache_bytes({**config, "layer_types": kinds}, 1000, 2) == 1010 * 32
    assert kv_cache_bytes({**config, "use_sliding_window": False}, 1000, 2) == 3000 * 32
