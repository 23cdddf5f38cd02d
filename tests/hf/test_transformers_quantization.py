"""Weights in fewer bits: what each way needs is said before anything is fetched, and what a CPU can do is done."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.hf import examine as examine_module
from taskrouter.backends.hf.arena import QUANTIZED
from taskrouter.backends.hf.storages import bytes_by_device, still_alive, storages_of
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import PreflightFailed, SleepFailed
from taskrouter.memory.estimate import WORKING_FLOOR
from taskrouter.types import CPU, Footprint

from .checkpoints import CHARGES, chat_checkpoint, request, say

pytestmark = pytest.mark.anyio
HIDDEN = 64
WAYS: list[dict[str, Any]] = [
    {"quantization": "torchao"},
    {"quantization": "torchao", "engine_args": {"torchao_config": "int8dq"}},
    {"quantization": "torchao", "engine_args": {"torchao-config": "fp8wo"}},
    {"quantization": "8bit"},
    {"quantization": "4bit"},
]
LIBRARY = {"torchao": "torchao", "8bit": "bitsandbytes", "4bit": "bitsandbytes"}


def way_name(way: dict[str, Any]) -> str:
    return "-".join([way["quantization"], *way.get("engine_args", {}).values()])


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for a block of 64 values to lie in a row."""
    return chat_checkpoint(tmp_path_factory.mktemp("chat") / "wide-llama", hidden=HIDDEN)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine that has these modules, and GPUs of these compute capabilities."""
    import torch
    import transformers.modeling_utils  # Transformers remembers what it found: it looks before anything is made up

    assert transformers
    real = importlib.util.find_spec

    def have(*modules: str, without: tuple[str, ...] = (), gpus: tuple[tuple[int, int], ...] = ()) -> None:
        def find(name: str) -> Any:
            return None if name in without else real("json" if name in modules else name)

        monkeypatch.setattr(importlib.util, "find_spec", find)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place=0: gpus[place])

    return have


def logits(module: Any) -> Any:
    import torch

    with torch.no_grad():
        return module(torch.tensor([[5, 6, 7, 8, 9]])).logits.float()


# --- done for real, on the CPU ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=way_name)
async def test_quantized_while_loading_it_answers_nearly_the_same_in_less_and_leaves_nothing(
    backend: TransformersBackend, wide_folder: Path, way: dict[str, Any]
) -> None:
    pytest.importorskip(LIBRARY[way["quantization"]])
    plain = await backend.load(request(wide_folder), (CPU,), CHARGES)
    exact, whole = logits(plain.raw), bytes_by_device(storages_of(plain.raw))[CPU]
    parameters = plain.info["parameters"]
    await backend.unload(plain, timeout_s=5)

    asked = request(wide_folder, **way)
    need = (await backend.preflight(asked)).need
    for _ in range(3):
        model = await backend.load(asked, (CPU,), CHARGES)
        storages = storages_of(model.raw)
        taken = bytes_by_device(storages)[CPU]
        assert taken < 0.4 * whole
        assert model.measured == Footprint(taken + WORKING_FLOOR)
        assert need is not None
        # Rows are short here, so that their scales are a tenth of the weights; of a real model a hundredth.
        assert need.device_bytes - WORKING_FLOOR == pytest.approx(taken, rel=0.15)
        assert model.info["parameters"] == parameters
        assert 0 < (logits(model.raw) - exact).abs().max() < 0.15 * exact.abs().max()
        answer = await model.call("chat", say("w1", "w2", max_tokens=4))
        assert answer.usage.completion_tokens == 4
        assert model.info["can_sleep"].startswith("no: ")
        with pytest.raises(SleepFailed, match=QUANTIZED):
            await backend.demote(model, timeout_s=5)
        assert await backend.unload(model, timeout_s=5) == {}
        assert not still_alive(storages)


async def test_what_is_quantized_already_is_not_quantized_again(backend: TransformersBackend, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    import transformers
    from torchao.quantization import Int8WeightOnlyConfig

    source = chat_checkpoint(tmp_path / "plain", hidden=HIDDEN)
    made = transformers.AutoModelForCausalLM.from_pretrained(
        source, quantization_config=transformers.TorchAoConfig(Int8WeightOnlyConfig())
    )
    made.save_pretrained(source)
    for word in (None, "torchao"):
        assert await backend.preflight(request(source, quantization=word))
    model = await backend.load(request(source), (CPU,), CHARGES)
    assert (logits(model.raw) == logits(made)).all()
    assert model.info["can_sleep"].startswith("no: ")
    await backend.unload(model, timeout_s=5)
    with pytest.raises(PreflightFailed, match=r"quantized already, so torchao_config does nothing"):
        await backend.preflight(request(source, quantization="torchao", engine_args={"torchao_config": "int8wo"}))
    with pytest.raises(PreflightFailed, match=r"'4bit' is written, but .* is quantized with torchao"):
        await backend.preflight(request(source, quantization="4bit"))


# --- what each needs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "missing", "pip"),
    [
        ("4bit", ("bitsandbytes",), "bitsandbytes"),
        ("8bit", ("bitsandbytes",), "bitsandbytes"),
        ("torchao", ("torchao",), "torchao"),
        ("gguf", ("gguf",), "gguf"),
        ("fp8", ("kernels",), "kernels"),
        ("awq", ("gptqmodel",), "gptqmodel"),
        ("gptq", ("gptqmodel", "optimum"), "gptqmodel optimum"),
        ("mxfp4", ("kernels", "triton"), "kernels triton"),
        ("compressed-tensors", ("compressed_tensors",), "compressed-tensors"),
    ],
)
async def test_a_package_that_is_missing_is_named_before_anything_is_fetched(
    backend: TransformersBackend, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
    word: str, missing: tuple[str, ...], pip: str,
) -> None:  # fmt: skip
    def fetched(*_: Any, **__: Any) -> Path:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(examine_module, "locate", fetched)
    monkeypatch.setattr(examine_module, "locate_gguf", fetched)
    machine(without=missing, gpus=((10, 0),))
    with pytest.raises(PreflightFailed, match=f"^m: quantization {word} needs .*not installed: `pip install {pip}`"):
        await backend.preflight(request("m", quantization=word))


@pytest.mark.parametrize(
    ("word", "gpus", "devices", "said"),
    [
        ("fp8", (), 1, "fp8 needs an NVIDIA GPU of compute capability 8.9 or more, and there is none here"),
        ("fp8", ((9, 0),), ("cpu",), "8.9 or more, and it is to run on the CPU"),
        ("fp8", ((8, 6),), 1, "8.9 or more, and cuda:0 has 8.6. Name a newer GPU"),
        ("fp8", ((9, 0), (8, 0)), 1, "8.9 or more, and cuda:1 has 8.0"),
        ("mxfp4", ((7, 0),), 1, "mxfp4 needs an NVIDIA GPU of compute capability 7.5 or more, and cuda:0 has 7.0"),
    ],
)
async def test_a_gpu_that_cannot_is_named_before_anything_is_fetched(
    backend: TransformersBackend, machine: Callable[..., None], word: str, gpus: tuple[tuple[int, int], ...],
    devices: Any, said: str,
) -> None:  # fmt: skip
    machine("kernels", "triton", gpus=gpus)
    with pytest.raises(PreflightFailed, match=said):
        await backend.preflight(request("nowhere/at-all", quantization=word, devices=devices))


async def test_the_gpu_that_is_named_counts_and_no_other(
    backend: TransformersBackend, machine: Callable[..., None]
) -> None:
    machine("kernels", gpus=((8, 0), (9, 0)))
    with pytest.raises(PreflightFailed, match=r"neither a folder"):  # the needs are met: it goes on to look for files
        await backend.preflight(request("nowhere/at-all", quantization="fp8", devices=("cuda:1",)))


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"quant_method": "fp8"}, "is quantized with fp8, which needs an NVIDIA GPU of compute capability 8.9"),
        ({"quant_method": "awq", "bits": 4}, "is quantized with awq, which needs gptqmodel.*pip install gptqmodel"),
        ({"quant_method": "quanto"}, "is quantized with quanto, which can't run here: .*optimum-quanto"),
        ({"quant_method": "sorcery"}, "is quantized with sorcery, which can't run here: Unknown quantization type"),
    ],
)
async def test_what_a_checkpoint_comes_with_is_asked_the_same_questions(
    backend: TransformersBackend, spoil: Callable[[], Path], machine: Callable[..., None], stored: Any, said: str
) -> None:
    machine("kernels", without=("gptqmodel",))
    config = spoil() / "config.json"
    plain = json.loads(config.read_text())
    for changes in ({"quantization_config": stored}, {"text_config": {"quantization_config": stored}}):
        config.write_text(json.dumps({**plain, **changes}))
        with pytest.raises(PreflightFailed, match=said):
            await backend.preflight(request(config.parent))


async def test_bits_that_are_others_than_the_checkpoints_are_refused(
    backend: TransformersBackend, spoil: Callable[[], Path], machine: Callable[..., None]
) -> None:
    machine("bitsandbytes")
    config = spoil() / "config.json"
    stored = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": stored}))
    with pytest.raises(PreflightFailed, match=r"'4bit' is written, but .* is quantized with bitsandbytes to 8bit"):
        await backend.preflight(request(config.parent, quantization="4bit"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantization": "hqq"}, "'hqq' is written, but .* is not quantized.* to 4bit, 8bit, torchao, fp8;"),
        ({"quantization": "torchao", "engine_args": {"torchao_config": "int3"}}, "'int3' is not one of int8wo, int8dq"),
        ({"engine_args": {"torchao_config": "int8wo"}}, "torchao_config goes with quantization: torchao"),
        ({"engine_args": {"gguf_file": "m.gguf"}}, "gguf_file goes with quantization: gguf"),
    ],
)
async def test_words_and_keys_that_could_do_nothing_are_refused(
    backend: TransformersBackend, chat_folder: Path, machine: Callable[..., None], options: dict[str, Any], said: str
) -> None:
    machine("torchao")
    with pytest.raises(PreflightFailed, match=said):
        await backend.preflight(request(chat_folder, **options))
    assert await backend.preflight(request(chat_folder, quantization="none"))


@pytest.mark.slow
def test_torchao_says_nothing_where_nobody_asks_for_it(chat_folder: Path) -> None:
    pytest.importorskip("torchao")
    program = (
        "import sys; from taskrouter.backends.hf.examine import examine; from tests.hf.checkpoints import request; "
        "import logging; examine(request(sys.argv[1])); from transformers import modeling_utils; "
        "print(sorted({'torchao'} & set(sys.modules)), logging.getLogger('torchao').level)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(chat_folder)], text=True, timeout=100, check=True, capture_output=True
    )
    assert (done.stdout, done.stderr) == ("['torchao'] 0\n", "")
