"""Bad media, and odd but good ones: what each comes to, the same for pictures, sounds and videos."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media import MediaLimits, load_audio, load_image, load_video

from .files import encoded, mux_sound, sine
from .seeds import IMAGES, SOUNDS
from .test_media_video import FILM, film, seconds_of


def listen(source: Any, limits: MediaLimits | None = None) -> Any:
    return load_audio(source, limits, sampling_rate=16_000)


READERS: dict[str, Callable[..., Any]] = {"image": load_image, "audio": listen, "video": load_video}
GOOD = {"image": IMAGES["jpeg"](), "audio": SOUNDS["wav"](), "video": FILM}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("data", [b"", b"words", bytes(4_000), b"\xff" * 4_000, b"#EXTM3U\n/etc/passwd\n"])
def test_what_is_empty_or_nothing_of_the_kind_is_refused(kind: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    for source in (data, io.BytesIO(data), tmp_path / "file", "data:;base64," + base64.b64encode(data).decode()):
        with pytest.raises(BadInput):
            READERS[kind](source)


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_a_wrong_name_or_type_does_no_harm(kind: str, tmp_path: Path) -> None:
    """What is in a file says what it is."""
    (tmp_path / "a.txt").write_bytes(GOOD[kind])
    url = "data:application/pdf;base64," + base64.b64encode(GOOD[kind]).decode()
    for source in (tmp_path / "a.txt", url):
        assert READERS[kind](source) is not None


@pytest.mark.parametrize(
    ("reader", "given"),
    [("image", "audio"), ("image", "video"), ("audio", "image"), ("video", "image"), ("video", "audio")],
)
def test_a_file_of_another_kind_is_refused(reader: str, given: str) -> None:
    with pytest.raises(BadInput):
        READERS[reader](GOOD[given])


@pytest.mark.parametrize("kind", READERS)
def test_bytes_are_measured_before_they_are_copied(kind: str) -> None:
    with pytest.raises(MediaTooLarge, match=r"media\.max_bytes"):
        READERS[kind](memoryview(GOOD[kind]), MediaLimits(max_bytes=20))


def test_no_program_is_run_to_read_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would have Ghostscript read an EPS file."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n", encoding="utf-8")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(BadInput, match="of a kind that isn't known"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "PPM", "QOI"])
def test_the_rarer_kinds_of_pictures_are_read_too(kind: str) -> None:
    written = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(written, kind)
    red, green, blue = np.asarray(load_image(written.getvalue()))[30, 30]
    assert red > 240
    assert green < 20
    assert blue < 20


# --- sounds ----------------------------------------------------------------------------------------------------------


def recorded(form: str, codec: str, layout: str = "mono", *, level: int = 8_000) -> bytes:
    """A second of one level on all channels."""
    written = io.BytesIO()
    channels = av.AudioLayout(layout).nb_channels
    with av.open(written, "w", format=form) as container:
        samples = np.full((1, 16_000 * channels), level, np.int16)
        mux_sound(container, container.add_stream(codec, rate=16_000, layout=layout), samples, 16_000)
    return written.getvalue()


@pytest.mark.parametrize(
    ("form", "codec", "layout"),
    [
        ("flac", "flac", "7.1"),
        ("wav", "pcm_s16le", "7.1"),
        ("wav", "pcm_s16le", "hexadecagonal"),
        ("matroska", "aac", "7.1"),
    ],
)
def test_many_channels_are_averaged(form: str, codec: str, layout: str) -> None:
    """PyAV's arrays of planes end the process from eight channels on."""
    sound = listen(recorded(form, codec, layout))
    assert len(sound) == pytest.approx(16_000, abs=1_100)
    assert np.median(sound) == pytest.approx(8_000 / 32_768, abs=0.005)


@pytest.mark.parametrize(("form", "codec"), [("wv", "wavpack"), ("tta", "tta"), ("caf", "alac"), ("w64", "pcm_f32le")])
def test_the_rarer_kinds_of_sounds_are_read_too(form: str, codec: str) -> None:
    assert np.median(listen(recorded(form, codec))) == pytest.approx(8_000 / 32_768, abs=0.005)


