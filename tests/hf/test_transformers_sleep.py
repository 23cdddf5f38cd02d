"""Sleeping and waking: the same answers to the bit, everything in one stretch of RAM, and nothing left behind.

There is no GPU here: the CPU stands for the device the weights are on. That such a model isn't put to sleep is the
core's to see to; what moves them is the same.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from taskrouter.backends.base import LoadedModel
from taskrouter.backends.hf import arena
from taskrouter.backends.hf.storages import bytes_by_device, storages_of
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import ModelDied, OutOfMemory, SleepFailed
from taskrouter.memory.ram import HostRam
from taskrouter.types import CPU, GIB, MIB

from .checkpoints import CHARGES, request, say

pytestmark = pytest.mark.anyio
ROOM = {CPU: GIB}


async def chatting(backend: TransformersBackend, folder: Path) -> LoadedModel:
    return await backend.load(request(folder), (CPU,), CHARGES)


def logits(model: LoadedModel) -> Any:
    import torch

    with torch.inference_mode():
        return model.raw(input_ids=torch.tensor([[3, 1, 4, 1, 5]])).logits.clone()


async def test_answers_after_a_sleep_are_those_before_to_the_bit(
    backend: TransformersBackend, chat_folder: Path
) -> None:
    model = await chatting(backend, chat_folder)
    before, said = logits(model), await model.call("chat", say("w1 w2", max_tokens=8))
    held, count = bytes_by_device(storages_of(model.raw))[CPU], len(storages_of(model.raw))
    for _ in range(3):
        asleep = await backend.demote(model, timeout_s=5)
        assert held <= asleep.ram_bytes < held + 512 * count
        assert asleep.residue == {}
        assert "asleep" in repr(model)
        with pytest.raises(ModelDied, match="is asleep"):
            await model.call("chat", say("w1"))
        await backend.promote(model, ROOM)
        assert (logits(model) == before).all()
        assert await model.call("chat", say("w1 w2", max_tokens=8)) == said
        assert bytes_by_device(storages_of(model.raw))[CPU] == held
    assert await backend.unload(model, timeout_s=5) == {}


@pytest.mark.parametrize("kind", ["image_folder", "audio_folder"])
async def test_classifiers_sleep_too(backend: TransformersBackend, kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    from .checkpoints import request as asked

    model = await backend.load(asked(folder), (CPU,), CHARGES)
    before = {name: value.clone() for name, value in model.raw.state_dict().items()}
    await backend.demote(model, timeout_s=5)
    await backend.promote(model, ROOM)
    after = model.raw.state_dict()
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    del after
    assert await backend.unload(model, timeout_s=5) == {}


async def test_the_storages_on_the_device_die_while_it_sleeps(backend: TransformersBackend, chat_folder: Path) -> None:
    model = await chatting(backend, chat_folder)
    before = storages_of(model.raw)
    await backend.demote(model, timeout_s=5)
    assert not any(storage.alive for storage in before)
    await backend.promote(model, ROOM)
    await backend.unload(model, timeout_s=5)


@pytest.mark.parametrize("slept_before", [False, True])
async def test_where_somebody_still_refers_to_weights_it_does_not_sleep_and_the_unload_says_what_is_left(
    backend: TransformersBackend, chat_folder: Path, slept_before: bool
) -> None:
    model = await chatting(backend, chat_folder)
    if slept_before:
        await backend.demote(model, timeout_s=5)
        await backend.promote(model, ROOM)
    kept = model.raw.model.norm.weight.data  # 32 floats
    with pytest.raises(SleepFailed, match="something still refers to its weights"):
        await backend.demote(model, timeout_s=0.05)
    assert await backend.unload(model, timeout_s=0.05) == {CPU: 128}
    key = request(chat_folder).key
    assert await backend.residue(key) == {CPU: 128}
    del kept
    assert await backend.residue(key) == {}


def test_tied_weights_views_and_buffers_that_are_not_saved_come_back_as_they_were() -> None:
    import torch

    module = torch.nn.Module()
    base = torch.arange(40, dtype=torch.float32).untyped_storage()
    # Not by slicing: a slice keeps the tensor that it was cut from.
    across, along = torch.empty(0).set_(base, 4, (5, 4), (1, 5)), torch.empty(0).set_(base, 20, (10,), (1,))
    module.register_parameter("tied", torch.nn.Parameter(across, requires_grad=False))
    module.register_parameter("again", module.tied)
    module.register_buffer("view", along)
    module.register_buffer("unsaved", torch.tensor([7, 8], dtype=torch.int8), persistent=False)
    module.register_buffer("empty", torch.empty(0))
    module.register_parameter("short", torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False))
    seen = {
        name: (value.clone(), value.stride()) for name, value in (*module.named_parameters(), *module.named_buffers())
    }
    tied, before = module.tied, storages_of(module)
    asleep = arena.Arena(module)
    assert asleep.bytes == 3 * arena.ALIGNMENT  # one storage for three tensors, and two small ones
    asleep.let_go()
    del base, across, along
    assert not any(storage.alive for storage in before)
    assert module.tied.numel() == 0
    asleep.wake()
    asleep.close()
    assert module.tied is tied is module.again
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        assert (value == seen[name][0]).all(), name
        assert (value.stride(), value.dtype) == (seen[name][1], seen[name][0].dtype)
    module.tied.data[0, 0] = 99  # element 4 of the storage they share
    assert module.view.data_ptr() == module.tied.data_ptr() + 16 * 4


async def test_unloading_one_that_sleeps_frees_all(backend: TransformersBackend, chat_folder: Path) -> None:
    model = await chatting(backend, chat_folder)
    module = weakref.ref(model.raw)
    await backend.demote(model, timeout_s=5)
    assert await backend.unload(model, timeout_s=5) == {}
    assert module() is None
    with pytest.raises(ModelDied, match="unloaded"):
        await model.call("chat", say("w1"))


async def test_a_model_that_can_not_be_put_to_sleep_serves_on(
    backend: TransformersBackend, chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await chatting(backend, chat_folder)
    said = await model.call("chat", say("w1", max_tokens=3))

    def fail(storage: Any) -> Any:
        raise MemoryError("no RAM")

    with monkeypatch.context() as patch:
        patch.setattr(arena, "_flat", fail)
        with pytest.raises(SleepFailed, match="could not be put to sleep: no RAM"):
            await backend.demote(model, timeout_s=5)
    assert await model.call("chat", say("w1", max_tokens=3)) == said
    await backend.unload(model, timeout_s=5)


@pytest.mark.parametrize("out_of_memory", [True, False])
async def test_one_that_does_not_wake_still_sleeps_and_may_wake_later(
    backend: TransformersBackend, chat_folder: Path, monkeypatch: pytest.MonkeyPatch, out_of_memory: bool
) -> None:
    import torch

    model = await chatting(backend, chat_folder)
    said = await model.call("chat", say("w1", max_tokens=3))
    await backend.demote(model, timeout_s=5)

    def fail(self: arena.Arena, piece: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory") if out_of_memory else RuntimeError("device lost")

    with monkeypatch.context() as patch:
        patch.setattr(arena.Arena, "_bytes_of", fail)
        with pytest.raises(OutOfMemory if out_of_memory else SleepFailed, match="did not wake"):
            await backend.promote(model, ROOM)
    await backend.promote(model, ROOM)
    assert await model.call("chat", say("w1", max_tokens=3)) == said
    await backend.unload(model, timeout_s=5)


async def test_twenty_sleeps_leave_the_memory_as_it_was(backend: TransformersBackend, chat_folder: Path) -> None:
    model = await chatting(backend, chat_folder)
    process = psutil.Process()

    async def cycles(count: int) -> int:
        for _ in range(count):
            await backend.demote(model, timeout_s=5)
            await backend.promote(model, ROOM)
        gc.collect()
        return process.memory_info().rss

    before = await cycles(5)
    assert await cycles(20) - before < max(0.05 * before, 8 * MIB)
    await backend.unload(model, timeout_s=5)


async def test_without_the_room_in_ram_it_is_not_even_tried(
    backend: TransformersBackend, chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would promise the room, and kill the process that uses it."""
    model = await chatting(backend, chat_folder)
    said = await model.call("chat", say("w1", max_tokens=3))
    monkeypatch.setattr(HostRam, "available", lambda self: 1024)
    with pytest.raises(SleepFailed, match=r"it takes 0.00 GiB of RAM, and 0.00 GiB are free"):
        await backend.demote(model, timeout_s=5)
    assert await model.call("chat", say("w1", max_tokens=3)) == said
    await backend.unload(model, timeout_s=5)


