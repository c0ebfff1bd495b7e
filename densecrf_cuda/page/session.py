"""What the page answers: a picture, a sentence for whoever looks at it, and what can be downloaded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .pictures import colour_name, encode_labels, overlay, read_photo, resize_labels, shrink
from .segment import Settings, segment_scribbles

__all__ = [
    "FAULTS",
    "PREVIEW_SIDE",
    "Answer",
    "Photo",
    "Refined",
    "mask_file",
    "open_photo",
    "refine",
    "scribbles_file",
]

# Longest side, in pixels, of what is painted on and refined while one watches, and of what a mask is computed from.
PREVIEW_SIDE = 640
MASK_SIDE = 5000

# What a setting out of range, or a picture too large for the memory, ends in.
FAULTS = (ValueError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class Photo:
    """A photo in its own size and in the size in which it is painted on, both [H, W, 3] uint8."""

    name: str
    full: np.ndarray
    small: np.ndarray


@dataclass(frozen=True)
class Refined:
    """What the labels that are on show were computed from; scribbles [H, W] uint8 in the size of `photo.small`."""

    photo: Photo
    scribbles: np.ndarray
    settings: Settings


@dataclass(frozen=True)
class Answer:
    """A picture [H, W, 3] uint8 where there is one, a sentence, and the labels' origin where there are labels."""

    picture: np.ndarray | None
    message: str
    refined: Refined | None = None


def open_photo(path: str | Path) -> Photo:
    """Read a photo for the page.

    Raises:
        ValueError: what `read_photo` refuses.
        OSError: a file that cannot be opened.
    """
    full = read_photo(path)
    return Photo(Path(path).stem, full, shrink(full, PREVIEW_SIDE))


def refine(
    photo: Photo | None, scribbles: np.ndarray | None, settings: Settings, device: str | torch.device | None = None
) -> Answer:
    """The refined labels over the photo, or what is missing for them.

    Args:
        photo: None before one is opened.
        scribbles: [H, W] uint8 in the size of `photo.small`, 0 where nothing is drawn; None: nowhere.
        settings: of the CRF, for the size of the preview.
        device: as for `segment_scribbles`.
    """
    if photo is None:
        return Answer(None, "Open a photo to begin.")
    drawn = [] if scribbles is None else np.unique(scribbles[scribbles > 0]).tolist()
    if scribbles is None or not drawn:
        return Answer(photo.small, "Pick a colour and paint a scribble on each thing that is to get a label.")
    if len(drawn) == 1:
        message = f"Only {colour_name(drawn[0])} is painted. Mark something else in a second colour: the background?"
        return Answer(photo.small, message)
    begin = time.perf_counter()
    try:
        labels = segment_scribbles(photo.small, scribbles, settings, device=device)
    except FAULTS as error:
        return Answer(photo.small, f"These settings do not work: {error}.")
    height, width = labels.shape
    message = f"{len(drawn)} labels on {width} × {height} pixels in {1e3 * (time.perf_counter() - begin):.0f} ms."
    return Answer(overlay(photo.small, labels), message, Refined(photo, scribbles, settings))


def mask_file(refined: Refined, device: str | torch.device | None = None) -> bytes:
    """A palette PNG of the labels in the photo's own size.

    A photo that the preview shows in a smaller size is refined once more in its own, with enlarged scribbles and with
    bandwidths that cover the same part of the picture; above `MASK_SIDE` pixels along a side in that size.
    """
    photo = shrink(refined.photo.full, MASK_SIDE)
    settings = refined.settings
    if photo.shape != refined.photo.small.shape:
        settings = settings.scaled(max(photo.shape) / max(refined.photo.small.shape))
    scribbles = resize_labels(refined.scribbles, photo.shape[:2])
    labels = segment_scribbles(photo, scribbles, settings, device=device)
    return encode_labels(resize_labels(labels, refined.photo.full.shape[:2]))


def scribbles_file(refined: Refined) -> bytes:
    """A palette PNG of the scribbles in the photo's own size, 0 where nothing is drawn."""
    return encode_labels(resize_labels(refined.scribbles, refined.photo.full.shape[:2]))
