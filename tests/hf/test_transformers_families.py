"""Each family that people use is loaded, asked, put to sleep, woken and unloaded, and nothing is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from taskrouter.backends.transformers import TransformersBackend
from taskrouter.types import CPU, GIB, MIB
from taskrouter.verbs import (
    ChatRequest,
    ClassifyRequest,
    DepthRequest,
    DetectRequest,
    EmbedRequest,
    Point,
    SegmentRequest,
    TranscribeRequest,
)
from tests.engines.sound_checkpoint import sound_checkpoint
from tests.media.test_media_video import FILM

from .checkpoints import CHARGES, audio_checkpoint, chat_checkpoint, image_checkpoint, request, say
from .families import (
    DETECTORS,
    WORD_HEARING,
    WORD_WATCHERS,
    ZERO_SHOT_CLASSIFIERS,
    ZERO_SHOT_DETECTORS,
    sentence_bert,
    wav2vec2_ctc,
    whisper,
)
from .families_seeing import DEPTHS, LABELLERS, POINTED, WATCHERS
from .families_talking import TALKERS
from .test_transformers_classify import picture
from .test_transformers_transcribe import recording

pytestmark = pytest.mark.anyio
WORDS = ("cat", "dog")
HEARING: dict[str, Callable[[Path], None]] = {"wav2vec2_ctc": wav2vec2_ctc, "whisper": whisper}
PLAIN: dict[str, Callable[[Path], object]] = {
    "llama": chat_checkpoint,
    "vit": image_checkpoint,
    "wav2vec2": audio_checkpoint,
    "sentence_bert": sentence_bert,
}
EVERY: dict[str, Callable[[Path], object]] = {
    **PLAIN,
    **TALKERS,
    **WATCHERS,
    **DEPTHS,
    **DETECTORS,
    **LABELLERS,
    **POINTED,
    **ZERO_SHOT_DETECTORS,
    **ZERO_SHOT_CLASSIFIERS,
    **WORD_HEARING,
    **WORD_WATCHERS,
    **HEARING,
    "qwen2_audio": sound_checkpoint,
}


def question(name: str, folder: Path) -> tuple[str, Any]:
    if name in HEARING:
        return "transcribe", TranscribeRequest(recording(folder / "a.wav", 2))
    if name in PLAIN:
        asked: dict[str, tuple[str, Any]] = {
            "llama": ("chat", say("w1 w2", max_tokens=5)),
            "vit": ("classify", ClassifyRequest(picture())),
            "wav2vec2": ("classify", ClassifyRequest(recording(folder / "a.wav", 2))),
            "sentence_bert": ("embed", EmbedRequest(("w1 w2", "w3"))),
        }
        return asked[name]
    if name in TALKERS:
        content = [{"type": "image_url", "image_url": {"url": picture()}}, {"type": "text", "text": "w1"}]
        return "chat", ChatRequest(({"role": "user", "content": content},), max_tokens=5)
    if name == "qwen2_audio":
        heard = {"type": "input_audio", "input_audio": Path(recording(folder / "a.wav", 2))}
        return "chat", ChatRequest(({"role": "user", "content": [heard]},), max_tokens=5)
    if name in WATCHERS:
        return "classify", ClassifyRequest(FILM)
    if name in POINTED:
        return "segment", SegmentRequest(picture(), points=((Point(3, 4),),))
    if name in LABELLERS:
        return "segment", SegmentRequest(picture(), threshold=None if name == "segformer" else 0.0)
    if name in DEPTHS:
        return "depth", DepthRequest(picture().resize((80, 60)))
    if name in WORD_WATCHERS:
        return "classify", ClassifyRequest(FILM, labels=WORDS)
    if name in WORD_HEARING:
        return "classify", ClassifyRequest(recording(folder / "a.wav", 2), labels=WORDS)
    if name in ZERO_SHOT_CLASSIFIERS:
        return "classify", ClassifyRequest(picture(), labels=WORDS)
    return "detect", DetectRequest(picture(), WORDS if name in ZERO_SHOT_DETECTORS else (), threshold=0.0)


def plain(answer: Any) -> Any:
    """An answer that can be compared: arrays as their bytes."""
    if isinstance(answer, tuple):
        return [plain(each) for each in answer]
    if hasattr(answer, "tobytes"):
        return answer.shape, answer.tobytes()
    if not dataclasses.is_dataclass(answer) or isinstance(answer, type):
        return answer
    return {field.name: plain(getattr(answer, field.name)) for field in dataclasses.fields(answer)}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
async def test_it_answers_the_same_after_a_sleep_and_leaves_nothing(
    backend: TransformersBackend, tmp_path: Path, name: str
) -> None:
    EVERY[name](tmp_path / name)
    found = await backend.preflight(request(tmp_path / name))
    model = await backend.load(request(tmp_path / name), (CPU,), CHARGES)
    verb, wanted = question(name, tmp_path)
    assert found.verbs == model.verbs
    assert verb in found.verbs
    assert model.measured is not None
    assert found.need is not None
    assert found.need.device_bytes >= model.measured.device_bytes * 0.9
    assert await model.call(verb, wanted)
    said = []
    for _ in range(2):
        # As mapped from its file a weight lies at any address, and the CPU adds up in another order there.
        await backend.demote(model, timeout_s=5)
        await backend.promote(model, {CPU: GIB})
        said.append(await model.call(verb, wanted))
    assert plain(said[0]) == plain(said[1])
    assert await backend.unload(model, timeout_s=5) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
async def test_after_twenty_lives_the_process_is_as_large_as_after_a_few(
    backend: TransformersBackend, tmp_path: Path, name: str
) -> None:
    EVERY[name](tmp_path / name)
    verb, wanted = question(name, tmp_path)
    sizes = []
    for _ in range(25):
        model = await backend.load(request(tmp_path / name), (CPU,), CHARGES)
        await model.call(verb, wanted)
        assert await backend.unload(model, timeout_s=5) == {}
        del model
        sizes.append(psutil.Process().memory_full_info().uss)
    # The first lives load libraries and fill caches.
    assert sizes[-1] <= sizes[4] * 1.05, [size // MIB for size in sizes]
