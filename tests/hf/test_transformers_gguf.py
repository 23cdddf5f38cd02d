"""GGUF through Transformers: one file holds everything, and its weights are expanded when it is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.hf import loading
from taskrouter.backends.hf.arena import Arena, why_not
from taskrouter.backends.hf.examine import examine
from taskrouter.backends.hf.loading import load_parts
from taskrouter.backends.hf.stopping import Stop
from taskrouter.backends.hf.storages import bytes_by_device, storages_of
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import CheckpointCorrupt, CheckpointMissing, OutOfMemory, PreflightFailed
from taskrouter.memory.estimate import WORKING_FLOOR, working_bytes
from taskrouter.memory.ram import HostRam
from taskrouter.samples import sample_dir
from taskrouter.types import CPU, MIB, DeviceId, Footprint, ModelRequest
from taskrouter.verbs import ChatRequest

from .checkpoints import request

pytest.importorskip("gguf")

from tests.engines.gguf_model import write_gguf

pytestmark = pytest.mark.anyio
CHARGES = {CPU: 64 * MIB}
QUESTION = ChatRequest(({"role": "user", "content": "A red circle moves right."},), max_tokens=12, temperature=0)


@pytest.fixture(scope="session")
def gguf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample that reads claims, as a file of each kind."""
    folder = tmp_path_factory.mktemp("gguf")
    for kind in ("F16", "Q8_0", "Q4_0"):
        write_gguf(sample_dir("claims"), folder / f"claims-{kind}.gguf", kind=kind)
    return folder


def asking(folder: Path, kind: str | None = None, **options: Any) -> ModelRequest:
    arguments = {} if kind is None else {"engine_args": {"gguf_file": f"claims-{kind}.gguf"}}
    return request(folder, quantization="gguf", **arguments, **options)


def alone(gguf_folder: Path, folder: Path, kind: str = "Q8_0") -> Path:
    """The file of one kind, in a folder that holds no other."""
    return Path(shutil.copy(gguf_folder / f"claims-{kind}.gguf", folder))


def logits(module: Any) -> Any:
    import torch

    with torch.no_grad():
        return module(torch.tensor([[5, 6, 7, 8, 9]])).logits.float()


@pytest.mark.slow
async def test_it_answers_like_its_source_and_takes_what_the_expanded_weights_take(
    backend: TransformersBackend, gguf_folder: Path
) -> None:
    source = await backend.load(request(sample_dir("claims"), dtype="float32"), (CPU,), CHARGES)
    exact, said = logits(source.raw), await source.call("chat", QUESTION)
    whole = bytes_by_device(storages_of(source.raw))[CPU]
    await backend.unload(source, timeout_s=5)
    for kind, error in (("F16", 0.01), ("Q8_0", 0.05), ("Q4_0", 0.5)):
        asked = asking(gguf_folder, kind)
        found = await backend.preflight(asked)
        model = await backend.load(asked, (CPU,), CHARGES)
        assert (logits(model.raw) - exact).abs().max() < error * exact.abs().max()
        taken = bytes_by_device(storages_of(model.raw))[CPU]
        assert taken == whole
        assert model.measured == Footprint(taken + working_bytes(taken))
        assert found.need is not None
        assert found.need.device_bytes == pytest.approx(model.measured.device_bytes, rel=0.001)
        answer = await model.call("chat", QUESTION)
        assert answer.usage.completion_tokens > 3
        assert answer == said or kind == "Q4_0"  # four bits may say something else
        assert await backend.unload(model, timeout_s=5) == {}


@pytest.mark.slow
async def test_what_it_is_expanded_to_is_the_options_dtype(backend: TransformersBackend, gguf_folder: Path) -> None:
    need = {}
    for dtype in (None, "bfloat16"):
        found = await backend.preflight(asking(gguf_folder, "Q8_0", dtype=dtype))
        assert found.need is not None
        need[dtype] = found.need.device_bytes - WORKING_FLOOR
    assert need["bfloat16"] == need[None] // 2
    assert need[None] > 3 * (gguf_folder / "claims-Q8_0.gguf").stat().st_size
    model = await backend.load(asking(gguf_folder, "Q8_0", dtype="bfloat16"), (CPU,), CHARGES)
    assert model.info["dtype"] == "bfloat16"
    await backend.unload(model, timeout_s=5)


@pytest.mark.slow
async def test_its_weights_are_plain_ones_that_can_sleep(backend: TransformersBackend, gguf_folder: Path) -> None:
    assert backend.traits(asking(gguf_folder, "Q8_0")).can_sleep
    model = await backend.load(asking(gguf_folder, "Q8_0"), (CPU,), CHARGES)
    assert why_not(model.raw) is None
    before = logits(model.raw)
    arena = Arena(model.raw)
    arena.let_go()
    arena.wake()
    arena.close()
    assert (logits(model.raw) == before).all()
    await backend.unload(model, timeout_s=5)


