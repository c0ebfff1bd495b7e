"""Photos as arrays, colours of labels, and photos under the colours of their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

__all__ = ["overlay", "read_photo", "voc_palette"]

_BOUNDARY = np.uint8(255)


def read_photo(path: Path, *, exif: bool = True) -> np.ndarray:
    """A photo as red, green and blue on 0 to 255.

    Greys become three equal channels, transparency is laid on white, palettes are looked up. 16-bit greys are divided
    by 257, so that they lie on 0 to 255 as well without losing their depth.

    Args:
        path: of any format that Pillow reads.
        exif: turn and mirror the photo as its EXIF orientation says.

    Returns:
        [H, W, 3], uint8, or float32 for 16-bit greys.

    Raises:
        ValueError: floating greys, whose range is not known, or greys outside of 16 bits.
        OSError: a file that is missing, broken or no picture.
    """
    with Image.open(path) as file:
        picture: Image.Image = ImageOps.exif_transpose(file) if exif else file
        picture.load()
        if picture.mode == "F":
            raise ValueError("a picture of floating numbers has no known range, save it with 8 or 16 bits")
        if picture.mode.startswith("I"):
            grey = np.array(picture).astype(np.float32)
            if grey.min() < 0 or grey.max() > 65535:
                raise ValueError(f"grey levels must be in 0..65535, got {grey.min():g}..{grey.max():g}")
            return np.repeat(grey[..., None] / np.float32(257), 3, axis=2)
        if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
            colours = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
        return np.array(picture.convert("RGB"))


def voc_palette() -> np.ndarray:
    """The 256 colours of the PASCAL VOC label pictures: bit b of channel c is bit 3·(7-b) + c of the label.

    Returns:
        [256, 3] uint8.

    Example:
        >>> voc_palette()[[0, 1, 2, 15, 255]].tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [224, 224, 192]]
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for bit in range(8):
            palette[:, channel] |= ((labels >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def overlay(
    photo: np.ndarray, classes: np.ndarray, colours: np.ndarray, *, opacity: float = 0.5, boundaries: bool = True
) -> np.ndarray:
    """The photo under the colours of its labels: (1 - opacity) photo + opacity colour.

    Args:
        photo: [H, W, 3] on 0 to 255, uint8 or floating.
        classes: [H, W] integers: the row of colours of each pixel, negative for none.
        colours: [C, 3] on 0 to 255; black leaves the photo as it is, as for the background of VOC.
        opacity: of the colours, in [0, 1].
        boundaries: draw a white line, one pixel wide, where the class changes.

    Returns:
        [H, W, 3] uint8.

    Raises:
        ValueError: shapes that do not fit, an opacity outside [0, 1].

    Example:
        >>> photo = np.full((1, 3, 3), 100, np.uint8)
        >>> overlay(photo, np.array([[0, 1, 1]]), np.array([[0, 0, 0], [200, 0, 0]]), boundaries=False)[0].tolist()
        [[100, 100, 100], [150, 50, 50], [150, 50, 50]]
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or classes.shape != photo.shape[:2]:
        raise ValueError(f"photo must be [H, W, 3] and classes [H, W], got {photo.shape} and {classes.shape}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1], got {opacity}")
    palette = np.concatenate([colours, np.zeros((1, 3), colours.dtype)])  # the last row: no class
    share = np.float32(opacity) * palette.any(axis=1)
    index = np.where(classes < 0, len(colours), classes)
    tint = (share[:, None] * palette).astype(np.float32)[index]
    painted = (photo * (1 - share)[index][..., None] + tint).round().clip(0, 255).astype(np.uint8)
    if boundaries:
        painted[:, :-1][classes[:, 1:] != classes[:, :-1]] = _BOUNDARY
        painted[:-1][classes[1:] != classes[:-1]] = _BOUNDARY
    return painted
