"""Who speaks when, told by the pitch of the voices: a small plug-in for taskrouter, with a verb of its own.

A model is a JSON file that says how high each voice is, in Hz: ``{"ada": 210, "bob": 115}``. A recording is cut into
windows; those loud enough are speech, their pitch is the lag at which the sound is most like itself, and the voice
nearest to that in pitch has said it.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from taskrouter.backends.base import Call, Medium, Preflight
from taskrouter.errors import CheckpointCorrupt, CheckpointMissing, ModelDied, UnsupportedVerb
from taskrouter.media.audio import load_audio
from taskrouter.types import MIB, Charges, DeviceId, Footprint, ModelRequest, Traits
from taskrouter.verbs import Segment, Transcript

RATE = 16_000
WINDOW = 1024
"""Samples a window, 64 ms: three periods of the lowest voice."""
HOP = 320
LOWEST, HIGHEST = 60.0, 450.0
AT_ONCE = 500
"""Windows between two looks at whether anybody still waits."""
SHORTEST_S = 0.1
NEED = Footprint(16 * MIB)
VERBS = frozenset({"diarize", "transcribe"})


@dataclass(frozen=True, slots=True)
class DiarizeRequest:
    """What ``diarize`` is asked: a path, bytes, a file object, a ``data:`` URL, or an array of 16 kHz.

    ``limits``: those it is read under; taskrouter fills them in. ``speakers``: the only ones it is to hear.
    """

    audio: Medium
    speakers: tuple[str, ...] = ()
    limits: Any = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One voice, without a pause; in seconds from the beginning."""

    speaker: str
    start_s: float
    end_s: float


class PitchModel:
    """Some voices. ``transcribe`` answers turns too, as segments whose text is the speaker."""

    verbs = VERBS
    measured = NEED

    def __init__(self, voices: Mapping[str, float]) -> None:
        self.voices: Mapping[str, float] | None = voices
        self.info = {"voices": len(voices), "can_sleep": "no: it is a handful of numbers"}

    @property
    def raw(self) -> Any:
        return self.voices

    async def call(self, verb: str, request: Any) -> Any:
        """Answer in a thread; cancelled, end when that has seen it."""
        if verb not in VERBS:
            raise UnsupportedVerb(f"a pitch model can't {verb}: it can {', '.join(sorted(VERBS))}")
        only = request.speakers if isinstance(request, DiarizeRequest) else ()
        stop = threading.Event()
        work = asyncio.ensure_future(asyncio.to_thread(self._turns, request.audio, only, request.limits, stop))
        try:
            turns = await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({work})
            raise
        if verb == "diarize":
            return turns
        said = tuple(Segment(turn.start_s, turn.end_s, turn.speaker) for turn in turns)
        return Transcript(", ".join(segment.text for segment in said), segments=said)

    def stream(self, verb: str, request: Any) -> AsyncIterator[Any]:
        raise UnsupportedVerb(f"a pitch model answers {verb} at once")

    async def wait_dead(self) -> Exception:
        never: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        return await never

    def _turns(self, audio: Any, only: Collection[str], limits: Any, stop: threading.Event) -> tuple[Turn, ...]:
        import numpy as np

        if self.voices is None:
            raise ModelDied("this pitch model was unloaded")
        names, heights = list(self.voices), np.log2(list(self.voices.values()))
        samples = load_audio(audio, limits, sampling_rate=RATE)
        samples = np.pad(samples, (0, max(WINDOW - samples.size, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
        heard: list[str | None] = []
        loud = 0.1 * float(np.abs(samples).max())
        for first in range(0, len(windows), AT_ONCE):
            if stop.is_set():
                return ()
            part = windows[first : first + AT_ONCE]
            speech = np.sqrt((part**2).mean(axis=1)) > loud
            nearest = np.abs(np.log2(_pitch(part))[:, None] - heights).argmin(axis=1)
            heard += [names[voice] if speaks else None for voice, speaks in zip(nearest, speech, strict=True)]
        return tuple(turn for turn in _runs(heard) if not only or turn.speaker in only)


def _pitch(windows: Any) -> Any:
    """Each window's pitch in Hz: the lag of its highest autocorrelation, by Wiener–Khinchin."""
    import numpy as np

    spectrum = np.fft.rfft(windows * np.hanning(WINDOW), 2 * WINDOW, axis=1)
    alike = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)
    first, last = int(RATE / HIGHEST), math.ceil(RATE / LOWEST)
    return RATE / (first + alike[:, first : last + 1].argmax(axis=1))


def _runs(heard: list[str | None]) -> list[Turn]:
    turns, place = [], 0
    for speaker, run in groupby(heard):
        length = sum(1 for _ in run)
        start, end = place * HOP / RATE, ((place + length - 1) * HOP + WINDOW) / RATE
        place += length
        if speaker is not None and length * HOP / RATE >= SHORTEST_S:
            turns.append(Turn(speaker, round(start, 2), round(end, 2)))
    return turns


class PitchBackend:
    """The backend for ``framework: pitch``."""

    calls: ClassVar = {"diarize": Call(DiarizeRequest, tuple[Turn, ...])}

    def traits(self, request: ModelRequest) -> Traits:
        return Traits(cancellable=True, slots=2, start_s=0.1)

    async def preflight(self, request: ModelRequest) -> Preflight:
        _read(request)
        return Preflight(NEED, VERBS)

    async def load(self, request: ModelRequest, devices: tuple[DeviceId, ...], charges: Charges) -> PitchModel:
        return PitchModel(_read(request))

    async def unload(self, model: Any, *, timeout_s: float) -> Charges:
        model.voices = None
        return {}

    async def residue(self, key: str) -> Charges:
        return {}

    async def close(self) -> None:
        """Nothing is held."""


def _read(request: ModelRequest) -> Mapping[str, float]:
    """The voices of a model. Raises ``CheckpointMissing`` or ``CheckpointCorrupt``, each saying what to do."""
    file = Path(request.base_dir) / request.model_id
    if not file.is_file():
        raise CheckpointMissing(f"{request.label}: there is no {file}. model_id wants a JSON file of voices.")
    try:
        voices = {str(name): float(height) for name, height in json.loads(file.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointCorrupt(f"{request.label}: {file} holds no voices ({error}).") from error
    if not voices or not all(LOWEST <= height <= HIGHEST for height in voices.values()):
        raise CheckpointCorrupt(f"{request.label}: {file} wants at least one voice, each of {LOWEST} to {HIGHEST} Hz.")
    return voices
