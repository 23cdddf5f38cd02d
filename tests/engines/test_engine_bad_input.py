"""What real engines refuse: said before anything is evicted where it can be, else with their own last words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from taskrouter import ModelManager, errors
from taskrouter.backends.engines.api import refusal_of
from taskrouter.manager import StillMachine
from taskrouter.samples.manifest import sample_dir
from taskrouter.types import GIB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ENGINES = ("vllm", "sglang")
ENV = {"vllm": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}, "sglang": {}}


def manager(folder: Path, engine: str, python: str, keys: dict[str, Any]) -> ModelManager:
    bad = {"model_id": str(sample_dir("claims")), "framework": engine, "vram_gb": 3, "max_context": 256,
           "dtype": "float32", "env": ENV[engine], **keys}  # fmt: skip
    # It fills the room: whatever is evicted for the bad one is this.
    good = {"model_id": "good", "framework": "fake", "vram_gb": 2, "engine_args": {"bytes": "1GiB"}}
    tasks = {
        "bad": {"kind": "chat", "selected": "bad", "options": {"bad": bad}, "max_wait_s": 200},
        "good": {"kind": "chat", "selected": "good", "options": {"good": good}},
    }
    file = folder / "models.yaml"
    engines = {engine: {"python": python, "start_timeout_s": 120}}
    sections = {"engines": engines, "inference": {"offload_threshold": 1.0}}
    file.write_text(json.dumps({"tasks": tasks, **sections}), encoding="utf-8")
    return ModelManager(file, machine=StillMachine({"cpu": 4 * GIB}))


def play(manager: ModelManager, main: Callable[[ModelManager], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with manager:
            good = await manager.get_model("good")
            await good.chat("hello")
            await main(manager)
            assert (await good.chat("hello")).text

    asyncio.run(whole())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"engine_args": {"max-modle-len": 5}}, r"unrecognized arguments: --max-modle-len.*did you mean --"),
        ({"engine_args": {"load-format": "safetensor"}}, r"load-format.*safetensors"),
        ({"quantization": "awqq4"}, r"quantization.*awqq4.*awq"),
        ({"engine_args": {"port": 5}}, r"engine_args.port is what taskrouter writes itself"),
        ({"quantization": "8bit"}, r"quantization 8bit"),
        ({"max_context": 10_000}, r"was built for .* 256 tokens"),
        ({"model_id": "no/such-model"}, r"neither a folder .* nor complete in the Hugging Face cache"),
    ],
)
def test_what_its_parser_or_its_files_forbid_evicts_nobody(
    tmp_path: Path, engine: str, engine_python: Callable[[str], str], keys: dict[str, Any], said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    async def main(manager: ModelManager) -> None:
        with pytest.raises(errors.PreflightFailed, match=rf"(?s)^(bad|no/such-model).*{said}"):
            await manager.get_model("bad")
        assert list(manager.loaded_models) == ["good"]

    play(manager(tmp_path, engine, engine_python(engine), keys), main)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_the_engine_can_not_serve_fails_with_its_last_words(
    tmp_path: Path, engine: str, engine_python: Callable[[str], str]
) -> None:
    """A classifier of images: its files are whole, and only the engine knows that it has no such architecture."""

    async def main(manager: ModelManager) -> None:
        with pytest.raises(errors.LoadFailed, match=r"(?s)bad: its engine ended with exit status 1.*Its last lines:"):
            await manager.get_model("bad")

    keys = {"model_id": str(sample_dir("shapes")), "max_context": None}
    play(manager(tmp_path, engine, engine_python(engine), keys), main)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("This model's maximum context length is 256 tokens. However, you requested 300", errors.ContextTooLong),
        ("The input (300 tokens) is longer than the model's context length (256 tokens).", errors.ContextTooLong),
        ("Requested token count exceeds the model's maximum context length of 256 tokens", errors.ContextTooLong),
        ("Requested tokens (300) exceed context window of 256", errors.ContextTooLong),
        ("/models/claims is not a multimodal model", errors.UnsupportedInput),
        ("At most 0 image(s) may be provided in one prompt.", errors.UnsupportedInput),
        ("image input is not supported for this model", errors.UnsupportedInput),
        (
            '"auto" tool choice requires --enable-auto-tool-choice to be set',
            errors.UnsupportedInput,
        ),
        ("temperature must be non-negative, got -1.", errors.BadInput),
    ],
)
def test_what_only_this_engine_can_not_do_is_told_from_what_is_bad_everywhere(
    said: str, kind: type[errors.BadInput]
) -> None:
    assert type(refusal_of(said)) is kind
