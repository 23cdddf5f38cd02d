"""Reading audio: every kind a person may bring, and every way a file can be wrong."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media import MediaLimits, load_audio

from .files import CODECS, RATE, encoded, sine, wav

KINDS = sorted(CODECS)
TELLS_ITS_LENGTH = KINDS


def pitch(sound: NDArray[np.float32], rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return float(spectrum.argmax() * rate / len(sound))


@pytest.mark.parametrize("kind", KINDS)
def test_every_common_kind_of_file_becomes_mono_at_the_models_rate(kind: str) -> None:
    sound = load_audio(encoded(kind), sampling_rate=16_000)
    assert sound.dtype == np.float32
    assert sound.ndim == 1
    assert abs(len(sound) / 16_000 - 2.0) < 0.06
    assert abs(pitch(sound, 16_000) - 440) < 2
    assert 0.4 < np.abs(sound).max() < 0.6


def test_the_length_and_values_of_a_wav_at_the_models_rate_are_kept_exactly() -> None:
    samples = sine(0.5, rate=16_000)
    sound = load_audio(wav(samples, rate=16_000), sampling_rate=16_000)
    assert len(sound) == len(samples)
    assert np.abs(sound - samples).max() < 1 / 16_000


def test_a_path_a_file_and_bytes_give_the_same(tmp_path: Path) -> None:
    data = encoded("flac")
    path = tmp_path / "tön.flac"
    path.write_bytes(data)
    with path.open("rb") as file:
        sounds = [load_audio(source, sampling_rate=16_000) for source in (path, str(path), file, data)]
    assert all(np.array_equal(sounds[0], other) for other in sounds)


def test_arrays_are_resampled_from_the_rate_that_is_given() -> None:
    sound = load_audio(sine(1.0), sampling_rate=16_000, source_rate=RATE)
    assert abs(len(sound) - 16_000) < 20
    assert abs(pitch(sound, 16_000) - 440) < 2


def test_an_array_without_a_rate_is_taken_to_be_at_the_models() -> None:
    samples = sine(0.2)
    assert np.array_equal(load_audio(samples, sampling_rate=16_000), samples)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_channels_of_an_array_are_averaged(axis: int) -> None:
    stereo = np.stack([np.full(100, 0.5, np.float32), np.full(100, 0.1, np.float32)], axis=axis)
    assert np.allclose(load_audio(stereo, sampling_rate=16_000), 0.3)


def test_integers_are_scaled_by_their_full_range() -> None:
    assert np.allclose(load_audio(np.full(10, -(2**15), np.int16), sampling_rate=8_000), -1.0)
    assert np.allclose(load_audio(np.full(10, 2**30, np.int32), sampling_rate=8_000), 0.5)


@pytest.mark.parametrize("array", [
    np.zeros(0, np.float32), np.zeros((4, 4, 4), np.float32), np.zeros((200, 300), np.float32), np.array([1.0, np.nan]),
    np.array([np.inf]), np.zeros(4, np.uint8), np.array(["a"]), np.zeros(4, complex), np.float32(0.5),
])  # fmt: skip
def test_an_array_that_is_no_sound_is_refused(array: Any) -> None:
    with pytest.raises(BadInput):
        load_audio(array, sampling_rate=16_000)


@pytest.mark.parametrize("rate", [0, -1])
def test_a_senseless_rate_is_refused(rate: int) -> None:
    with pytest.raises(BadInput, match="sampling rate"):
        load_audio(sine(0.1), sampling_rate=16_000, source_rate=rate)


@pytest.mark.parametrize("kind", TELLS_ITS_LENGTH)
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.9])
def test_a_sound_cut_short_is_refused(kind: str, keep: float) -> None:
    data = encoded(kind)
    with pytest.raises(BadInput, match=r"cut short|can't be decoded"):
        load_audio(data[: int(len(data) * keep)], sampling_rate=16_000)


def test_a_wav_that_lacks_its_very_last_sample_is_refused_and_says_how_much_is_there() -> None:
    data = wav(sine(1.0, rate=16_000), rate=16_000)
    with pytest.raises(BadInput, match=r"promises 32,000 bytes of sound, 31,998 are there"):
        load_audio(data[:-2], sampling_rate=16_000)


def test_a_long_wav_is_measured_by_its_64_bit_size() -> None:
    samples = (sine(0.5, rate=16_000) * 32767).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
    sizes = struct.pack("<QQQI", 0, len(samples), 8_000, 0)
    head = b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<I", 28) + sizes + b"fmt " + struct.pack("<I", 16) + form
    data = head + b"data\xff\xff\xff\xff" + samples
    assert len(load_audio(data, sampling_rate=16_000)) == 8_000
    with pytest.raises(BadInput, match="cut short"):
        load_audio(data[:-1000], sampling_rate=16_000)


def test_a_big_endian_wav_is_refused_because_it_would_decode_to_noise() -> None:
    data = wav(sine(0.5, rate=16_000), rate=16_000)
    with pytest.raises(BadInput, match="big-endian"):
        load_audio(b"RIFX" + data[4:], sampling_rate=16_000)


def test_a_video_without_sound_says_so() -> None:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(BadInput, match="no sound in it"):
        load_audio(out.getvalue(), sampling_rate=16_000)


def test_the_sound_of_a_video_is_read_also_when_it_ends_before_the_picture() -> None:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        video, audio = container.add_stream("mpeg4", rate=10), container.add_stream("pcm_s16le", rate=16_000)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio.layout = "mono"
        for _ in range(30):
            container.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
        samples = (sine(1.0, rate=16_000) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
        container.mux(video.encode(None))
    assert len(load_audio(out.getvalue(), sampling_rate=16_000)) == 16_000


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_from_a_recorder_that_did_not_know_the_length_is_read_to_its_end(size: int) -> None:
    data = bytearray(wav(sine(0.5, rate=16_000), rate=16_000))
    data[40:44] = struct.pack("<I", size)
    assert len(load_audio(bytes(data), sampling_rate=16_000)) == 8_000


def test_an_ogg_that_lacks_only_its_last_page_is_refused() -> None:
    data = encoded("ogg", seconds=3.0)
    with pytest.raises(BadInput, match="the page that ends the stream is missing"):
        load_audio(data[: data.rfind(b"OggS")], sampling_rate=16_000)


@pytest.mark.parametrize("data", [b"hello", b"\0" * 5000, b"RIFF\0\0\0\0WAVE", b"ID3\4\0\0\0\0\0\0", b"fLaC", b"OggS"])
def test_what_is_no_audio_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        load_audio(data, sampling_rate=16_000)


def test_a_wav_without_samples_is_refused() -> None:
    with pytest.raises(BadInput):
        load_audio(wav(np.zeros(0, np.float32)), sampling_rate=16_000)


def test_a_picture_has_no_sound() -> None:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "PNG")
    with pytest.raises(BadInput):
        load_audio(out.getvalue(), sampling_rate=16_000)


def test_a_play_list_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.wav").write_bytes(wav(sine(0.5)))
    monkeypatch.chdir(tmp_path)
    for text in (b"ffconcat version 1.0\nfile secret.wav\n", b"#EXTM3U\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n"):
        with pytest.raises(BadInput):
            load_audio(text, sampling_rate=16_000)


@pytest.mark.parametrize(
    "source", [wav(sine(2.0)), encoded("flac"), sine(2.0, rate=16_000)], ids=["wav", "flac", "array"]
)
def test_the_limit_of_seconds_holds_for_files_and_arrays(source: Any) -> None:
    assert len(load_audio(source, MediaLimits(max_seconds=2.1), sampling_rate=16_000)) == 32_000
    with pytest.raises(MediaTooLarge, match=r"longer than the 1\.5 seconds"):
        load_audio(source, MediaLimits(max_seconds=1.5), sampling_rate=16_000)


def test_a_header_that_hides_the_length_does_not_get_past_the_limit() -> None:
    data = bytearray(encoded("mkv", seconds=3.0))
    at = data.find(b"\x44\x89")
    data[at : at + 2] = b"\x44\x88"
    with pytest.raises(MediaTooLarge):
        load_audio(bytes(data), MediaLimits(max_seconds=1.0), sampling_rate=16_000)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["wav", "flac", "ogg", "mp3", "m4a"]), st.data())
def test_damaged_sounds_raise_nothing_but_bad_input(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(_SHORT[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        sound = load_audio(bytes(damaged), sampling_rate=16_000)
    except BadInput:
        return
    assert sound.size


_SHORT = {kind: encoded(kind, seconds=0.3) for kind in ("wav", "flac", "ogg", "mp3", "m4a")}
