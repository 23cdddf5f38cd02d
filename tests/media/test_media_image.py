"""Reading images: every kind a person may bring, and every way a file can be wrong."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media import MediaLimits, load_image

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def halves(left: Any = RED, right: Any = WHITE, *, mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    """A picture whose left half has one colour and the right half another."""
    picture = Image.new(mode, size, right)
    picture.paste(left, (0, 0, size[0] // 2, size[1]))
    return picture


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def near(pixel: Any, wanted: tuple[int, int, int]) -> bool:
    return bool(max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) < 12)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_every_common_kind_of_file_becomes_rgb(kind: str) -> None:
    picture = load_image(saved(halves(), kind))
    assert picture.mode == "RGB"
    assert picture.size == (40, 20)
    assert near(picture.getpixel((5, 10)), RED)
    assert near(picture.getpixel((35, 10)), WHITE)


def test_a_picture_is_read_from_a_path_bytes_a_file_a_data_url_or_an_array_alike(tmp_path: Any) -> None:
    data = saved(halves(), "PNG")
    path = tmp_path / "ä picture.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    with path.open("rb") as file:
        sources = [path, str(path), data, bytearray(data), memoryview(data), file, io.BytesIO(data), url]
        pictures = [load_image(source).tobytes() for source in sources]
        assert not file.closed
    arrays = [np.asarray(halves()), np.asarray(halves()).transpose(2, 0, 1), np.asarray(halves()) / 255]
    pictures += [load_image(source).tobytes() for source in (*arrays, halves())]
    assert set(pictures) == {halves().tobytes()}


def test_the_file_of_a_path_is_closed_once_the_picture_is_read(tmp_path: Any) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(halves(), "PNG"))
    picture = load_image(path)
    path.unlink()
    assert picture.copy().getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (39, 0)), (3, (39, 19)), (4, (0, 19)), (5, (0, 0)), (6, (19, 0)), (7, (19, 39)), (8, (0, 39))],
)
def test_a_photo_is_turned_upright_as_its_exif_data_says(orientation: int, corner: tuple[int, int]) -> None:
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste((0, 0, 255), (0, 0, 10, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(saved(picture, "JPEG", exif=exif, quality=95))
    assert upright.size == ((40, 20) if orientation < 5 else (20, 40))
    assert near(upright.getpixel(corner), (0, 0, 255))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_data_leaves_the_picture_as_it_is() -> None:
    data = saved(halves(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff rubbish")
    assert load_image(data).size == (40, 20)


def test_cmyk_is_converted() -> None:
    picture = load_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert near(picture.getpixel((4, 4)), RED)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_on_white(kind: str) -> None:
    see_through = halves((255, 0, 0, 255), (0, 0, 0, 0), mode="RGBA")
    picture = load_image(saved(see_through, kind))
    assert near(picture.getpixel((5, 10)), RED)
    assert near(picture.getpixel((35, 10)), WHITE)


def test_a_palette_with_a_transparent_entry_is_laid_on_white_also_when_turned() -> None:
    paletted = halves(0, 1, mode="P")
    paletted.putpalette([255, 0, 0, 0, 0, 0])
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = load_image(saved(paletted, "PNG", transparency=1, exif=exif))
    assert picture.getpixel((5, 10)) == WHITE
    assert picture.getpixel((35, 10)) == RED


def test_grey_with_transparency_is_laid_on_white() -> None:
    picture = load_image(saved(halves((0, 255), (0, 0), mode="LA"), "PNG"))
    assert picture.getpixel((5, 10)) == BLACK
    assert picture.getpixel((35, 10)) == WHITE


def test_sixteen_bits_keep_their_brightness() -> None:
    levels = np.full((8, 8), 0x8000, dtype=np.uint16)
    assert load_image(saved(Image.fromarray(levels), "PNG")).getpixel((0, 0)) == (128, 128, 128)
    assert load_image(levels).getpixel((0, 0)) == (128, 128, 128)


def test_floating_point_tiff_from_zero_to_one_is_not_black() -> None:
    picture = load_image(saved(Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)), "TIFF"))
    assert picture.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    picture = load_image(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert near(picture.getpixel((8, 8)), RED)


@pytest.mark.parametrize("array", [
    np.zeros((0, 4, 3), np.uint8), np.zeros(12, np.uint8), np.zeros((5, 4, 2), np.uint8), np.zeros((2, 4, 4, 3)),
    np.full((4, 4), 200.0), np.full((4, 4), np.nan), np.zeros((4, 4), np.int64), np.array(["a"]), np.float64(1),
])  # fmt: skip
def test_an_array_that_is_no_picture_is_refused(array: Any) -> None:
    with pytest.raises(BadInput):
        load_image(array)


def test_masks_and_grey_arrays_are_pictures() -> None:
    assert load_image(np.ones((4, 4), bool)).getpixel((0, 0)) == WHITE
    assert load_image(np.zeros((4, 4, 1), np.uint8)).getpixel((0, 0)) == BLACK
    assert load_image(np.zeros((4, 4, 4), np.uint8)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_picture_cut_short_is_refused(kind: str, keep: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, kind)
    with pytest.raises(BadInput):
        load_image(data[: int(len(data) * keep)])


@pytest.mark.parametrize("data", [b"hello", b"\0" * 100, b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>", b"%PDF-1.4"])
def test_what_is_no_image_is_refused_with_advice(data: bytes) -> None:
    with pytest.raises(BadInput, match=r"PNG, JPEG|cut short|no pixels"):
        load_image(data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]), st.data())
def test_damaged_pictures_raise_nothing_but_bad_input(kind: str, data: st.DataObject) -> None:
    good = bytearray(saved(halves(), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = load_image(bytes(good))
    except BadInput:
        return
    assert picture.mode == "RGB"


def bomb(side: int) -> bytes:
    """A PNG header that promises a huge picture; there is nothing behind it."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    body = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    end = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + body + end


@pytest.mark.parametrize("side", [7_000, 10_000, 30_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    with pytest.raises(MediaTooLarge, match="pixels"):
        load_image(bomb(side))


def test_the_pixel_limit_holds_for_files_pictures_and_arrays_and_is_exact() -> None:
    exact, below = MediaLimits(max_pixels=800), MediaLimits(max_pixels=799)
    for source in (saved(halves(), "PNG"), halves(), np.asarray(halves())):
        assert load_image(source, exact).size == (40, 20)
        with pytest.raises(MediaTooLarge, match=r"40 × 20 = 800 pixels.*max_pixels allows 799"):
            load_image(source, below)


def test_the_callers_picture_is_left_alone() -> None:
    mine = halves((255, 0, 0, 255), (0, 0, 0, 0), mode="RGBA")
    before = mine.tobytes()
    load_image(mine)
    assert (mine.mode, mine.tobytes()) == ("RGBA", before)
