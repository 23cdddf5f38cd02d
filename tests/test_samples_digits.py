"""The digits sample: what it is taught, how it is measured, and that the one that ships is right."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from taskrouter import ModelManager
from taskrouter.media import load_audio
from taskrouter.samples import sample_dir
from taskrouter.samples.evaluate import HELD_OUT_SEED
from taskrouter.samples.manifest import SPOKEN
from taskrouter.samples.render import render_speech
from taskrouter.samples.renderers import digits
from taskrouter.samples.renderers.tones import RATE
from taskrouter.samples.word_error import heard, held_out, word_error

ROOT = Path(__file__).parents[1]

speaks = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeak-ng speaks what this sample learns from"
)


def alike(one: digits.Sound, other: digits.Sound) -> float:
    """1 for the same sound; what espeak-ng said before may make it a little longer."""
    length = min(len(one), len(other))
    return float(np.corrcoef(one[:length], other[:length])[0, 1])


# --- the measure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heard_as", "wrong"),
    [
        ("one two three", 0),
        ("one two", 1),
        ("one two two three", 1),
        ("one nine three", 1),
        ("", 3),
        ("two three one", 2),
        ("nine nine nine nine", 4),
    ],
)
def test_word_error_counts_what_is_changed_put_in_and_left_out(heard_as: str, wrong: int) -> None:
    assert word_error(["one two three"], [heard_as]) == pytest.approx(wrong / 3)


def test_word_error_is_by_words_and_not_by_utterances() -> None:
    assert word_error(["one", "one two three"], ["two", "one two three"]) == pytest.approx(1 / 4)


# --- the renderer -----------------------------------------------------------------------------------------------------


@speaks
def test_voices_are_held_out_by_family_and_no_voice_is_in_both_splits() -> None:
    train, others = (set(digits.variants(split)) for split in ("train", "held-out"))
    assert not train & others
    assert len(train) > 60
    assert len(others) > 12
    families = [{name.lower().rstrip("0123456789") for name in names} for names in (train, others)]
    assert not families[0] & families[1]


@speaks
def test_an_utterance_is_as_loud_and_as_long_as_said() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 5):
        for split in ("train", "held-out"):
            utterance = digits.render(rng, split, count=count)
            assert len(utterance.text.split()) == count
            assert utterance.sound.dtype == np.float32
            assert 0.05 < np.abs(utterance.sound).max() <= 1
            assert 0.2 < len(utterance.sound) / RATE < 8


@speaks
def test_the_demonstrated_sound_is_what_its_script_says(tmp_path: Path) -> None:
    assert render_speech(tmp_path) == "four six nine eight seven"
    assert alike(*(load_audio(file, sampling_rate=RATE) for file in (SPOKEN, tmp_path / SPOKEN.name))) > 0.9


# --- the one that ships -----------------------------------------------------------------------------------------------


@speaks
@pytest.mark.slow
def test_the_shipped_model_hears_voices_it_never_heard_as_its_card_says() -> None:
    utterances = held_out(400, seed=HELD_OUT_SEED)
    wrong = 100 * word_error(
        [each.text for each in utterances], heard([each.sound for each in utterances], sample_dir("digits"))
    )
    stated = re.search(r"\*\*([\d.]+) %\*\* word error", (sample_dir("digits") / "README.md").read_text())
    assert stated, "the card names no figure"
    assert wrong <= 4
    assert abs(wrong - float(stated[1])) < 0.5


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_task_writes_down_what_is_said_with_the_time_of_each_word() -> None:
    async with ModelManager(ROOT / "models.yaml") as manager:
        model = await manager.get_model("audio_transcription")
        transcript = await model.transcribe(str(SPOKEN))
    assert transcript.text == "four six nine eight seven"
    assert [segment.text for segment in transcript.segments] == transcript.text.split()
    times = [(segment.start_s, segment.end_s) for segment in transcript.segments]
    assert times == sorted(times)
    assert transcript.duration_s is not None
    assert all(start < end <= transcript.duration_s for start, end in times)
