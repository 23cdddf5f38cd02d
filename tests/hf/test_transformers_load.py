"""Loading: one at a time, off the loop, and holding nothing when it fails."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.hf import loading
from taskrouter.backends.hf.failures import load_error
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import CheckpointCorrupt, CheckpointMissing, LoadFailed, OutOfMemory
from taskrouter.memory.estimate import WORKING_FLOOR
from taskrouter.types import CPU, Footprint

from .checkpoints import CHARGES, request, save, say

pytestmark = pytest.mark.anyio
Spoil = Callable[[], Path]


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Put something else in the place of Transformers' own loading of chat models."""
    import transformers

    def replace(load: Callable[..., Any]) -> None:
        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)

    return replace


@pytest.fixture
def real_load() -> Callable[..., Any]:
    import transformers

    load: Callable[..., Any] = transformers.AutoModelForCausalLM.from_pretrained
    return load


async def test_a_loaded_model_is_measured_by_its_storages_and_says_what_it_is(
    backend: TransformersBackend, chat_folder: Path
) -> None:
    model = await backend.load(request(chat_folder, dtype="bfloat16"), (CPU,), CHARGES)
    # 64 × 32 tied embeddings once, two layers, norms; then rotary frequencies, which are never saved
    layer = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32
    parameters = 64 * 32 + 2 * layer + 32
    assert model.info["parameters"] == parameters
    frequencies = sum(buffer.untyped_storage().nbytes() for buffer in model.raw.buffers())
    assert frequencies > 0
    assert model.measured == Footprint(2 * parameters + frequencies + WORKING_FLOOR)
    assert model.info["dtype"] == "bfloat16"
    assert model.info["architecture"] == "LlamaForCausalLM"
    assert not model.raw.training
    assert not any(parameter.requires_grad for parameter in model.raw.parameters())
    assert "cpu" in repr(model)
    await backend.unload(model, timeout_s=5)
    assert "unloaded" in repr(model)


async def test_two_concurrent_loads_run_one_after_the_other(
    chat_folder: Path, loader: Callable[..., None], real_load: Callable[..., Any]
) -> None:
    inside, most = 0, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return real_load(*args, **kwargs)
        finally:
            inside -= 1

    loader(counted)
    backends = [TransformersBackend() for _ in range(3)]
    models = await asyncio.gather(*(each.load(request(chat_folder), (CPU,), CHARGES) for each in backends))
    assert most == 1
    answers = [await model.call("chat", say("w1", max_tokens=3)) for model in models]
    assert len({answer.text for answer in answers}) == 1
    for each, model in zip(backends, models, strict=True):
        assert await each.unload(model, timeout_s=5) == {}


async def test_the_loop_is_free_while_loading_and_an_abandoned_load_leaves_nothing(
    backend: TransformersBackend, chat_folder: Path, loader: Callable[..., None], real_load: Callable[..., Any]
) -> None:
    entered, go = threading.Event(), threading.Event()
    gone = threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        module, info = real_load(*args, **kwargs)
        weakref.finalize(module, gone.set)
        entered.set()
        go.wait()
        return module, info

    loader(slow)
    load = asyncio.create_task(backend.load(request(chat_folder), (CPU,), CHARGES))
    await asyncio.to_thread(entered.wait)
    assert not load.done()
    load.cancel()
    await asyncio.sleep(0.1)
    assert not load.done()  # what it reads can't be stopped here, and its bytes are its own until it has ended
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert gone.is_set()


async def test_more_than_is_really_free_is_refused_with_the_numbers(
    backend: TransformersBackend, chat_folder: Path
) -> None:
    with pytest.raises(OutOfMemory, match=r"was given 1048576\.00 GiB on cpu, but only [\d.]+ GiB are really free"):
        await backend.load(request(chat_folder), (CPU,), {CPU: 1 << 50})


def no_memory(*_: Any, **__: Any) -> Any:
    import torch

    return torch.empty(1 << 50, dtype=torch.uint8)


def no_python_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError


@pytest.mark.parametrize("fail", [no_memory, no_python_memory])
async def test_an_allocation_that_fails_is_out_of_memory(
    backend: TransformersBackend, chat_folder: Path, loader: Callable[..., None], fail: Callable[..., Any]
) -> None:
    loader(fail)
    with pytest.raises(OutOfMemory, match="ran out of memory while loading") as failed:
        await backend.load(request(chat_folder), (CPU,), CHARGES)
    assert isinstance(failed.value.__cause__, RuntimeError | MemoryError)


async def test_a_failed_load_holds_no_weights_even_while_its_error_is_kept(
    backend: TransformersBackend,
    chat_folder: Path,
    loader: Callable[..., None],
    real_load: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers

    kept: list[weakref.ref[Any]] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        module, info = real_load(*args, **kwargs)
        kept.append(weakref.ref(module))
        return module, info

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the tokenizer is from another planet")

    loader(watched)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", broken)
    with pytest.raises(LoadFailed, match=r"tiny-llama could not be loaded: RuntimeError: .*another planet") as failed:
        await backend.load(request(chat_folder), (CPU,), CHARGES)
    assert isinstance(failed.value.__cause__, RuntimeError)
    assert kept[0]() is None
    monkeypatch.undo()
    model = await backend.load(request(chat_folder), (CPU,), CHARGES)
    assert await backend.unload(model, timeout_s=5) == {}


async def test_weights_that_would_be_random_are_an_error(backend: TransformersBackend, spoil: Spoil) -> None:
    from safetensors.torch import load_file, save_file

    file = spoil() / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointCorrupt, match=r"1 weights of LlamaForCausalLM .*model\.norm\.weight.* random"):
        await backend.load(request(file.parent), (CPU,), CHARGES)


