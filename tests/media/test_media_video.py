"""Pictures out of videos: which, when, upright, and without decoding what nobody wants."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media import video
from taskrouter.media.limits import MediaLimits
from taskrouter.media.video import Clip, load_video
from tests.external.clips import clip, sound

RATE = 10


def film(
    seconds: int = 12,
    *,
    gop: int = 20,
    form: str = "mp4",
    size: tuple[int, int] = (64, 32),
    left_out: Callable[[int], bool] = lambda place: False,
) -> bytes:
    """H.264, ten pictures a second, each as light as the second it is in; the left edge is white."""
    written = io.BytesIO()
    with av.open(written, "w", format=form) as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        for place in range(seconds * RATE):
            if left_out(place):
                continue
            pixels = np.full((size[1], size[0], 3), 4 * (place // RATE), np.uint8)
            pixels[:, : size[0] // 8] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = place
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return written.getvalue()


FILM = film()


def seconds_of(found: Clip) -> list[int]:
    """In which second each of its pictures stood, by its shade."""
    return [round(frame.convert("L").getpixel((frame.width // 2, frame.height // 2)) / 4) for frame in found.frames]  # type: ignore[operator]


def test_a_count_is_spread_over_the_whole() -> None:
    found = load_video(FILM, count=4)
    assert found.times_s == (0.0, 3.0, 6.0, 9.0)
    assert seconds_of(found) == [0, 3, 6, 9]
    assert found.seconds == pytest.approx(12.0, abs=0.1)


def test_so_many_a_second_are_taken_from_a_stretch() -> None:
    found = load_video(FILM, fps=2, start_s=4, end_s=6)
    assert found.times_s == pytest.approx((4.0, 4.5, 5.0, 5.5))
    assert seconds_of(found) == [4, 4, 5, 5]


def test_all_are_taken_where_nothing_is_said() -> None:
    assert len(load_video(FILM).frames) == 12 * RATE
    assert len(load_video(FILM, start_s=11).frames) == RATE


def test_fewer_are_taken_where_there_are_fewer() -> None:
    assert len(load_video(film(1), count=50).frames) == RATE


def test_what_is_on_the_screen_then_is_taken_where_the_rate_varies() -> None:
    """Every other second nothing new comes: the picture before is still there."""
    found = load_video(film(left_out=lambda place: place // RATE % 2 == 1), fps=1)
    assert seconds_of(found) == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10]
    assert found.times_s[:4] == pytest.approx((0.0, 0.9, 2.0, 2.9))


@pytest.mark.parametrize("form", ["mp4", "matroska", "mov", "mpegts", "avi"])
def test_it_is_the_same_in_every_container(form: str) -> None:
    assert seconds_of(load_video(film(form=form), count=6)) == [0, 2, 4, 6, 8, 10]


def decoded(monkeypatch: pytest.MonkeyPatch, data: bytes, **how: Any) -> tuple[Clip, int]:
    """What was read, and how many pictures were decoded for it."""
    count = 0
    real = video._Reader._time

    def counted(self: Any, frame: Any) -> float:
        nonlocal count
        count += 1
        return real(self, frame)

    with monkeypatch.context() as patch:
        patch.setattr(video._Reader, "_time", counted)
        return load_video(data, **how), count


def test_few_of_many_are_not_decoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    long = film(60, gop=20)
    found, count = decoded(monkeypatch, long, count=4)
    assert seconds_of(found) == [0, 15, 30, 45]
    assert count < 120
    found, count = decoded(monkeypatch, long, fps=1)
    assert seconds_of(found) == list(range(60))
    assert count <= 60 * RATE + 60


def test_where_keyframes_are_rarer_than_they_were_it_is_decoded_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if only the first two pictures of a group were known to be keyframes."""
    real = video._Reader._enter

    def rare(self: Any, target: float) -> Any:
        return real(self, min(target, 4.0))

    with monkeypatch.context() as patch:
        patch.setattr(video._Reader, "_enter", rare)
        found, count = decoded(monkeypatch, film(40), count=4)
    assert seconds_of(found) == [0, 10, 20, 30]
    assert count < 4 * 40 * RATE


def test_a_file_whose_index_lies_is_read_through(monkeypatch: pytest.MonkeyPatch) -> None:
    real = video._Reader._seek

    def too_far(self: Any, at: int) -> None:
        real(self, at * 3)

    with monkeypatch.context() as patch:
        patch.setattr(video._Reader, "_seek", too_far)
        assert seconds_of(load_video(film(24), count=6)) == [0, 4, 8, 12, 16, 20]


