"""Chats about sounds, by models that hear (Qwen2-Audio): what they say is what Transformers itself would say."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskrouter.backends.base import LoadedModel
from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, CheckpointMissing, MediaTooLarge, PreflightFailed, UnsupportedInput
from taskrouter.media.audio import load_audio
from taskrouter.samples.manifest import MEDIA
from taskrouter.types import CPU
from taskrouter.verbs import ChatRequest
from tests.engines.sound_checkpoint import sound_checkpoint

from .checkpoints import CHARGES, request

pytestmark = pytest.mark.anyio
BEEPS, NOISE = MEDIA / "beeps.wav", MEDIA / "noise.wav"
RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound_checkpoint(tmp_path_factory.mktemp("checkpoints") / "hears")


def ask(*parts: Any, **options: Any) -> ChatRequest:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return ChatRequest(({"role": "user", "content": content},), **{"max_tokens": 8, **options})


def sound(source: Any, **beside: Any) -> dict[str, Any]:
    if isinstance(source, Path):
        source = base64.b64encode(source.read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": source, "format": "wav", **beside}}


async def loaded(backend: TransformersBackend, folder: Path) -> LoadedModel:
    return await backend.load(request(folder), (CPU,), CHARGES)


@pytest.mark.slow
async def test_it_says_of_sounds_what_transformers_says(backend: TransformersBackend, folder: Path) -> None:
    import torch
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(folder)
    theirs = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model = await loaded(backend, folder)
    said = []
    for sounds in ([BEEPS], [NOISE], [BEEPS, NOISE]):
        mine = await model.call("chat", ask(*map(sound, sounds), "what is it?"))
        marks = "<|audio_bos|><|AUDIO|><|audio_eos|>" * len(sounds)
        samples = [load_audio(file, sampling_rate=RATE) for file in sounds]
        inputs = processor(text=f"<user>{marks}what is it?<bot>", audio=samples, return_tensors="pt")
        with torch.inference_mode():
            whole = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)
        assert mine.text == processor.tokenizer.decode(whole[0, inputs["input_ids"].shape[1] :])
        assert mine.usage.prompt_tokens == inputs["input_ids"].shape[1]
        said.append(mine.text)
    assert len(set(said)) == 3
    pieces = [piece.text async for piece in model.stream("stream_chat", ask(sound(BEEPS), "what is it?"))]
    assert "".join(pieces) == said[0]
    assert await backend.unload(model, timeout_s=5) == {}


@pytest.mark.slow
async def test_a_sound_is_one_however_it_is_given(backend: TransformersBackend, folder: Path) -> None:
    model = await loaded(backend, folder)
    url = "data:audio/wav;base64," + base64.b64encode(BEEPS.read_bytes()).decode()
    samples = load_audio(BEEPS, sampling_rate=RATE)
    same = [
        sound(BEEPS),
        sound(BEEPS.read_bytes()),
        sound(samples, sampling_rate=RATE),
        {"type": "input_audio", "input_audio": BEEPS},
        {"type": "audio_url", "audio_url": {"url": str(BEEPS)}},
        {"type": "audio_url", "audio_url": url},
    ]
    answers = [await model.call("chat", ask(each, "?")) for each in same]
    assert len({answer.text for answer in answers}) == 1
    assert (await model.call("chat", ask("?"))).usage.prompt_tokens < answers[0].usage.prompt_tokens
    await backend.unload(model, timeout_s=5)


async def test_what_it_cannot_hear_is_refused_and_says_why(backend: TransformersBackend, folder: Path) -> None:
    found = await backend.preflight(request(folder))
    assert found.verbs == {"chat", "stream_chat"}
    assert found.lacks.keys() == {"image", "video", "document", "tools", "extra"}
    assert found.slots == 1
    model = await loaded(backend, folder)
    for part, kind, said in (
        (sound("no base64!"), BadInput, "no base64"),
        (sound("bm8gc291bmQ="), BadInput, "can't be decoded as audio"),
        (sound(np.zeros(99, np.float32)), BadInput, r"sampling_rate \(Hz\)"),
        (sound(np.full(999, np.nan, np.float32), sampling_rate=RATE), BadInput, "no numbers"),
        ({"type": "input_audio", "input_audio": {}}, BadInput, "nothing in it: write input_audio: {data"),
        (sound(np.zeros(31 * RATE, np.float32), sampling_rate=RATE), MediaTooLarge, "hears 30 s at once"),
        ({"type": "image_url", "image_url": {"url": "x.png"}}, UnsupportedInput, "takes text, sounds"),
        ("<|AUDIO|>", BadInput, "stands for a sound"),
    ):
        with pytest.raises(kind, match=said):
            await model.call("chat", ask(part, "?"))
    longest = sound(np.zeros(30 * RATE, np.float32), sampling_rate=RATE)
    assert (await model.call("chat", ask(longest, "?"))).usage.prompt_tokens > 700
    await backend.unload(model, timeout_s=5)


@pytest.mark.parametrize(
    ("file", "kind"), [("chat_template.jinja", PreflightFailed), ("processor_config.json", CheckpointMissing)]
)
async def test_a_checkpoint_without_its_template_or_its_processor_is_refused_before_it_is_loaded(
    backend: TransformersBackend, tmp_path: Path, file: str, kind: type[Exception]
) -> None:
    folder = sound_checkpoint(tmp_path / "hears")
    (folder / file).unlink()
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    with pytest.raises(kind, match="chat template" if file.endswith("jinja") else "can't be prepared"):
        await backend.preflight(request(folder))
