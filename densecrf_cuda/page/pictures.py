"""Photos read as the eye sees them, brush strokes read as labels, labels written as pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from densecrf_cuda.cli import pictures

__all__ = [
    "COLOURS",
    "colour_name",
    "encode_labels",
    "overlay",
    "read_photo",
    "read_strokes",
    "resize_labels",
    "shrink",
]

# Labels 1, 2, ...: the palette of Okabe and Ito, which the colour-blind can tell apart.
COLOURS = {
    "orange": (230, 159, 0),
    "sky blue": (86, 180, 233),
    "green": (0, 158, 115),
    "yellow": (240, 228, 66),
    "blue": (0, 114, 178),
    "red": (213, 94, 0),
    "pink": (204, 121, 167),
}
_PALETTE = np.array(list(COLOURS.values()), np.uint8)
_WITH_NOTHING = np.concatenate([np.zeros((1, 3), np.uint8), _PALETTE])

# Where strokes of two colours overlap, their soft edges mix to a colour between the two, which may resemble a third:
# only what is as good as pure counts. A pure colour of which the canvas keeps half the opacity comes back 1 or 2 off.
_PURE = 10
_OPAQUE = 128


def colour_name(label: int) -> str:
    """The name of a label's colour.

    Example:
        >>> colour_name(1)
        'orange'
    """
    return list(COLOURS)[label - 1]


def read_photo(path: str | Path) -> np.ndarray:
    """A photo of any mode, upright by its EXIF tag, in 8 bits a channel, transparency over white.

    Args:
        path: of a picture that Pillow opens; of an animation the first frame.

    Returns:
        [H, W, 3] uint8.

    Raises:
        ValueError: a file that is no picture, or is broken, or has floating-point values.
        OSError: a file that cannot be opened.

    Example:
        >>> read_photo("notes.txt")
        Traceback (most recent call last):
        ...
        FileNotFoundError: [Errno 2] No such file or directory: 'notes.txt'
    """
    file = Path(path)
    try:
        photo = pictures.read_photo(file)
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{file.name} is not a picture that can be read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from error
    return photo.astype(np.uint8)


def shrink(photo: np.ndarray, longest: int) -> np.ndarray:
    """A photo whose longer side has at most so many pixels; itself where that holds already.

    Example:
        >>> shrink(np.zeros((600, 900, 3), np.uint8), 300).shape
        (200, 300, 3)
    """
    height, width = photo.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return photo
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    return np.array(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def resize_labels(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Labels [H, W] uint8 in another size, each pixel that of the nearest.

    Example:
        >>> resize_labels(np.array([[1, 2]], np.uint8), (1, 4))
        array([[1, 1, 2, 2]], dtype=uint8)
    """
    if labels.shape == shape:
        return labels
    return np.array(Image.fromarray(labels).resize(shape[::-1], Image.Resampling.NEAREST))


def read_strokes(layers: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The labels of brush strokes: 1 + the index in `COLOURS` where a stroke covers a pixel, else 0.

    The soft edges of strokes count as drawn from half opacity on, and not where two colours mix.

    Args:
        layers: [H', W', 4] uint8 each, colour and opacity, the upper ones last.
        shape: (H, W) of the result; layers of another size are resized.

    Returns:
        [H, W] uint8.

    Example:
        >>> layer = np.zeros((1, 3, 4), np.uint8)
        >>> layer[0, 1], layer[0, 2] = (230, 159, 0, 255), (86, 180, 233, 40)
        >>> read_strokes([layer], (1, 3))
        array([[0, 1, 0]], dtype=uint8)
    """
    scribbles = np.zeros(shape, np.uint8)
    for layer in layers:
        labels = np.zeros(layer.shape[:2], np.uint8)
        opaque = layer[..., 3] >= _OPAQUE
        # [M, 1, 3] - [C, 3]: colours of the opaque pixels against the palette
        distance = np.abs(layer[opaque][:, None, :3].astype(np.int16) - _PALETTE).max(2)
        labels[opaque] = np.where(distance.min(1) <= _PURE, distance.argmin(1) + 1, 0)
        labels = resize_labels(labels, shape)
        scribbles = np.where(labels > 0, labels, scribbles)
    return scribbles


def overlay(photo: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The photo under the colours of its labels, [H, W, 3] uint8; plain where the label is 0.

    Example:
        >>> overlay(np.zeros((1, 2, 3), np.uint8), np.array([[0, 1]]))
        array([[[  0,   0,   0],
                [115,  80,   0]]], dtype=uint8)
    """
    return pictures.overlay(photo, labels.astype(np.intp), _WITH_NOTHING, boundaries=False)


def encode_labels(labels: np.ndarray) -> bytes:
    """A PNG whose palette indices are the labels, in the colours of the brush; 0 is black.

    Args:
        labels: [H, W] uint8.

    Returns:
        The file.

    Example:
        >>> np.array(Image.open(io.BytesIO(encode_labels(np.array([[0, 2]], np.uint8)))))
        array([[0, 2]], dtype=uint8)
    """
    picture: Any = Image.fromarray(labels)
    picture.putpalette(_WITH_NOTHING.reshape(-1).tolist())  # which turns its mode from grey to palette
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
