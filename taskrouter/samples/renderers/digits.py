"""Spoken digits for the digits sample: one to five English digits in a row, at 16 kHz, in many voices and accents.

Every eighth family of espeak-ng's voices is kept out of training, with all its members (``iven`` to ``iven4`` sound
alike): a held-out utterance is spoken by one of those alone, and nothing is done to it. What training hears is also
stretched, now and then whispered, buried in noise and set in silence. All is drawn from the generator passed in.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from taskrouter.samples.renderers.speech import speaker
from taskrouter.samples.renderers.tones import RATE, noise

Split = Literal["train", "held-out"]
Sound = NDArray[np.float32]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = (
    "en-029", "en-GB-scotland", "en-GB-x-gbclan", "en-GB-x-gbcwmd", "en-GB-x-rp", "en", "en-US", "en-US-nyc",
)  # fmt: skip
MOST = 5
"""Digits in one utterance."""

_SLOWEST, _QUICKEST = 110, 220
"""Words a minute."""
_PITCHES = (15, 85)
_WHISPERED = 0.1
_BLOCK = 256
"""Samples: lengths are whole numbers of these, so that a spectrum is quick to have."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is said, and how it sounds: float32, mono, within -1 and 1."""

    text: str
    sound: Sound


def is_held_out(variant: str) -> bool:
    """Whether this voice, with those named like it but for a number, is kept out of training."""
    return zlib.crc32(variant.lower().rstrip("0123456789").encode()) % 8 == 0


@cache
def variants(split: Split) -> tuple[str, ...]:
    """The names of the voices."""
    return tuple(name for name in speaker().variants() if is_held_out(name) == (split == "held-out"))


def render(rng: np.random.Generator, split: Split = "train", *, count: int | None = None) -> Utterance:
    """Say so many digits (some, where it isn't said) in a voice of the split."""
    words = [str(word) for word in rng.choice(WORDS, count or int(rng.integers(1, MOST + 1)))]
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(variants(split))}"
    said = speaker().say(
        (", " if rng.random() < 0.25 else " ").join(words),
        voice,
        words_a_minute=int(rng.integers(_SLOWEST, _QUICKEST)),
        pitch=int(rng.integers(*_PITCHES)),
        liveliness=int(rng.integers(*_PITCHES)),
    )
    stretch = RATE / speaker().rate
    if split == "held-out":
        return Utterance(" ".join(words), _resampled(said, stretch))
    sound = _resampled(said, stretch * np.exp(rng.uniform(np.log(0.78), np.log(1.28))))
    if rng.random() < _WHISPERED:
        sound = _whispered(rng, sound)
    return Utterance(" ".join(words), _dressed(rng, sound))


def _whispered(rng: np.random.Generator, sound: Sound) -> Sound:
    """The same without a voice: how loud each band is for some milliseconds is kept, the phases are left to chance."""
    half = _BLOCK // 4
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, half), 2 * half)[::half]
    window = np.hanning(2 * half + 1)[:-1]
    loud = np.abs(np.fft.rfft(frames * window))
    breath = np.fft.irfft(loud * np.exp(1j * rng.uniform(0, 2 * np.pi, loud.shape))) * window
    whole = np.zeros((len(frames) + 1, half))
    whole[:-1] += breath[:, :half]
    whole[1:] += breath[:, half:]
    return np.asarray(whole.reshape(-1)[half : half + len(sound)], dtype=np.float32)


def _dressed(rng: np.random.Generator, sound: Sound) -> Sound:
    """With silence around it, in noise, louder or softer."""
    loud = float(sound.std())
    padded: NDArray[np.floating] = np.pad(sound, [_BLOCK * int(rng.uniform(0, 0.4) * RATE / _BLOCK) for _ in range(2)])
    if rng.random() < 0.7:
        padded = padded + noise(rng, len(padded)) * loud * 10 ** (-rng.uniform(5, 35) / 20)
    return np.asarray(padded * (rng.uniform(0.1, 0.95) / float(np.abs(padded).max())), dtype=np.float32)


def _resampled(sound: Sound, by: float) -> Sound:
    """About so many times as long, by its spectrum: higher or lower too, as a smaller or larger speaker sounds."""
    padded = np.pad(sound, (0, -len(sound) % _BLOCK))
    length = _BLOCK * math.ceil(len(padded) * by / _BLOCK)
    spectrum = np.fft.rfft(padded)
    fitted = np.zeros(length // 2 + 1, dtype=spectrum.dtype)
    shared = min(len(fitted), len(spectrum))
    fitted[:shared] = spectrum[:shared]
    return np.clip(np.fft.irfft(fitted, length) * (length / len(padded)), -1, 1).astype(np.float32)
