"""Frames of a video side by side in one picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from taskrouter.media.sheet import columns, filled, tiled
from taskrouter.media.video import Clip


def greys(*shades: int, size: tuple[int, int] = (6, 4)) -> list[Image.Image]:
    return [Image.new("RGB", size, (shade, shade, shade)) for shade in shades]


def test_frames_stand_in_rows_from_the_top_left() -> None:
    sheet = np.asarray(tiled(greys(10, 20, 30, 40)))[..., 0]
    assert sheet.shape == (8, 12)
    assert (sheet[:4, :6] == 10).all()
    assert (sheet[:4, 6:] == 20).all()
    assert (sheet[4:, :6] == 30).all()
    assert (sheet[4:, 6:] == 40).all()


@pytest.mark.parametrize(("count", "across"), [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (9, 3), (10, 4)])
def test_a_sheet_is_about_as_many_frames_wide_as_high_and_what_is_left_is_black(count: int, across: int) -> None:
    assert columns(count) == across
    sheet = np.asarray(tiled(greys(*[200] * count)))[..., 0]
    assert sheet.shape[1] == 6 * across
    assert (sheet > 0).sum() == count * 24


def test_frames_that_change_their_size_are_made_to_fit() -> None:
    sheet = tiled([*greys(10), *greys(20, size=(60, 40))])
    assert sheet.size == (12, 4)
    assert sheet.getpixel((9, 2)) == (20, 20, 20)


def test_a_video_with_fewer_frames_than_places_shows_what_is_on_the_screen_at_each() -> None:
    frames = greys(10, 20)
    assert filled(Clip(tuple(frames), (0.0, 1.4), 2.0), 4) == [frames[0], frames[0], frames[0], frames[1]]
    assert filled(Clip(tuple(frames[:1]), (0.5,), 2.0), 4) == frames[:1] * 4
