"""What is found out before anything is loaded, or evicted for it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskrouter.backends.hf import examine as examine_module
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.demands import DEMANDS
from taskrouter.errors import CheckpointCorrupt, CheckpointMissing, MissingDependency, PreflightFailed
from taskrouter.memory.estimate import WORKING_FLOOR
from taskrouter.types import CPU, Footprint, Traits

from .checkpoints import CHARGES, CONTEXT, request

pytestmark = pytest.mark.anyio
Spoil = Callable[[], Path]


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; ``None`` removes one."""
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def test_traits_are_known_without_any_import(backend: TransformersBackend) -> None:
    expected = Traits(serial_group="transformers", cancellable=True, can_sleep=True, slots=1, start_s=2.0)
    assert backend.traits(request("anything")) == expected


async def test_each_architecture_brings_its_verbs_and_an_estimate(
    backend: TransformersBackend, chat_folder: Path, image_folder: Path, audio_folder: Path
) -> None:
    found = [await backend.preflight(request(folder)) for folder in (chat_folder, image_folder, audio_folder)]
    assert [each.verbs for each in found] == [{"chat", "stream_chat", "generate"}, {"classify"}, {"classify"}]
    assert found[0].lacks.keys() == DEMANDS - {"automatic tools"}  # it takes none at all
    assert (found[0].context, found[1].lacks, found[1].context) == (CONTEXT, {}, None)
    header = int.from_bytes((chat_folder / "model.safetensors").read_bytes()[:8], "little")
    weights = (chat_folder / "model.safetensors").stat().st_size - 8 - header
    assert found[0].need == Footprint(weights + WORKING_FLOOR)


async def test_the_estimate_follows_dtype_context_and_devices(backend: TransformersBackend, chat_folder: Path) -> None:
    async def need(**options: Any) -> int:
        found = (await backend.preflight(request(chat_folder, **options))).need
        assert found is not None
        return found.device_bytes - WORKING_FLOOR

    full = await need()
    assert await need(dtype="bf16") == full // 2
    assert await need(max_context=100) == full + 100 * 2 * 2 * 16 * 2 * 4
    assert full // 2 < await need(devices=2) < full


async def test_a_folder_is_found_beside_the_configuration(backend: TransformersBackend, chat_folder: Path) -> None:
    assert await backend.preflight(request(chat_folder.name, base_dir=str(chat_folder.parent)))
    with pytest.raises(CheckpointMissing, match="no such folder"):
        await backend.preflight(request("./nothing-here", base_dir=str(chat_folder.parent)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine_args": {"attn_implementatoin": "sdpa"}}, r"attn_implementatoin.*did you mean attn_implementation"),
        ({"engine_args": {"attn_implementation": 3}}, r"wants a str, not 3"),
        ({"engine_args": {"use_safetensors": "no"}}, r"wants a bool"),
        ({"engine_args": {"video_frames": True}}, r"video_frames wants a whole number, 1 or more, not True"),
        ({"engine_args": {"video_frames": 0}}, r"video_frames wants a whole number, 1 or more, not 0"),
        ({"engine_args": {"video_layout": "sheets"}}, r"'sheets' is not one of frames, sheet \(did you mean sheet"),
        ({"engine_args": {"video-layout": "sheet"}}, r"video-layout says how a vision .* Remove video-layout"),
        ({"engine_args": {"torch_dtype": "bfloat16"}}, r"write dtype beside model_id"),
        ({"engine_args": {"device_map": "auto"}}, r"write devices beside model_id"),
        ({"dtype": "float61"}, r"'float61' is not one of auto.*did you mean float16"),
        ({"max_context": 129}, r"max_context is 129.*at most 128"),
        ({"max_context": "much"}, r"max_context wants a number"),
        ({"max_context": 0}, r"max_context wants a number"),
        ({"quantization": "awq"}, r"quantization awq needs gptqmodel"),
    ],
)
async def test_what_cannot_work_is_named(
    backend: TransformersBackend, chat_folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PreflightFailed, match=message) as refused:
        await backend.preflight(request(chat_folder, **options))
    assert chat_folder.name in str(refused.value)


async def test_keys_that_could_do_nothing_are_refused(
    backend: TransformersBackend, chat_folder: Path, image_folder: Path
) -> None:
    with pytest.raises(PreflightFailed, match=r"revision 'main' names a version on the hub.*is a folder"):
        await backend.preflight(request(chat_folder, revision="main"))
    with pytest.raises(PreflightFailed, match="max_context bounds the text of a chat model"):
        await backend.preflight(request(image_folder, max_context=128))


