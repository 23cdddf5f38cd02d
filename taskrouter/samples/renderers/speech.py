"""Speech for the digits sample: espeak-ng, called directly, from the wheel that holds its library and its voices.

Only whoever trains the sample, or renders its held-out set again, needs it: ``pip install espeakng-loader``.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SYNCHRONOUS, _UTF8 = 2, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
"""espeak-ng's own numbers of what can be set; so are those above."""

_FULL_SCALE = 32768

_Heard = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker:
    """The one espeak-ng of this process: it holds its voice in globals, so there can't be two.

    What it says depends a little on what it said before; the same words in the same order sound the same.
    """

    def __init__(self) -> None:
        import espeakng_loader

        self._data = Path(espeakng_loader.get_data_path())
        self._library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        self._pieces: list[NDArray[np.int16]] = []
        self._heard = _Heard(self._hear)
        self._voice = ""
        self.rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(self._data).encode(), 0)
        """Samples a second."""
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng doesn't start with its data in {self._data}.")
        self._library.espeak_SetSynthCallback(self._heard)

    def variants(self) -> list[str]:
        """The names of its voices, each of which speaks every language."""
        return sorted(file.name for file in (self._data / "voices" / "!v").iterdir())

    def say(self, text: str, voice: str, *, words_a_minute: int, pitch: int, liveliness: int) -> NDArray[np.float32]:
        """Speak; ``voice`` is ``language+variant``, ``pitch`` and ``liveliness`` (of the pitch) go from 0 to 100."""
        if voice != self._voice:
            if self._library.espeak_SetVoiceByName(voice.encode()):
                raise ValueError(f"espeak-ng has no voice {voice!r}.")
            self._voice = voice
        for setting, value in ((_RATE, words_a_minute), (_PITCH, pitch), (_RANGE, liveliness)):
            self._library.espeak_SetParameter(setting, value, 0)
        self._pieces.clear()
        said = text.encode() + b"\0"
        failed = self._library.espeak_Synth(said, len(said), 0, 0, 0, _UTF8, None, None)
        if failed or not self._pieces:
            raise RuntimeError(f"espeak-ng said nothing of {text!r} with {voice}.")
        return np.asarray(np.concatenate(self._pieces) / _FULL_SCALE, dtype=np.float32)

    def _hear(self, samples: Any, count: int, _: Any) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


@cache
def speaker() -> Speaker:
    """The one of this process."""
    return Speaker()
