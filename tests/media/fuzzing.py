"""Mutated files through the readers: all that may come of one is a picture, a sound, a clip, or ``BadInput``.

A program of its own (``python -m tests.media.fuzzing FIRST COUNT FOLDER``), since what is to be found also ends a
process: a crash in native code, or a hang, which a watchdog turns into an end with a traceback. The file that is being
read stands in FOLDER all the while. Case N is the same mutation of the same file each time.

Prints one line of JSON: how many were read and refused, and what was wrong, each with its case.
"""

from __future__ import annotations

import faulthandler
import json
import random
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from taskrouter.errors import BadInput
from taskrouter.media import Clip, MediaLimits, load_audio, load_image, load_video

from .seeds import FILMS, IMAGES, SOUNDS

LIMITS = MediaLimits(max_bytes=1 << 20, max_pixels=1_000_000, max_seconds=60.0, max_frames=64)
HANG_S = 30.0
"""No machine is so busy that a file of some kilobytes takes longer."""
MOST_BYTES = 200 << 20
"""What reading one, and all before it, may add: decoders in several threads hold some pictures each."""
_COUNT = 4
_RATE = 16_000
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A few things done to a file, most often one, as bad disks, bad networks and bad people do."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_MUTATIONS)(found, other, rng)
        if not found:
            break
    if rng.random() < 0.7:
        _mend_checksums(found)
    return bytes(found)


def _mend_checksums(data: bytearray) -> None:
    """Let a PNG's chunks hold together again: else a changed one is refused before anything reads it."""
    at = 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4


def _flip_bits(data: bytearray, other: bytes, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 16)):
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, other: bytes, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _leave_out(data: bytearray, other: bytes, rng: random.Random) -> None:
    start, end = _stretch(data, rng)
    del data[start:end]


def _repeat(data: bytearray, other: bytes, rng: random.Random) -> None:
    start, end = _stretch(data, rng)
    data[end:end] = data[start:end] * rng.randint(1, 20)


def _splice(data: bytearray, other: bytes, rng: random.Random) -> None:
    start, end = _stretch(other, rng)
    at = _place(data, rng)
    data[at : at + (end - start) * rng.randint(0, 1)] = other[start:end]


def _set_number(data: bytearray, other: bytes, rng: random.Random) -> None:
    """Lengths, counts and sizes are numbers of 2, 4 or 8 bytes, in either order."""
    size = rng.choice((2, 4, 4, 8))
    number = rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.getrandbits(32)
    at = _place(data, rng)
    kept = number & ((1 << 8 * size) - 1)
    data[at : at + size] = kept.to_bytes(size, rng.choice(("big", "little")))


def _fill(data: bytearray, other: bytes, rng: random.Random) -> None:
    start, end = _stretch(data, rng)
    data[start:end] = bytes([rng.choice((0, 0xFF, rng.randrange(256)))]) * (end - start)


def _place(data: bytes | bytearray, rng: random.Random) -> int:
    """Anywhere; but more often near the beginning, where headers are."""
    size = max(len(data), 1)
    return rng.randrange(min(size, 256)) if rng.random() < 0.5 else rng.randrange(size)


def _stretch(data: bytes | bytearray, rng: random.Random) -> tuple[int, int]:
    start = _place(data, rng)
    return start, min(len(data), start + rng.randint(1, max(1, len(data) // 4)))


_MUTATIONS = (_flip_bits, _cut, _leave_out, _repeat, _splice, _set_number, _set_number, _fill)


def read_image(data: bytes) -> str:
    picture = load_image(data, LIMITS)
    right = picture.mode == "RGB" and 0 < picture.width * picture.height <= LIMITS.max_pixels
    return "" if right else f"a picture {picture}"


def read_audio(data: bytes) -> str:
    sound = load_audio(data, LIMITS, sampling_rate=_RATE)
    right = sound.dtype == np.float32 and sound.ndim == 1 and np.isfinite(sound).all()
    return "" if right and 0 < len(sound) <= _RATE * (LIMITS.max_seconds + 1) else f"a sound {sound.shape}"


def read_video(data: bytes) -> str:
    return _clip(load_video(data, LIMITS, count=_COUNT), _COUNT)


def read_all_of_a_video(data: bytes) -> str:
    return _clip(load_video(data, LIMITS), LIMITS.max_frames)


def _clip(clip: Clip, most: int) -> str:
    right = 1 <= len(clip.frames) == len(clip.times_s) <= most and list(clip.times_s) == sorted(set(clip.times_s))
    right = right and all(f.mode == "RGB" and f.width * f.height <= LIMITS.max_pixels for f in clip.frames)
    return "" if right and 0 <= clip.seconds <= LIMITS.max_seconds else f"a clip {clip}"


Reader = Callable[[bytes], str]
_READERS: dict[str, tuple[Reader, ...]] = {
    **dict.fromkeys(IMAGES, (read_image,)),
    **dict.fromkeys(SOUNDS, (read_audio,)),
    **dict.fromkeys(FILMS, (read_video, read_all_of_a_video, read_audio)),
}
_ANY: tuple[Reader, ...] = (read_image, read_audio, read_video)


def case(number: int, files: dict[str, bytes]) -> tuple[str, Reader, bytes]:
    """Which file was mutated, who is to read it, and the bytes; every sixteenth goes to a reader of another kind."""
    rng = random.Random(number)
    names = sorted(files)
    name, other = names[number % len(names)], rng.choice(names)
    reader = rng.choice(_READERS[name] if rng.random() > 1 / 16 else _ANY)
    return name, reader, mutated(files[name], files[other], rng)


def peak_bytes() -> int:
    """The most that this process ever held in RAM, since ``forget_peak``."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmHWM"))


def forget_peak() -> int:
    """The process's bytes in RAM as they are now; the peak is measured from here on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak_bytes()


def main(first: int, count: int, folder: Path) -> dict[str, Any]:
    faulthandler.enable()
    files = {name: make() for name, make in {**IMAGES, **SOUNDS, **FILMS}.items()}
    for name, data in files.items():  # the first of each kind also loads libraries and codecs
        for reader in _READERS[name]:
            try:
                reader(data)
            except BadInput:
                if reader is not read_audio:
                    raise
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    start, most = forget_peak(), 0
    for number in range(first, first + count):
        name, reader, data = case(number, files)
        (folder / "case").write_bytes(data)
        (folder / "which").write_text(f"case {number}: {name} by {reader.__name__}", encoding="utf-8")
        forget_peak()
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        try:
            said = reader(data)
            outcomes["read"] += 1
        except BadInput as error:
            said, outcomes["refused"] = "", outcomes["refused"] + 1
            if not str(error):
                said = "an error without words"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        faulthandler.cancel_dump_traceback_later()
        grown = peak_bytes() - start
        most = max(most, grown)
        if grown > MOST_BYTES:
            said = said or f"{grown >> 20} MiB"
        if said:
            wrong.append(f"case {number}, {name} by {reader.__name__}: {said[:300]}")
    return {**outcomes, "most_mib": most >> 20, "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))  # noqa: T201  its answer
