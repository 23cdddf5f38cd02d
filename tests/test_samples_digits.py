"""The digits sample: what it is taught, how it is measured, and what it is measured by."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from taskrouter.media import load_audio
from taskrouter.samples.evaluate import HELD_OUT_SEED
from taskrouter.samples.manifest import SPOKEN
from taskrouter.samples.render import render_speech
from taskrouter.samples.renderers import digits
from taskrouter.samples.renderers.digits import Utterance
from taskrouter.samples.renderers.tones import RATE
from taskrouter.samples.word_error import held_out, word_error

SPOKEN_SET = Path(__file__).parent / "spoken"

speaks = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeak-ng speaks what this sample learns from"
)


@cache
def spoken() -> list[Utterance]:
    """The held-out set as it was spoken by ``spoken/speak.py``."""
    sound = load_audio(SPOKEN_SET / "digits.opus", sampling_rate=RATE)
    lines = [line.split("\t") for line in (SPOKEN_SET / "digits.tsv").read_text().splitlines()]
    return [Utterance(text, sound[int(start) : int(start) + int(length)]) for start, length, text in lines]


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
@pytest.mark.slow
def test_the_spoken_set_and_the_demonstrated_sound_are_what_their_scripts_say(tmp_path: Path) -> None:
    assert render_speech(tmp_path) == "four six nine eight seven"
    assert alike(*(load_audio(file, sampling_rate=RATE) for file in (SPOKEN, tmp_path / SPOKEN.name))) > 0.9
    kept, again = spoken(), held_out(40, seed=HELD_OUT_SEED)
    assert [each.text for each in kept[: len(again)]] == [each.text for each in again]
    assert np.median([alike(one.sound, other.sound) for one, other in zip(kept, again, strict=False)]) > 0.9