async def test_a_checkpoint_that_went_bad_since_preflight_is_a_typed_error(
    backend: TransformersBackend, spoil: Spoil
) -> None:
    folder = spoil()
    await backend.preflight(request(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointMissing):
        await backend.load(request(folder), (CPU,), CHARGES)


def cut_up(folder: Path, target: Path) -> Path:
    import shutil

    import transformers

    shutil.copytree(folder, target)
    (target / "model.safetensors").unlink()
    save(transformers.AutoModelForCausalLM.from_pretrained(folder), target, max_shard_size="30KB")
    assert len(list(target.glob("*.safetensors"))) > 2
    return target


async def test_shards_are_loaded_as_one_model(backend: TransformersBackend, chat_folder: Path, tmp_path: Path) -> None:
    whole = await backend.load(request(chat_folder), (CPU,), CHARGES)
    folder = cut_up(chat_folder, tmp_path / "sharded")
    parts = await backend.load(request(folder), (CPU,), CHARGES)
    asked = say("w1", "w2", max_tokens=5, temperature=1.0, seed=1)
    assert await parts.call("chat", asked) == await whole.call("chat", asked)
    for model in (whole, parts):
        await backend.unload(model, timeout_s=5)


async def test_a_full_disk_while_loading_says_so(
    backend: TransformersBackend,
    spoil: Spoil,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A checkpoint's own code is copied into a cache before it runs: the one thing that a load writes."""
    import json
    import shutil

    folder = spoil()
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["OwnForCausalLM"]
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text("from transformers import LlamaForCausalLM as OwnForCausalLM\n")

    def full(source: Any, target: Any, **_: Any) -> None:
        raise OSError(28, "No space left on device", str(source), None, str(target))

    cache = tmp_path_factory.mktemp("modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.setattr(shutil, "copy", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(LoadFailed, match=rf"the disk is full \({cache}.*modeling_own.py\)"):
        await backend.load(request(folder, trust_remote_code=True), (CPU,), CHARGES)


def test_what_safetensors_itself_refuses_is_a_damaged_checkpoint(tmp_path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    (tmp_path / "x").write_bytes(b"\x01" * 32)
    with pytest.raises(SafetensorError) as raised, safe_open(tmp_path / "x", "pt"):
        pass
    assert isinstance(load_error(raised.value, "m"), CheckpointCorrupt)


def test_parts_left_outside_the_devices_are_out_of_memory(chat_folder: Path) -> None:
    import torch

    module = torch.nn.Linear(1, 1)
    module.hf_device_map = {"a": 0, "b": "disk"}
    with pytest.raises(OutOfMemory, match="left in RAM or on disk"):
        loading._check_whole(request(chat_folder), module, {})
    meta = torch.nn.Linear(1, 1, device="meta")
    with pytest.raises(LoadFailed, match=r"2 tensors were left without data .such as weight"):
        loading._check_whole(request(chat_folder), meta, {})


def test_room_on_a_gpu_is_asked_of_its_driver_once_the_cache_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from taskrouter.types import GIB, DeviceId

    free = 3 * GIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 24 * GIB))

    def give_cache_back() -> None:
        nonlocal free
        free = 5 * GIB

    monkeypatch.setattr(torch.cuda, "empty_cache", give_cache_back)
    gpu = DeviceId("cuda:1")
    loading.check_room("qwen", (gpu,), {gpu: 5 * GIB})
    with pytest.raises(OutOfMemory, match=r"qwen was given 6\.00 GiB on cuda:1, but only 5\.00 GiB are really free"):
        loading.check_room("qwen", (gpu,), {gpu: 6 * GIB})


def test_devices_and_their_bytes_become_a_placement() -> None:
    from taskrouter.types import DeviceId

    first, second = DeviceId("cuda:0"), DeviceId("cuda:3")
    assert loading._placement((CPU,), {}) == {}
    assert loading._placement((second,), {}) == {"device_map": {"": "cuda:3"}}
    assert loading._placement((first, second), {first: 5, second: 7}) == {
        "device_map": "balanced",
        "max_memory": {0: 5, 3: 7},
    }


def test_a_gpu_is_measured_by_its_allocator_within_reason() -> None:
    from taskrouter.types import DeviceId

    gpu = DeviceId("cuda:0")
    for grown, believed in ((90, 100), (110, 110), (900, 120)):
        assert loading._measure({gpu: 100}, {gpu: grown}, cache_bytes=7) == Footprint(believed + 7 + WORKING_FLOOR)


def test_what_a_gpu_model_keeps_in_ram_is_counted_apart() -> None:
    from taskrouter.types import DeviceId

    first, second = DeviceId("cuda:0"), DeviceId("cuda:1")
    measured = loading._measure({first: 100, second: 60, CPU: 9}, {first: 0, second: 0}, cache_bytes=10)
    assert measured == Footprint(100 + 5 + WORKING_FLOOR, 9)
