"""Videos as a few pictures: evenly spread, whatever the file says of itself."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from taskrouter import errors
from taskrouter.media import frames
from taskrouter.media.frames import Frames, sample_jpegs
from tests.external.clips import clip, endless, shade_of, sound

RAMP = [8 * place for place in range(32)]
"""Each frame is lighter than the one before: its shade says where it stood."""


def shades(found: Frames) -> list[int]:
    return [round(shade_of(jpeg) / 8) for jpeg in found.jpegs]


def evenly(found: Frames, most: int, count: int) -> bool:
    steps = [second - first for first, second in zip(shades(found), shades(found)[1:], strict=False)]
    return len(found.jpegs) == most and shades(found)[0] <= 1 and max(steps) - min(steps) <= 2 and (
        shades(found)[-1] >= count - 2 * count // most
    )  # fmt: skip


def test_frames_are_spread_evenly_over_the_video() -> None:
    found = sample_jpegs(clip(RAMP))
    assert found.seconds == pytest.approx(3.2, abs=0.2)
    assert evenly(found, 16, 32)
    assert evenly(sample_jpegs(clip(RAMP), most=4), 4, 32)


def test_a_short_clip_gives_all_its_frames() -> None:
    found = sample_jpegs(clip(RAMP[::6][:5]))
    assert len(found.jpegs) == 5
    assert [round(shade_of(jpeg) / 48) for jpeg in found.jpegs] == [0, 1, 2, 3, 4]


def test_one_frame_is_a_video_too() -> None:
    assert len(sample_jpegs(clip([99])).jpegs) == 1


def test_as_many_frames_as_are_taken_are_all_taken() -> None:
    for count in (15, 16, 17):
        assert len(sample_jpegs(clip(RAMP[:count])).jpegs) == min(count, 16)


@pytest.mark.parametrize("rate", [24, 25, 30])
def test_any_rate_is_spread_evenly(rate: int) -> None:
    assert evenly(sample_jpegs(clip(RAMP, rate=rate), most=8), 8, 32)


def test_a_video_that_begins_late_is_spread_evenly() -> None:
    """Cut out of a broadcast, its first frame stands where it stood there."""
    assert evenly(sample_jpegs(clip(RAMP, form="mpegts", first=600), most=8), 8, 32)


def test_a_video_that_does_not_say_how_long_it_is_is_spread_evenly() -> None:
    found = sample_jpegs(endless(lambda: clip(RAMP, form="matroska")), most=8)
    assert found.seconds == pytest.approx(3.2, abs=0.2)
    assert evenly(found, 8, 32)


def test_a_large_frame_is_scaled_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "SIDE", 16)
    (jpeg,) = sample_jpegs(clip([99])).jpegs
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.size == (16, 16)


def test_a_sound_has_no_pictures() -> None:
    with pytest.raises(errors.BadInput, match="the video has no pictures in it"):
        sample_jpegs(sound())


@pytest.mark.parametrize(
    "data", [b"", b"no video", clip(RAMP)[:60], b"\x00" * 4000], ids=["empty", "text", "cut", "zero"]
)
def test_a_damaged_video_is_bad_input(data: bytes) -> None:
    with pytest.raises(errors.BadInput, match=r"the video (can't be decoded|is empty)"):
        sample_jpegs(data)


def test_a_video_damaged_past_its_start_is_bad_input_or_what_is_left_of_it() -> None:
    data = bytearray(clip(RAMP, form="matroska"))
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    try:
        found = sample_jpegs(bytes(data))
    except errors.BadInput:
        return
    assert 1 <= len(found.jpegs) <= 16


@pytest.mark.parametrize("says", [True, False], ids=["it says", "it doesn't say"])
def test_a_video_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch, says: bool) -> None:
    monkeypatch.setattr(frames, "MOST_SECONDS", 2.0)
    data = clip(RAMP) if says else endless(lambda: clip(RAMP, form="matroska"))
    with pytest.raises(errors.MediaTooLarge, match=r"the video lasts (2|3) s, longer than the 2"):
        sample_jpegs(data)