@pytest.mark.parametrize(("turned", "matrix"), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))])
def test_it_is_turned_as_the_file_says(turned: int, matrix: tuple[int, int, int, int]) -> None:
    data = bytearray(film(1))
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    a, b, c, d = (each * 65536 for each in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (frame, *_) = load_video(bytes(data), count=1).frames
    assert frame.size == ((32, 64) if turned != 180 else (64, 32))
    white = {90: (16, 2), 180: (61, 16), 270: (16, 61)}[turned]  # where the left edge has come to, clockwise
    assert min(frame.getpixel(white)) > 200  # type: ignore[arg-type]
    assert max(frame.getpixel((frame.width // 2, frame.height // 2))) < 60  # type: ignore[arg-type]


def test_it_is_scaled_down_and_never_up() -> None:
    assert load_video(FILM, count=1, side=16).frames[0].size == (16, 8)
    assert load_video(FILM, count=1, side=999).frames[0].size == (64, 32)


def test_a_path_a_file_and_a_data_url_are_read(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(FILM)
    url = "data:video/mp4;base64," + base64.b64encode(FILM).decode()
    with path.open("rb") as file:
        for source in (path, str(path), file, url, memoryview(FILM)):
            assert seconds_of(load_video(source, count=2)) == [0, 6]


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_one_that_is_cut_short_is_refused(share: float) -> None:
    data = film(form="matroska")
    with pytest.raises(BadInput, match=r"the video is cut short or damaged: \d+\.\d of 12.0 seconds"):
        load_video(data[: int(len(data) * share)], count=8)


@pytest.mark.parametrize("data", [b"", b"no video at all", FILM[:200], bytes(4000), b"#EXTM3U\n/etc/passwd\n", sound()])
def test_what_is_no_video_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput, match=r"can't be decoded|is empty|no pictures"):
        load_video(data, count=4)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"count": 0}, "give a number above 0"),
        ({"fps": 0}, "give a number above 0"),
        ({"fps": float("nan")}, "give a number above 0"),
        ({"fps": 1, "count": 1}, "not both"),
        ({"start_s": -1}, "is no stretch"),
        ({"start_s": 5, "end_s": 5}, "is no stretch"),
        ({"start_s": float("nan")}, "is no stretch"),
        ({"start_s": 12.5}, "lasts 12.0 s: there is nothing at 12.5 s"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(how: dict[str, Any], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        load_video(FILM, **how)


@pytest.mark.parametrize(
    ("limits", "how", "match"),
    [
        (MediaLimits(max_bytes=100), {}, "media.max_bytes"),
        (MediaLimits(max_pixels=1000), {}, r"pictures of 64 × 32 pixels, and media.max_pixels"),
        (MediaLimits(max_pixels=2048), {"count": 9}, r"9 frames of the video would have 18,432 pixels together"),
        (MediaLimits(max_seconds=3), {}, r"lasts 12 s, longer than the 3 that media.max_seconds"),
        (
            MediaLimits(max_frames=5),
            {"count": 6},
            r"6 frames of the video were asked for, and media.max_frames allows 5",
        ),
        (MediaLimits(max_frames=5), {"fps": 1}, "12 frames"),
        (MediaLimits(max_frames=5), {}, "120 frames"),
    ],
)
def test_a_limit_holds_before_anything_is_decoded(limits: MediaLimits, how: dict[str, Any], match: str) -> None:
    with pytest.raises(MediaTooLarge, match=match):
        load_video(FILM, limits, **how)


def test_a_container_that_tells_no_count_is_held_to_the_limit_as_it_is_read() -> None:
    with pytest.raises(MediaTooLarge, match=r"media\.max_frames"):
        load_video(film(form="mpegts"), MediaLimits(max_frames=50))


@pytest.mark.parametrize("seed", range(40))
def test_bytes_that_were_changed_are_a_video_or_bad_input(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(clip([8 * place for place in range(30)]) if seed % 2 else FILM)
    for place in rng.integers(0, len(data), 12):
        data[place] = rng.integers(0, 256)
    try:
        found = load_video(bytes(data), MediaLimits(max_frames=200), count=6)
    except (BadInput, MediaTooLarge):
        return
    assert 1 <= len(found.frames) <= 6
