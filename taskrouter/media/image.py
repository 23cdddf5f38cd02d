"""Images in: whatever holds a picture becomes one upright RGB image."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media.limits import MediaLimits, Opened, opened
from taskrouter.media.need import need

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's plug-ins are parsers of foreign bytes: this is what they raise on damaged ones.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, ArithmeticError, AttributeError,
    NotImplementedError, struct.error, zlib.error, UserWarning,
)  # fmt: skip
# Of the many that Pillow knows, those for pictures as people have them. Some of the others run programs (EPS) or hold
# files within, whose size is told only as they are decoded (ICO, ICNS).
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "AVIF", "JPEG2000", "PPM", "QOI")
_ORIENTATION = 0x0112
_TILE_WIDTH, _TILE_HEIGHT = 322, 323


def load_image(source: Any, limits: MediaLimits | None = None) -> Image:
    """Read a picture and return it as an upright RGB image, its first frame where it has several.

    ``source`` is a path, bytes, a binary file object, a ``data:`` URL, a PIL image, or an array (height × width, with
    1, 3 or 4 channels last or first; uint8, uint16, bool, or float from 0 to 1). Transparency is laid on white. The
    number of pixels is checked before any is decoded. Blocks while it reads and decodes. Raises ``BadInput`` for what
    is no picture or a damaged one, ``MediaTooLarge`` for one over a limit, also while it is still compressed,
    ``MissingDependency`` where Pillow isn't installed.
    """
    need("PIL.Image", "numpy", what="images")
    import PIL.Image

    limits = limits or MediaLimits()
    if isinstance(source, PIL.Image.Image):
        return _decoded(source, "the image", limits)
    if hasattr(source, "__array__"):
        return _rgb(_from_array(source, limits))
    with opened(source, limits, what="image") as file:
        return _decoded(_identified(file), file.name, limits)


def _identified(source: Opened) -> Image:
    """Read the header only."""
    import PIL.Image

    try:
        return PIL.Image.open(source.file, formats=_FORMATS)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise MediaTooLarge(f"{source.name} has more pixels than Pillow opens: {error} Give a smaller one.") from error
    except PIL.UnidentifiedImageError as error:
        raise BadInput(
            f"{source.name} is no image, or of a kind that isn't known: give a PNG, JPEG, WebP, GIF, TIFF or BMP file."
        ) from error
    except _DAMAGE as error:
        raise _damaged(source.name, error) from error


def _decoded(picture: Image, name: str, limits: MediaLimits) -> Image:
    _check_pixels(picture.size, name, limits)
    _check_tiles(picture, name, limits)
    try:
        picture.load()
        return _rgb(_upright(picture))
    except _DAMAGE as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> BadInput:
    return BadInput(f"{name} is a damaged image, or cut short ({error}): save or download it again.")


def _check_pixels(size: tuple[int, int], name: str, limits: MediaLimits) -> None:
    width, height = size
    if not width or not height:
        raise BadInput(f"{name} has no pixels ({width} × {height}).")
    if width * height > limits.max_pixels:
        raise MediaTooLarge(
            f"{name} has {width} × {height} = {width * height:,} pixels, and media.max_pixels allows "
            f"{limits.max_pixels:,}: give a smaller one, or raise the limit."
        )


def _check_tiles(picture: Image, name: str, limits: MediaLimits) -> None:
    """A TIFF's tiles are decoded whole, however small the picture is that they are cut from."""
    tags = getattr(picture, "tag_v2", {})
    try:
        tile = int(tags.get(_TILE_WIDTH) or 1), int(tags.get(_TILE_HEIGHT) or 1)
    except _DAMAGE as error:
        raise _damaged(name, error) from error
    _check_pixels(tile, f"a tile of {name}", limits)


def _upright(picture: Image) -> Image:
    """Turn the picture as its EXIF data says; with unreadable EXIF data it stays as it is."""
    import PIL.Image

    turns = PIL.Image.Transpose
    try:
        orientation = int(picture.getexif().get(_ORIENTATION) or 1)
    except _DAMAGE:
        return picture
    how = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(orientation)
    if how is None:
        return picture
    turned = picture.transpose(how)
    # A palette's transparent entry lives here, and transposing keeps it in some versions only.
    turned.info = dict(picture.info)
    return turned


def _rgb(picture: Image) -> Image:
    import PIL.Image

    if picture.mode in {"I", "F"} or picture.mode.startswith("I;16"):
        return _from_wide(picture).convert("RGB")
    if picture.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        paper = PIL.Image.new("RGBA", layer.size, "white")
        return PIL.Image.alpha_composite(paper, layer).convert("RGB")
    return picture.convert("RGB")


def _from_wide(picture: Image) -> Image:
    """Bring 16-bit, 32-bit and floating-point grey to 8 bits; Pillow's own conversion only clips."""
    import numpy as np
    import PIL.Image

    levels = np.nan_to_num(np.asarray(picture).astype(np.float32), copy=False)
    highest = levels.max()
    if picture.mode.startswith("I;16") or highest > 255:
        levels /= 257
    elif picture.mode == "F" and highest <= 1:
        levels *= 255
    return PIL.Image.fromarray(levels.round(out=levels).clip(0, 255, out=levels).astype(np.uint8))


def _from_array(source: Any, limits: MediaLimits) -> Image:
    import numpy as np
    import PIL.Image

    try:
        pixels = np.asarray(source)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"{type(source).__name__} can't be read as an array of pixels: {error}.") from error
    shape = "×".join(map(str, pixels.shape)) or "no"
    if pixels.ndim == 3 and pixels.shape[2] not in {1, 3, 4} and pixels.shape[0] in {1, 3, 4}:
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not pixels.size or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in {3, 4})):
        raise BadInput(f"an array of shape {shape} is no picture: give height × width, or with 1, 3 or 4 channels.")
    _check_pixels((pixels.shape[1], pixels.shape[0]), "the image", limits)
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    elif pixels.dtype == np.uint16:
        pixels = (pixels / 257).round().astype(np.uint8)
    elif np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise BadInput("a floating-point picture must lie between 0 and 1: divide by 255, or give uint8.")
        pixels = (pixels * 255).round().astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise BadInput(f"a picture of {pixels.dtype} isn't understood: give uint8, uint16, bool, or float from 0 to 1.")
    return PIL.Image.fromarray(np.ascontiguousarray(pixels))
