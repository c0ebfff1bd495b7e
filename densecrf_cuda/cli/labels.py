"""Pictures of labels: palette, grey and colour-coded ones, read to classes and written back in the same style."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from .errors import UsageError
from .pictures import voc_palette

__all__ = ["LabelStyle", "parse_code", "read_labels", "read_scribbles", "restyled", "score_style"]

MAX_LABELS = 256
MAX_STROKES = 64
TRANSPARENT = -1
"""Code of a pixel that is not opaque."""


@dataclass(frozen=True)
class LabelStyle:
    """How a picture stores labels.

    Attributes:
        mode: "1", "L" and "I;16" (grey levels), "P" (indices of a palette) or "RGB".
        codes: [C] integers, the grey level, index or colour (0xrrggbb) of each class, ascending.
        palette: red, green, blue, red, ... of a palette.
        transparency: of a palette, as PNG has it.
    """

    mode: str
    codes: np.ndarray
    palette: bytes = b""
    transparency: bytes | int | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.codes)

    def labels(self) -> np.ndarray:
        """The label of each class: grey levels or indices [C], colours [C, 3]."""
        return _split(self.codes) if self.mode == "RGB" else self.codes

    def colours(self) -> np.ndarray:
        """A colour for each class, [C, 3] uint8; grey labels get those of VOC."""
        if self.mode == "RGB":
            return _split(self.codes)
        return self._table()[self.codes % 256]

    def save(self, classes: np.ndarray, file: BinaryIO) -> None:
        """Write classes [H, W] as a PNG of this style."""
        codes = self.codes[classes]
        if self.mode == "RGB":
            picture = Image.fromarray(_split(codes))
        elif self.mode == "I;16":
            picture = Image.fromarray(codes.astype(np.uint16))
        else:
            picture = Image.fromarray(codes.astype(bool if self.mode == "1" else np.uint8))
        if self.mode == "P":
            # Pillow stores an index in as few bits as the palette needs: it must reach all of them.
            entries = max(len(self.palette) // 3, int(self.codes[-1]) + 1)
            picture.putpalette(self._table()[:entries].tobytes())
        picture.save(file, format="PNG", **({} if self.transparency is None else {"transparency": self.transparency}))

    def _table(self) -> np.ndarray:
        """256 colours: those of the palette, and of VOC beyond its end."""
        table = voc_palette()
        own = np.frombuffer(self.palette, np.uint8).reshape(-1, 3)
        table[: len(own)] = own
        return table


def parse_code(name: str, text: str) -> int:
    """A label of a command line: a number, or a colour as #rrggbb.

    Example:
        >>> parse_code("--unsure-label", "#0000ff")
        255
    """
    try:
        if text.startswith("#") and len(text) == 7:
            return int(text[1:], 16)
        code = int(text)
    except ValueError:
        code = -1
    if code < 0:
        raise UsageError(f"{name} must be a label from 0 on or a colour as #rrggbb, got {text!r}")
    return code


def read_labels(path: Path, unsure: str = "auto", num_classes: int | None = None) -> tuple[np.ndarray, LabelStyle]:
    """The classes of a picture of labels.

    Args:
        path: a picture with palette or greys (the labels are indices or levels) or with colours (each one a label).
        unsure: the label of pixels of which nothing is known: a number, a colour as #rrggbb, "none", or "auto": 255
            unless a grey picture holds nothing but 0 and 255, which is a mask. Transparent pixels of colour-coded
            pictures are always unsure.
        num_classes: the labels are 0..num_classes-1; None: those that occur.

    Returns:
        [H, W] int16, 0..C-1 or -1 where unsure, and the style, which has C labels.

    Raises:
        ValueError: a label beyond num_classes, too many labels or colours, none at all, a lossy picture.
        OSError: a file that is missing, broken or no picture.
    """
    codes, style = _decode(path, opaque_from=1)
    present = np.unique(codes)
    is_mask = style.mode == "L" and present.tolist() == [0, 255]
    if unsure != "auto":
        present = present[present != (TRANSPARENT if unsure == "none" else parse_code("--unsure-label", unsure))]
    elif style.mode != "RGB" and not is_mask:
        present = present[present != 255]
    present = present[present != TRANSPARENT]
    if len(present) == 0:
        raise ValueError("no pixel has a label")
    if num_classes is not None:
        if style.mode == "RGB":
            raise ValueError("a number of classes cannot be named for labels that are colours")
        if present[-1] >= num_classes:
            raise ValueError(f"labels must be in 0..{num_classes - 1}, got {present[-1]}")
        present = np.arange(num_classes)
    elif len(present) > MAX_LABELS:
        what = "colours, is it a photo, or was it smoothed" if style.mode == "RGB" else "grey levels, is it a photo"
        raise ValueError(f"at most {MAX_LABELS} labels can be told apart, got {len(present)} {what}?")
    return _classes(codes, present), replace(style, codes=present)


def read_scribbles(path: Path, background: str = "auto") -> tuple[np.ndarray, LabelStyle]:
    """The classes of strokes.

    Args:
        path: a picture with palette or greys, where 0 (or what the palette has as transparent) is nothing and every
            other value a label; or coloured strokes, each colour a label, on a transparent or plain background.
        background: colour of the plain background as #rrggbb; "auto": the commonest colour.

    Returns:
        [H, W] int16, 0..C-1 or -1 where nothing is drawn, and the style, which has C labels.

    Raises:
        ValueError: fewer than two labels, or so many that the strokes must have been smoothed.
        OSError: a file that is missing, broken or no picture.
    """
    codes, style = _decode(path, opaque_from=255)
    present, counts = np.unique(codes, return_counts=True)
    if style.mode == "RGB":
        if background != "auto":
            nothing = [parse_code("--background", background)]
        else:
            nothing = [] if TRANSPARENT in present else [int(present[counts.argmax()])]
    else:
        nothing = _transparent_indices(style) or [0]
    present = present[~np.isin(present, [TRANSPARENT, *nothing])]
    if len(present) < 2:
        raise ValueError(f"scribbles must have at least two labels, got {len(present)}")
    if len(present) > MAX_STROKES:
        raise ValueError(
            f"scribbles must have at most {MAX_STROKES} labels, got {len(present)}: draw with a hard brush, without "
            "smoothing, on a transparent or plain background"
        )
    return _classes(codes, present), replace(style, codes=present)


def restyled(style: LabelStyle, palette: str) -> LabelStyle:
    """The style with another palette: "keep", "voc", "grey" or the path of a picture that has one."""
    if palette == "keep":
        return style
    if style.mode == "RGB":
        raise ValueError("labels that are colours keep them: --palette is for palette and grey labels")
    if style.codes[-1] > 255:
        raise ValueError(f"a palette holds labels up to 255, got {style.codes[-1]}")
    if palette == "grey":
        return LabelStyle("L", style.codes)
    if palette == "voc":
        return LabelStyle("P", style.codes, voc_palette().tobytes())
    with Image.open(palette) as picture:
        if picture.mode != "P":
            raise ValueError(f"--palette must be keep, voc, grey or a palette picture, {palette} is {picture.mode}")
        return LabelStyle("P", style.codes, _palette(picture), picture.info.get("transparency"))


def score_style(num_classes: int) -> LabelStyle:
    """The style of labels 0..C-1 that came from no picture: the palette of VOC, or 16-bit greys beyond 256 labels."""
    codes = np.arange(num_classes)
    return LabelStyle("P", codes, voc_palette().tobytes()) if num_classes <= 256 else LabelStyle("I;16", codes)


def _decode(path: Path, opaque_from: int) -> tuple[np.ndarray, LabelStyle]:
    """The code of each pixel, [H, W] int32, and the style without its codes; colours below an alpha are transparent."""
    with Image.open(path) as picture:
        if picture.format == "JPEG":
            raise ValueError("labels must be a lossless picture, PNG for instance: JPEG changes them")
        picture.load()
        mode = picture.mode
        if mode in ("1", "L", "P"):
            palette = _palette(picture) if mode == "P" else b""
            transparency = picture.info.get("transparency") if mode == "P" else None
            style = LabelStyle(mode, np.empty(0, np.int32), palette, transparency)
            return np.array(picture).astype(np.int32), style
        if mode.startswith("I"):
            codes = np.array(picture).astype(np.int32)
            if codes.min() < 0 or codes.max() > 65535:
                raise ValueError(f"labels must be in 0..65535, got {codes.min()}..{codes.max()}")
            return codes, LabelStyle("I;16", np.empty(0, np.int32))
        if mode not in ("RGB", "RGBA", "LA", "PA"):
            raise ValueError(f"labels must be a palette, grey or RGB picture, got one of mode {mode}")
        pixels = np.array(picture.convert("RGBA")).astype(np.int32)
    codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    return np.where(pixels[..., 3] < opaque_from, TRANSPARENT, codes), LabelStyle("RGB", np.empty(0, np.int32))


def _palette(picture: Image.Image) -> bytes:
    return bytes(picture.getpalette("RGB") or [])


def _transparent_indices(style: LabelStyle) -> list[int]:
    if isinstance(style.transparency, bytes):
        return [index for index, alpha in enumerate(style.transparency) if alpha == 0]
    return [] if style.transparency is None else [style.transparency]


def _classes(codes: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The index of each code in `present`, which is sorted; -1 for others."""
    index = np.searchsorted(present, codes).clip(max=len(present) - 1)
    return np.where(present[index] == codes, index, -1).astype(np.int16)


def _split(codes: np.ndarray) -> np.ndarray:
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)
