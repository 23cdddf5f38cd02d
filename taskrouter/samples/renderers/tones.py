"""Sounds for the tones sample: one pattern of pitch over time, in some noise, at 16 kHz.

Everything is drawn from the generator that is passed in, so a seed is a data set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
"""Samples a second."""

LABELS = ("steady tone", "rising tone", "falling tone", "beeps", "warble", "two-tone siren", "noise")
SHORTEST_S, LONGEST_S = 1.0, 2.4

_FADE_S = 0.01

Sound = NDArray[np.float32]
Curve = NDArray[np.float64]


def render(rng: np.random.Generator, label: str | None = None) -> Sound:
    """Play one sound of ``label`` (random where none is given): float32, mono, within -1 and 1."""
    label = label or str(rng.choice(LABELS))
    seconds = rng.uniform(SHORTEST_S, LONGEST_S)
    time = np.arange(int(seconds * RATE), dtype=np.float64) / RATE
    sound = noise(rng, len(time)) if label == "noise" else _tone(rng, _pitch(rng, label, time, seconds))
    if label == "beeps":
        sound *= _gate(rng, time)
    edge = np.minimum(time, time[::-1]) / _FADE_S
    sound *= np.minimum(edge, 1)

    quiet = [np.zeros(int(rng.uniform(0, 0.2) * RATE)) for _ in range(2)]
    sound = np.concatenate([quiet[0], sound, quiet[1]])
    hiss = rng.normal(0, 1, len(sound)) * sound.std() * 10 ** (-rng.uniform(10, 40) / 20)
    sound += hiss
    loudness = rng.uniform(0.05, 0.95) / float(np.abs(sound).max())
    return np.asarray(sound * loudness, dtype=np.float32)


def _pitch(rng: np.random.Generator, label: str, time: Curve, seconds: float) -> Curve:
    """Hertz at every sample."""
    base = float(np.exp(rng.uniform(np.log(220), np.log(1600))))
    progress = time / seconds
    bend: Curve = np.ones_like(time)
    if label in {"rising tone", "falling tone"}:
        octaves = rng.uniform(0.5, 1.5) * progress
        bend = 2 ** (octaves if rng.random() < 0.5 else octaves.max() * progress**2)
        bend = bend if label == "rising tone" else bend[::-1]
    elif label == "warble":
        bend = 1 + rng.uniform(0.03, 0.1) * np.sin(2 * np.pi * rng.uniform(5, 9) * time + rng.uniform(0, 6.28))
    elif label == "two-tone siren":
        high = np.floor(time * rng.uniform(3, 6) + rng.uniform(0, 2)) % 2
        bend = np.where(high > 0, rng.uniform(1.25, 2.0), 1.0)
    return base * bend


def _tone(rng: np.random.Generator, hertz: Curve) -> Curve:
    """A tone of that pitch with a random timbre."""
    phase = 2 * np.pi * np.cumsum(hertz) / RATE + rng.uniform(0, 6.28)
    sound = np.sin(phase)
    for harmonic in (2, 3, 4):
        if harmonic * hertz.max() < 0.45 * RATE:
            sound += rng.uniform(0, 0.5) / (harmonic - 1) * np.sin(harmonic * phase + rng.uniform(0, 6.28))
    return sound


def _gate(rng: np.random.Generator, time: Curve) -> Curve:
    """On and off, at least three times in the shortest sound, with soft edges (a hard edge is a click)."""
    rate, duty = rng.uniform(3, 8), rng.uniform(0.35, 0.65)
    where = (time * rate + rng.uniform(0, 1)) % 1
    return np.clip(np.minimum(where, duty - where) / rate / (_FADE_S / 2), 0, 1)


def noise(rng: np.random.Generator, length: int) -> Curve:
    """Noise from white to brownish, perhaps without its lowest part."""
    spectrum = np.fft.rfft(rng.normal(0, 1, length))
    hertz = np.fft.rfftfreq(length, 1 / RATE)
    spectrum *= np.maximum(hertz, 50.0) ** -rng.uniform(0, 1)
    spectrum[hertz < rng.uniform(0, 300)] = 0
    sound = np.fft.irfft(spectrum, length)
    return np.asarray(sound / sound.std())