async def test_a_checkpoint_that_is_quantized_is_left_where_it_is_and_says_so(
    backend: TransformersBackend, chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setattr(
        transformers.LlamaForCausalLM, "hf_quantizer", SimpleNamespace(is_compileable=False), raising=False
    )
    model = await chatting(backend, chat_folder)
    assert model.info["can_sleep"] == f"no: {arena.QUANTIZED}"
    said = await model.call("chat", say("w1", max_tokens=3))
    with pytest.raises(SleepFailed, match="its weights are quantized"):
        await backend.demote(model, timeout_s=5)
    assert await model.call("chat", say("w1", max_tokens=3)) == said
    await backend.unload(model, timeout_s=5)


async def test_a_sleep_nobody_waits_for_any_more_leaves_nothing(
    backend: TransformersBackend, chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await chatting(backend, chat_folder)
    begun, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    touch, close = arena._touch, arena.Arena.close

    def slowly(host: Any) -> None:
        begun.set()
        go_on.wait(5)
        touch(host)

    def closing(self: arena.Arena) -> None:
        close(self)
        closed.set()

    monkeypatch.setattr(arena, "_touch", slowly)
    monkeypatch.setattr(arena.Arena, "close", closing)
    sleeping = asyncio.ensure_future(backend.demote(model, timeout_s=5))
    await asyncio.to_thread(begun.wait, 5)
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    unloading = asyncio.ensure_future(backend.unload(model, timeout_s=5))
    go_on.set()
    assert await unloading == {}
    assert await asyncio.to_thread(closed.wait, 5)


def test_what_could_not_be_copied_is_not_left_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    pinned: list[int] = []

    def pin(host: Any) -> bool:
        pinned.append(host.data_ptr())
        return True

    monkeypatch.setattr(arena, "_pin", pin)
    monkeypatch.setattr(arena, "_unpin", lambda host: pinned.remove(host.data_ptr()))

    def fail(storage: Any) -> Any:
        raise RuntimeError("device lost")

    module = torch.nn.Linear(4, 4)
    with monkeypatch.context() as patch:
        patch.setattr(arena, "_flat", fail)
        with pytest.raises(RuntimeError, match="device lost"):
            arena.Arena(module)
    assert pinned == []
    asleep = arena.Arena(module)
    assert len(pinned) == 1
    asleep.close()
    asleep.close()
    assert pinned == []


def test_who_can_sleep_is_known_from_the_request(backend: TransformersBackend) -> None:
    assert backend.traits(request("m")).can_sleep
    assert backend.traits(request("m", quantization="none")).can_sleep
    never: list[dict[str, Any]] = [{"quantization": each} for each in ("4bit", "8bit", "gptq")]
    for keys in (*never, {"sleep": "never"}, {"devices": (CPU,)}):
        assert not backend.traits(request("m", **keys)).can_sleep


async def test_a_model_on_the_cpu_says_that_there_is_nothing_to_gain(
    backend: TransformersBackend, chat_folder: Path
) -> None:
    model = await chatting(backend, chat_folder)
    assert model.info["can_sleep"] == "no: it is on the cpu, in host RAM already"
    await backend.unload(model, timeout_s=5)
