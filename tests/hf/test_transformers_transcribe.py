"""Sounds to text with times."""

from __future__ import annotations

import asyncio
import time
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from taskrouter.backends.transformers import TransformersBackend
from taskrouter.errors import BadInput, MediaTooLarge, UnsupportedInput
from taskrouter.media import load_audio
from taskrouter.types import CPU
from taskrouter.verbs import TranscribeRequest, Transcript

from .checkpoints import CHARGES, request
from .families import wav2vec2_ctc, whisper

pytestmark = pytest.mark.anyio


def recording(path: Path, seconds: float, *, rate: int = 8000) -> str:
    """Noise, at another rate than the models want."""
    noise = np.random.default_rng(0).normal(0, 3000, int(rate * seconds))
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(noise.astype("<i2").tobytes())
    return str(path)


def in_time(transcript: Transcript, seconds: float) -> bool:
    """Whether the segments lie within the sound, each ending after it begins, in order."""
    times = [(each.start_s, each.end_s) for each in transcript.segments]
    return times == sorted(times) and all(0 <= start <= end <= seconds for start, end in times)


@pytest.mark.slow
async def test_letters_are_heard_in_chunks_as_by_transformers_own_pipeline(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    import transformers

    wav2vec2_ctc(tmp_path / "ctc")
    file = recording(tmp_path / "a.wav", 40)
    model = await backend.load(request(tmp_path / "ctc"), (CPU,), CHARGES)
    heard = await model.call("transcribe", TranscribeRequest(file))
    assert heard.duration_s == pytest.approx(40, abs=0.01)
    assert heard.text
    assert heard.segments
    assert in_time(heard, 40)
    listen = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path / "ctc"))
    samples = load_audio(file, sampling_rate=16_000)
    assert listen({"raw": samples, "sampling_rate": 16_000}, chunk_length_s=30)["text"].strip() == heard.text
    assert await backend.unload(model, timeout_s=5) == {}