def test_a_broadcast_that_goes_from_mono_to_stereo_is_read_on() -> None:
    sound = listen(recorded("adts", "aac") + recorded("adts", "aac", "stereo") + recorded("adts", "aac"))
    assert len(sound) == pytest.approx(48_000, abs=4_500)  # each is filled up at its ends
    assert np.median(sound) == pytest.approx(8_000 / 32_768, abs=0.005)


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_a_sound_of_exactly_the_longest_length_is_read(kind: str) -> None:
    """Its pieces, added up as fractions of a second, come to more."""
    assert len(listen(encoded(kind, seconds=3.0), MediaLimits(max_seconds=3.0))) == 48_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused_in_files_and_arrays(bad: float) -> None:
    samples = sine(0.1, rate=16_000)
    samples[100] = bad
    written = io.BytesIO()
    with av.open(written, "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for source in (samples, written.getvalue()):
        with pytest.raises(BadInput, match="no numbers"):
            listen(source)


# --- videos ----------------------------------------------------------------------------------------------------------


def test_a_video_of_no_length_and_a_picture_alone_are_no_videos() -> None:
    nothing: list[Any] = []
    for source in (nothing, np.zeros((0, 4, 4, 3), np.uint8), np.float32(1), Image.new("RGB", (4, 4))):
        with pytest.raises(BadInput):
            load_video(source)


def shades(number: int) -> np.ndarray[Any, Any]:
    """Pictures that are each as light as their place, four levels a step."""
    return np.repeat(np.arange(number, dtype=np.uint8) * 4, 16 * 24 * 3).reshape(number, 16, 24, 3)


def test_pictures_in_an_array_or_a_list_are_a_video() -> None:
    frames = shades(12)
    pictures = [Image.fromarray(frame) for frame in frames]
    for source in (frames, list(frames), pictures, tuple(pictures)):
        every = load_video(source)
        assert (seconds_of(every), every.seconds, every.times_s[-1]) == (list(range(12)), 12.0, 11.0)
        some = load_video(source, count=4, side=12)
        assert (seconds_of(some), some.frames[0].size) == ([0, 3, 6, 9], (12, 8))
    quick = load_video(frames, fps=2, source_fps=6)
    assert (seconds_of(quick), quick.seconds) == ([0, 3, 6, 9], 2.0)
    assert seconds_of(load_video(frames, fps=3)) == list(range(12))
    assert seconds_of(load_video(frames, start_s=2, end_s=5)) == [2, 3, 4]
    assert len(load_video(frames, count=50).frames) == 12


@pytest.mark.parametrize(
    ("limits", "how", "said"),
    [
        (MediaLimits(max_frames=5), {}, "12 frames of the video were asked for, and media.max_frames allows 5"),
        (MediaLimits(max_frames=5), {"count": 6}, "6 frames"),
        (MediaLimits(max_seconds=3), {}, "lasts 12 s"),
        (MediaLimits(max_pixels=383), {"count": 1}, "24 × 16 = 384 pixels"),
        (MediaLimits(max_pixels=400), {}, "together"),
    ],
)
def test_the_limits_hold_for_pictures_too(limits: MediaLimits, how: dict[str, Any], said: str) -> None:
    with pytest.raises(MediaTooLarge, match=said):
        load_video(shades(12), limits, **how)


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
def test_a_senseless_rate_of_pictures_is_refused(rate: float) -> None:
    with pytest.raises(BadInput, match="a rate above 0"):
        load_video(shades(2), source_fps=rate)


def test_a_video_whose_time_goes_back_is_not_sought_in_for_ever() -> None:
    """The fuzzer's find: its last picture says 0 s, which each seek came to anew."""
    written = io.BytesIO()
    data = film(1, gop=4, form="matroska", left_out=lambda place: place == 9)
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(written, "w", format="matroska", options={"cluster_time_limit": "400"}) as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                container.mux_one(packet)
    odd = bytearray(written.getvalue())
    at = odd.index(b"\xe7", odd.rindex(b"\x1f\x43\xb6\x75"))  # the time of the last cluster
    odd[at + 2 : at + 4] = bytes(2)
    assert load_video(bytes(odd), count=4).times_s == pytest.approx((0.0, 0.2, 0.4))


def growing() -> bytes:
    """A second of 64 × 32 pixels, then one of 256 × 128."""
    written = io.BytesIO()
    with av.open(written, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        place = 0
        for width, height in ((64, 32), (256, 128)):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 10), Fraction(10)
            encoder.options = {"preset": "ultrafast", "tune": "zerolatency"}
            for last in range(11):
                frame = av.VideoFrame(width, height, "yuv420p") if last < 10 else None
                if frame is not None:
                    frame.pts, place = place, place + 1
                for packet in encoder.encode(frame):
                    packet.stream, packet.time_base = stream, Fraction(1, 10)
                    container.mux_one(packet)
    return written.getvalue()


def test_a_video_whose_pictures_grow_is_held_to_the_limit() -> None:
    assert {frame.size for frame in load_video(growing()).frames} == {(64, 32), (256, 128)}
    with pytest.raises(MediaTooLarge, match="together"):
        load_video(growing(), MediaLimits(max_pixels=256 * 128))
    with pytest.raises(MediaTooLarge, match="pictures of 256 × 128 pixels"):
        load_video(growing(), MediaLimits(max_pixels=20_000))
    with pytest.raises(BadInput):  # not even decoded
        load_video(growing(), MediaLimits(max_pixels=5_000))


@pytest.mark.parametrize(("form", "codec"), [("mov", "mjpeg"), ("webm", "libvpx-vp9"), ("mp4", "libx264")])
def test_a_video_of_too_large_pictures_says_so_whoever_decodes_it(form: str, codec: str) -> None:
    written = io.BytesIO()
    with av.open(written, "w", format=form) as container:
        stream = container.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        container.mux(stream.encode(av.VideoFrame(320, 240, stream.pix_fmt)))
        container.mux(stream.encode(None))
    for most in (320 * 240 - 1, 1_000):
        with pytest.raises(MediaTooLarge, match="pictures of 320 × 240 pixels"):
            load_video(written.getvalue(), MediaLimits(max_pixels=most))
    assert load_video(written.getvalue(), MediaLimits(max_pixels=320 * 240)).frames[0].size == (320, 240)
