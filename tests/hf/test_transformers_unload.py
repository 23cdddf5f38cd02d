"""Unloading gives the memory back, and says what it could not."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path

import psutil
import pytest

from taskrouter.backends.hf import in_process as backend_module
from taskrouter.backends.hf.storages import give_back, storages_of
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import ModelDied
from taskrouter.types import CPU, MIB

from .checkpoints import CHARGES, chat_checkpoint, request, say

pytestmark = pytest.mark.anyio


async def test_after_unload_nothing_of_the_model_is_left(backend: TransformersBackend, chat_folder: Path) -> None:
    model = await backend.load(request(chat_folder), (CPU,), CHARGES)
    await model.call("chat", say("w1", max_tokens=3))
    module = weakref.ref(model.raw)
    weight = weakref.ref(next(model.raw.parameters()))
    thread = next(each for each in threading.enumerate() if each.name == "taskrouter:tiny-llama")
    assert await backend.unload(model, timeout_s=5) == {}
    assert module() is None
    assert weight() is None
    thread.join(5)
    assert not thread.is_alive()
    assert await backend.residue(request(chat_folder).key) == {}
    with pytest.raises(ModelDied):
        await model.call("chat", say("w1"))
    assert await backend.unload(model, timeout_s=5) == {}


async def test_a_raw_reference_kept_by_a_caller_is_residue_until_it_is_dropped(
    backend: TransformersBackend, chat_folder: Path
) -> None:
    model = await backend.load(request(chat_folder), (CPU,), CHARGES)
    kept = model.raw.model.norm.weight  # 32 floats
    assert await backend.unload(model, timeout_s=0.05) == {CPU: 128}
    key = request(chat_folder).key
    assert await backend.residue(key) == {CPU: 128}
    # loaded and unloaded again meanwhile: the old residue isn't forgotten
    again = await backend.load(request(chat_folder), (CPU,), CHARGES)
    assert await backend.unload(again, timeout_s=5) == {}
    assert await backend.residue(key) == {CPU: 128}
    del kept
    assert await backend.residue(key) == {}
    await backend.close()
    await backend.close()


def test_tensors_that_share_a_storage_count_once() -> None:
    import torch

    base = torch.zeros(100)
    module = torch.nn.ParameterList([base[:50], base[50:]])
    module.register_buffer("kept", torch.zeros(7), persistent=False)
    module.register_buffer("nothing", torch.zeros(0))
    module.register_buffer("meta", torch.zeros(9, device="meta"))
    assert sorted(each.bytes for each in storages_of(module)) == [28, 400]


async def test_the_whole_module_kept_is_residue_of_its_size(backend: TransformersBackend, chat_folder: Path) -> None:
    model = await backend.load(request(chat_folder), (CPU,), CHARGES)
    raw = model.raw
    size = sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in raw.parameters()}.values())
    buffers = sum(buffer.untyped_storage().nbytes() for buffer in raw.buffers())
    assert await backend.unload(model, timeout_s=0.01) == {CPU: size + buffers}
    del raw
    assert await backend.residue(request(chat_folder).key) == {}


async def test_a_reference_cycle_is_no_residue(backend: TransformersBackend, chat_folder: Path) -> None:
    model = await backend.load(request(chat_folder), (CPU,), CHARGES)
    cycle = [model.raw]
    cycle.append(cycle)
    del cycle
    gc.disable()
    try:
        assert await backend.unload(model, timeout_s=5) == {}
    finally:
        gc.enable()


async def test_an_unload_that_goes_wrong_still_answers_with_what_is_left(
    backend: TransformersBackend, chat_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*, collect: bool) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    model = await backend.load(request(chat_folder), (CPU,), CHARGES)
    kept = model.raw.model.norm.weight
    monkeypatch.setattr(backend_module, "give_back", broken)
    assert await backend.unload(model, timeout_s=0) == {CPU: 128}
    assert "illegal memory access" in caplog.text
    del kept


async def test_a_cancelled_unload_remembers_what_was_left(backend: TransformersBackend, chat_folder: Path) -> None:
    model = await backend.load(request(chat_folder), (CPU,), CHARGES)
    kept = model.raw.model.norm.weight
    unloading = asyncio.create_task(backend.unload(model, timeout_s=600))
    await asyncio.wait({unloading}, timeout=0)
    unloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unloading
    gc.collect()
    assert await backend.residue(request(chat_folder).key) == {CPU: 128}
    del kept


async def test_another_backends_model_is_refused(backend: TransformersBackend) -> None:
    with pytest.raises(TypeError, match="not loaded by this backend"):
        await backend.unload(object(), timeout_s=1)  # type: ignore[arg-type]


@pytest.mark.slow
async def test_a_large_models_memory_really_comes_back(backend: TransformersBackend, tmp_path: Path) -> None:
    # bf16 in the file, float32 in memory: converted, so allocated and not just mapped
    folder = chat_checkpoint(tmp_path / "large", hidden=1024, layers=5, dtype="bfloat16")
    gc.collect()
    give_back(collect=False)
    process = psutil.Process()
    warm = await backend.load(request(folder, dtype="float32"), (CPU,), CHARGES)
    await backend.unload(warm, timeout_s=10)
    before = process.memory_info().rss
    model = await backend.load(request(folder, dtype="float32"), (CPU,), CHARGES)
    await model.call("chat", say("w1", max_tokens=2))
    assert model.measured is not None
    loaded = process.memory_info().rss
    # 200, less what the first round left to be used again, and other tests.
    assert loaded - before > 150 * MIB
    assert await backend.unload(model, timeout_s=10) == {}
    assert process.memory_info().rss - before < 24 * MIB


@pytest.mark.slow
async def test_twenty_rounds_do_not_grow_the_process(backend: TransformersBackend, chat_folder: Path) -> None:
    """The bound, 6 MiB, is well below 20 × 0.5 MiB, what keeping each round's tokenizer and activations would cost."""
    process = psutil.Process()
    rss: list[int] = []
    for _ in range(24):
        model = await backend.load(request(chat_folder), (CPU,), CHARGES)
        await model.call("chat", say("w1", max_tokens=5))
        assert await backend.unload(model, timeout_s=5) == {}
        rss.append(process.memory_info().rss)
    assert rss[-1] - rss[3] < 6 * MIB