@pytest.mark.slow
async def test_pieces_of_a_long_recording_are_heard_together_where_the_file_says_so(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    wav2vec2_ctc(tmp_path / "ctc")
    file = recording(tmp_path / "a.wav", 70)
    heard, passes = [], []
    for pieces in (1, 3):
        model = await backend.load(request(tmp_path / "ctc", pieces=pieces), (CPU,), CHARGES)
        rows: list[int] = []

        def note(_: Any, __: Any, inputs: dict[str, Any], rows: list[int] = rows) -> None:
            rows.append(len(inputs["input_values"]))

        hook = model.raw.register_forward_pre_hook(note, with_kwargs=True)
        heard.append(await model.call("transcribe", TranscribeRequest(file)))
        passes.append(rows)
        hook.remove()
        assert await backend.unload(model, timeout_s=5) == {}
    assert passes == [[1, 1, 1], [3]]
    assert heard[0].text == heard[1].text


@pytest.mark.slow
async def test_a_model_that_writes_as_it_listens_tells_times_and_takes_language_and_prompt(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    whisper(tmp_path / "whisper")
    file = recording(tmp_path / "a.wav", 40)
    model = await backend.load(request(tmp_path / "whisper"), (CPU,), CHARGES)

    async def ask(**how: Any) -> Transcript:
        answer = await model.call("transcribe", TranscribeRequest(file, **how))
        assert isinstance(answer, Transcript)
        return answer

    heard = await ask(language="de")
    assert heard.language == "de"
    assert heard.duration_s == pytest.approx(40, abs=0.01)
    assert heard.segments
    assert in_time(heard, 40)
    assert await ask(language="de") == heard
    assert await ask(language="en") != heard
    assert (await ask()).language in ("de", "en")  # what it took the sound for
    assert await ask(language="de", prompt="a b a b") != heard
    with pytest.raises(BadInput, match="language is 'fr'; this model knows de, en"):
        await ask(language="fr")
    assert await backend.unload(model, timeout_s=5) == {}


async def test_samples_are_heard_at_the_rate_they_were_recorded_at(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    wav2vec2_ctc(tmp_path / "ctc")
    model = await backend.load(request(tmp_path / "ctc"), (CPU,), CHARGES)
    samples = load_audio(recording(tmp_path / "a.wav", 1), sampling_rate=44_100)
    heard = await model.call("transcribe", TranscribeRequest(samples, sampling_rate=44_100))
    assert heard.duration_s == pytest.approx(1, abs=0.01)
    with pytest.raises(BadInput, match="say what they were recorded at"):
        await model.call("transcribe", TranscribeRequest(samples))
    assert await backend.unload(model, timeout_s=5) == {}


async def test_what_a_model_takes_no_notice_of_is_refused(backend: TransformersBackend, tmp_path: Path) -> None:
    wav2vec2_ctc(tmp_path / "ctc")
    file = recording(tmp_path / "a.wav", 1)
    model = await backend.load(request(tmp_path / "ctc"), (CPU,), CHARGES)
    for how, said in (
        ({"language": "en"}, "language is given"),
        ({"prompt": "names"}, "prompt is given"),
        ({"extra": {"beams": 3}}, "extra has beams"),
    ):
        with pytest.raises(UnsupportedInput, match=said):
            await model.call("transcribe", TranscribeRequest(file, **how))
    with pytest.raises(BadInput, match="can't be decoded"):
        await model.call("transcribe", TranscribeRequest(b"no sound at all, only words"))
    await backend.unload(model, timeout_s=5)


async def test_a_model_that_does_not_say_how_long_its_frames_are_is_given_short_sounds_only(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    wav2vec2_ctc(tmp_path / "ctc")
    model = await backend.load(request(tmp_path / "ctc"), (CPU,), CHARGES)
    config = model.raw.config
    model.raw.config = SimpleNamespace(**{k: getattr(config, k) for k in ("model_type", "vocab_size", "pad_token_id")})
    with pytest.raises(MediaTooLarge, match="lasts 40 s, and this model hears 30 at once and can't be given it in"):
        await model.call("transcribe", TranscribeRequest(recording(tmp_path / "a.wav", 40)))
    model.raw.config = config
    blip = await model.call("transcribe", TranscribeRequest(recording(tmp_path / "b.wav", 0.01)))
    assert blip.duration_s < 0.02
    assert in_time(blip, blip.duration_s)
    model.raw.hf_device_map = {"wav2vec2": "cpu", "lm_head": "cpu"}
    assert (await model.call("transcribe", TranscribeRequest(recording(tmp_path / "c.wav", 1)))).text
    await backend.unload(model, timeout_s=5)


async def test_a_prompt_that_is_too_much_or_says_what_it_may_not_is_refused(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    whisper(tmp_path / "whisper")
    file = recording(tmp_path / "a.wav", 1)
    model = await backend.load(request(tmp_path / "whisper"), (CPU,), CHARGES)
    for prompt, said in (("a b " * 40, "and this model takes 31: shorten it"), ("a <|en|> b", "prompt can't be given")):
        with pytest.raises(BadInput, match=said):
            await model.call("transcribe", TranscribeRequest(file, prompt=prompt))
    await backend.unload(model, timeout_s=5)


@pytest.mark.slow
async def test_who_gives_up_a_long_recording_is_heard_no_further(backend: TransformersBackend, tmp_path: Path) -> None:
    whisper(tmp_path / "whisper")
    file = recording(tmp_path / "a.wav", 600)
    model = await backend.load(request(tmp_path / "whisper"), (CPU,), CHARGES)
    passes = 0
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1
        loop.call_soon_threadsafe(begun.set)

    model.raw.register_forward_pre_hook(count)
    call = asyncio.create_task(model.call("transcribe", TranscribeRequest(file, language="en")))
    await begun.wait()
    call.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert time.monotonic() - started < 5
    assert passes < 20  # of some hundred for ten minutes
    await backend.unload(model, timeout_s=5)