def test_ram_that_cannot_hold_it_on_its_way_to_a_gpu_is_seen_before(
    gguf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asking(gguf_folder, "Q8_0")
    checkpoint = examine(asked)
    monkeypatch.setattr(loading, "_cuda_free", lambda device: 64 * MIB)
    monkeypatch.setattr(HostRam, "available", lambda self: checkpoint.weights.stored_bytes - 1)
    with pytest.raises(OutOfMemory, match="is expanded in RAM before it goes to its device"):
        load_parts(asked, checkpoint, (DeviceId("cuda:0"),), {DeviceId("cuda:0"): MIB}, Stop("m"))


@pytest.mark.slow
async def test_one_file_needs_no_name_and_several_are_listed(
    backend: TransformersBackend, gguf_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        CheckpointMissing, match=r"3 GGUF files, and one is wanted. It holds claims-F16.gguf, claims-Q4_0"
    ):
        await backend.preflight(asking(gguf_folder))
    with pytest.raises(CheckpointMissing, match=r"has no claims-Q5_K.gguf. It holds claims-F16.gguf, .*Correct"):
        await backend.preflight(asking(gguf_folder, "Q5_K"))
    with pytest.raises(CheckpointMissing, match=r"has no GGUF file"):
        await backend.preflight(asking(tmp_path))
    file = alone(gguf_folder, tmp_path)
    assert "chat" in (await backend.preflight(asking(tmp_path))).verbs
    assert await backend.preflight(asking(file)) == await backend.preflight(asking(tmp_path))
    with pytest.raises(CheckpointMissing, match=r"is a file; .* Of a GGUF file write quantization: gguf"):
        await backend.preflight(request(file))
    file.rename(tmp_path / "claims-00001-of-00002.gguf")
    with pytest.raises(PreflightFailed, match=r"one part of a split GGUF.*llama-gguf-split --merge"):
        await backend.preflight(asking(tmp_path))


@pytest.mark.parametrize("size", [0, 3, 500, -1000])
async def test_a_file_that_is_cut_off_is_found_before_loading(
    backend: TransformersBackend, gguf_folder: Path, tmp_path: Path, size: int
) -> None:
    file = alone(gguf_folder, tmp_path)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointCorrupt, match=r"is no whole GGUF file .* Download it again"):
        await backend.preflight(asking(tmp_path))


async def test_a_model_that_transformers_cannot_read_is_named(backend: TransformersBackend, tmp_path: Path) -> None:
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "sorcery")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(PreflightFailed, match=r"can't read m\.gguf: .*sorcery.*framework: command"):
        await backend.preflight(asking(tmp_path))


@pytest.mark.slow
async def test_a_context_that_is_written_is_counted_and_bounded(
    backend: TransformersBackend, gguf_folder: Path
) -> None:
    short = (await backend.preflight(asking(gguf_folder, "F16"))).need
    long = (await backend.preflight(asking(gguf_folder, "F16", max_context=64))).need
    assert short is not None
    assert long is not None
    assert long.device_bytes > short.device_bytes
    with pytest.raises(PreflightFailed, match=r"was built for at most"):
        await backend.preflight(asking(gguf_folder, "F16", max_context=10**6))


async def test_of_a_model_on_the_hub_only_the_named_file_is_fetched(
    backend: TransformersBackend, gguf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import huggingface_hub.constants as constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[str] = []

    def snapshot_download(
        model_id: str, *, local_files_only: bool = False, allow_patterns: list[str] | None = None, **_: object
    ) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError(model_id)
        asked.extend(pattern for pattern in allow_patterns or () if "gguf" in pattern or "safetensors" in pattern)
        return str(gguf_folder)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointMissing, match=r"Write its name: engine_args: \{gguf_file: NAME.gguf\}"):
        await backend.preflight(request("org/claims-GGUF", quantization="gguf"))
    assert not asked
    named = {"gguf_file": "claims-Q4_0.gguf"}
    assert await backend.preflight(request("org/claims-GGUF", quantization="gguf", engine_args=named))
    assert asked == ["claims-Q4_0.gguf"]


@pytest.mark.slow
async def test_no_bar_is_drawn_while_it_is_expanded(
    backend: TransformersBackend, gguf_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = await backend.load(asking(gguf_folder, "Q8_0"), (CPU,), CHARGES)
    await backend.unload(model, timeout_s=5)
    assert capfd.readouterr() == ("", "")
