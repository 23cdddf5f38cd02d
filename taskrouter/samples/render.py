"""Draw and play the media files of the demo again: ``python -m taskrouter.samples.render [FOLDER]``."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np

from taskrouter.media import load_audio
from taskrouter.samples.manifest import (
    CLIP,
    CLIP_CAPTION,
    CLIP_SEED,
    MEDIA,
    PICTURES,
    SCENE,
    SCENE_SEED,
    SOUNDS,
    SPOKEN,
    SPOKEN_SEED,
    VIDEO,
    VIDEO_ANSWERS,
    VIDEO_SEED,
)
from taskrouter.samples.renderers import clips, digits, scenes, shapes, tones

_FULL_SCALE = 32767
_RATE = 12
"""Frames a second of the clips."""


def render_media(folder: Path) -> None:
    """Write every picture, sound and clip of the manifest, but for the spoken one, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, label, size, seed in PICTURES:
        shapes.render(np.random.default_rng(seed), label, size=size).save(folder / file)
    scenes.render(np.random.default_rng(SCENE_SEED), size=(192, 144)).picture.save(folder / SCENE.name)
    rng = np.random.default_rng(CLIP_SEED)
    shot = clips.render(rng, CLIP_CAPTION, size=(160, 120))
    (folder / CLIP.name).write_bytes(clips.encoded(shot.frames(rng, 24), rate=_RATE, options={"crf": "30"}))
    rng = np.random.default_rng(VIDEO_SEED)
    shot = clips.render(rng, VIDEO_ANSWERS["video_summarization"], size=(160, 120))
    spoken = load_audio(SPOKEN, sampling_rate=tones.RATE)
    pictures = shot.frames(rng, round(spoken.size / tones.RATE * _RATE))
    (folder / VIDEO.name).write_bytes(clips.encoded(pictures, rate=_RATE, options={"crf": "30"}, sound=spoken))
    for file, label, seed in SOUNDS:
        _write(folder / file, tones.render(np.random.default_rng(seed), label))


def render_speech(folder: Path) -> str:
    """Write the spoken one, and return what it says. Needs espeak-ng."""
    utterance = digits.render(np.random.default_rng(SPOKEN_SEED), "held-out")
    _write(folder / SPOKEN.name, utterance.sound)
    return utterance.text


def _write(file: Path, sound: tones.Sound) -> None:
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(tones.RATE)
        out.writeframes((sound * _FULL_SCALE).astype("<i2").tobytes())


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else MEDIA
    render_media(target)
    render_speech(target)
