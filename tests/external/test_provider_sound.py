"""``transcribe`` through the SDKs: what is sent, what comes back, what is refused."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest

from taskrouter import errors
from taskrouter.backends.external import sound
from taskrouter.backends.external.base import Call, Endpoint
from taskrouter.backends.external.openai import OpenAIProvider
from taskrouter.samples.manifest import MEDIA
from taskrouter.verbs import Segment, TranscribeRequest, Transcript, Usage

from . import google_wire
from .asking import camel
from .subjects import GOOGLE
from .wire import Wire, answer, serving

pytestmark = pytest.mark.anyio
WHISPER = {
    "task": "transcribe", "language": "english", "duration": 1.1, "text": "beep beep",
    "segments": [{"id": 0, "start": 0.0, "end": 1.1, "text": "beep beep", "seek": 0, "tokens": [], "temperature": 0.0,
                  "avg_logprob": -0.1, "compression_ratio": 1.0, "no_speech_prob": 0.0}],
}  # fmt: skip
LATER = {"text": "beep", "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 3, "total_tokens": 17}}


async def transcribed(wire: Wire, audio: Any, model: str = "whisper-1", **more: Any) -> Transcript:
    connection = OpenAIProvider().connect(Endpoint(wire.url + "/v1", "test-key-1"))
    try:
        found = await connection.call("transcribe", TranscribeRequest(audio, **more), Call("t/far", model, 10))
        assert isinstance(found, Transcript)
        return found
    finally:
        await connection.close()


async def test_a_sound_file_becomes_a_transcript_with_its_segments() -> None:
    async with serving() as wire:
        wire.script(answer(WHISPER))
        found = await transcribed(wire, MEDIA / "beeps.wav", language="en", prompt="Beeps:")
        assert (found.text, found.language, found.duration_s) == ("beep beep", "english", 1.1)
        assert found.segments == (Segment(0.0, 1.1, "beep beep"),)
        (seen,) = wire.requests
    assert seen.path == "/v1/audio/transcriptions"
    for part in (b'name="model"', b"whisper-1", b"verbose_json", b'filename="beeps.wav"', b"Beeps:", b"en"):
        assert part in seen.raw
    assert (MEDIA / "beeps.wav").read_bytes() in seen.raw


async def test_later_models_answer_in_json_and_count_tokens() -> None:
    async with serving() as wire:
        wire.script(answer(LATER))
        found = await transcribed(wire, (MEDIA / "beeps.wav").read_bytes(), "gpt-4o-transcribe")
        assert (found.text, found.usage, found.segments) == ("beep", Usage(14, 3), ())
        assert b"verbose_json" not in wire.requests[0].raw


async def test_what_is_no_transcript_and_what_the_provider_refuses_is_told_apart() -> None:
    async with serving() as wire:
        wire.script(answer({"said": "nothing"}), answer({"error": {"message": "no sound in it"}}, 400))
        with pytest.raises(errors.ProviderProtocol):
            await transcribed(wire, b"RIFF")
        with pytest.raises(errors.BadInput, match="no sound in it"):
            await transcribed(wire, b"RIFF")


@pytest.mark.parametrize(
    ("audio", "name"),
    [
        ("data:audio/mpeg;base64," + base64.b64encode(b"ID3").decode(), "audio.mp3"),
        (io.BytesIO(b"RIFF"), "audio.wav"),
        (b"RIFF", "audio.wav"),
    ],
)
def test_bytes_are_named_by_what_they_are(audio: Any, name: str) -> None:
    assert sound.sound_file(TranscribeRequest(audio), "t/far")[0] == name


async def test_what_is_too_large_or_not_there_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "MOST_BYTES", 10)
    async with serving() as wire:
        with pytest.raises(errors.MediaTooLarge, match="t/far: the audio has"):
            await transcribed(wire, b"x" * 11)
        with pytest.raises(errors.BadInput):
            await transcribed(wire, str(tmp_path / "nothing.wav"))
        assert wire.requests == []


async def test_google_s_models_are_asked_for_a_transcript() -> None:
    request = TranscribeRequest(MEDIA / "beeps.wav", language="en", prompt="Beeps:")
    async with serving() as wire, GOOGLE.connected(wire) as connection:
        wire.script(answer(google_wire.text(" beep beep\n")))
        found = await connection.call("transcribe", request, GOOGLE.call())
        assert (found.text, found.language, found.usage) == ("beep beep", "en", Usage(13, 7))
        (seen,) = wire.requests
    (wish,), (sound_,) = [[part for part in camel(seen.json)["contents"][0]["parts"] if name in part] for name in (
        "text", "inlineData")]  # fmt: skip
    assert "Transcribe this recording" in wish["text"]
    assert "'en'" in wish["text"]
    assert wish["text"].endswith("Beeps:")
    assert base64.urlsafe_b64decode(sound_["inlineData"]["data"]) == (MEDIA / "beeps.wav").read_bytes()
    assert sound_["inlineData"]["mimeType"] == "audio/wav"


@pytest.mark.parametrize("reason", ["MAX_TOKENS", "SAFETY"])
async def test_half_a_transcript_is_none(reason: str) -> None:
    async with serving() as wire, GOOGLE.connected(wire) as connection:
        wire.script(answer(google_wire.response({"text": "beep"}, finish_reason=reason)))
        with pytest.raises(errors.UnsupportedInput, match="gave no whole transcript"):
            await connection.call("transcribe", TranscribeRequest(b"RIFF"), GOOGLE.call())