async def test_known_arguments_pass(backend: TransformersBackend, chat_folder: Path) -> None:
    arguments = {"attn-implementation": "eager", "use_safetensors": True}
    assert await backend.preflight(request(chat_folder, engine_args=arguments, max_context="auto", dtype="auto"))


async def test_code_in_the_checkpoint_needs_the_key_that_allows_it(backend: TransformersBackend, spoil: Spoil) -> None:
    folder = spoil()
    edit(
        folder / "config.json",
        architectures=["OwnForCausalLM"],
        auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    )
    with pytest.raises(PreflightFailed, match="trust_remote_code: true"):
        await backend.preflight(request(folder))
    found = await backend.preflight(request(folder, trust_remote_code=True))
    assert found.verbs == {"chat", "stream_chat", "generate"}


@pytest.mark.parametrize(
    ("architectures", "message"),
    [
        (["NeverHeardOfForCausalLM"], "knows no architecture 'NeverHeardOfForCausalLM'.*Upgrade"),
        (["BertForMaskedLM"], "BertForMaskedLM can be loaded, but .* no verb"),
        ([], "names no architecture"),
        (None, "names no architecture"),
        ("LlamaForCausalLM", "names no architecture"),
    ],
)
async def test_an_architecture_that_cannot_be_run_is_named(
    backend: TransformersBackend, spoil: Spoil, architectures: Any, message: str
) -> None:
    folder = spoil()
    edit(folder / "config.json", architectures=architectures)
    with pytest.raises(PreflightFailed, match=message):
        await backend.preflight(request(folder))


async def test_a_base_model_without_chat_template_only_goes_on(backend: TransformersBackend, spoil: Spoil) -> None:
    folder = spoil()
    (folder / "chat_template.jinja").unlink()
    assert (await backend.preflight(request(folder))).verbs == {"generate"}
    edit(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    assert "chat" in (await backend.preflight(request(folder))).verbs


async def test_a_missing_tokenizer_or_processor_is_named(
    backend: TransformersBackend, spoil: Spoil, audio_folder: Path, tmp_path: Path
) -> None:
    folder = spoil()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointMissing, match=r"tokenizer\.json"):
        await backend.preflight(request(folder))
    (tmp_path / "config.json").write_bytes((audio_folder / "config.json").read_bytes())
    with pytest.raises(CheckpointMissing, match=r"preprocessor_config\.json"):
        await backend.preflight(request(tmp_path))


async def test_damaged_weights_are_found_before_loading(backend: TransformersBackend, spoil: Spoil) -> None:
    file = spoil() / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(CheckpointCorrupt, match="cut off"):
        await backend.preflight(request(file.parent))
    file.unlink()
    with pytest.raises(CheckpointMissing, match="no weights"):
        await backend.preflight(request(file.parent))


async def test_whatever_else_is_wrong_with_a_checkpoint_is_a_typed_error(
    backend: TransformersBackend, spoil: Spoil
) -> None:
    folder = spoil()
    edit(folder / "config.json", num_hidden_layers="many")
    with pytest.raises(PreflightFailed, match=r"could not be checked: ValueError: .*many"):
        await backend.preflight(request(folder, max_context=8))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(PreflightFailed, match="could not be checked: IsADirectoryError"):
        await backend.load(request(folder), (CPU,), CHARGES)


async def test_a_package_that_is_there_and_broken_is_a_missing_dependency(
    backend: TransformersBackend, chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(examine_module, "known_architectures", broken)
    with pytest.raises(MissingDependency, match="libcudart"):
        await backend.preflight(request(chat_folder))


async def test_pickled_weights_need_the_key_that_allows_them(backend: TransformersBackend, spoil: Spoil) -> None:
    folder = spoil()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PreflightFailed, match="use_safetensors: false"):
        await backend.preflight(request(folder))
    assert await backend.preflight(request(folder, engine_args={"use_safetensors": False}))


async def test_a_missing_package_names_the_extra(
    backend: TransformersBackend, chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"torch, transformers.*pip install taskrouter\[transformers\]"):
        await backend.preflight(request(chat_folder))


async def test_the_loop_is_free_during_preflight_and_a_caller_may_leave(
    backend: TransformersBackend, chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go = threading.Event(), threading.Event()

    def slow(*_: Any, **__: Any) -> Path:
        entered.set()
        go.wait()
        return chat_folder

    monkeypatch.setattr(examine_module, "locate", slow)
    checking = asyncio.create_task(backend.preflight(request(chat_folder)))
    await asyncio.to_thread(entered.wait)
    assert not checking.done()
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    go.set()
