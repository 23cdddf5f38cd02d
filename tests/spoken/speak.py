"""Speak the held-out set of the digits sample again: ``python tests/spoken/speak.py [FOLDER]``. Needs espeak-ng.

All utterances are one Opus file, so that it stays small; ``digits.tsv`` says where each begins, in samples at 16 kHz,
how long it is, and what is said.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np

from taskrouter.samples.evaluate import HELD_OUT_SEED
from taskrouter.samples.renderers.tones import RATE
from taskrouter.samples.word_error import held_out

COUNT = 400
_BETWEEN = RATE // 5
_BITS_A_SECOND = 14_000


def speak(folder: Path) -> None:
    """Write ``digits.opus`` and ``digits.tsv``."""
    utterances = held_out(COUNT, seed=HELD_OUT_SEED)
    silence = np.zeros(_BETWEEN, dtype=np.float32)
    pieces, lines, place = [silence], [], _BETWEEN
    for each in utterances:
        lines.append(f"{place}\t{len(each.sound)}\t{each.text}\n")
        pieces += [each.sound, silence]
        place += len(each.sound) + _BETWEEN
    (folder / "digits.tsv").write_text("".join(lines))
    sound = (np.concatenate(pieces) * 32767).astype(np.int16)
    with av.open(str(folder / "digits.opus"), "w", format="ogg") as out:
        stream = out.add_stream("libopus", rate=RATE, layout="mono")
        stream.bit_rate = _BITS_A_SECOND
        frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)


if __name__ == "__main__":
    speak(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
