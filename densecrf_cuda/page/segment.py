"""Scribbles on a photo to labels of all its pixels: what the page computes, without the page."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from .._library import build_facts
from ..crf import DenseCRF
from ..potentials import Bilateral, Gaussian
from ..unary import unary_from_scribbles

__all__ = ["Settings", "pick_device", "segment_scribbles"]


@dataclass(frozen=True)
class Settings:
    """What the sliders of the page set: two kernels, the number of iterations and how far a scribble is trusted.

    Args:
        gaussian_sxy: bandwidth of the smoothness kernel in pixels, > 0.
        gaussian_compat: its Potts weight; positive smooths.
        bilateral_sxy: bandwidth of the appearance kernel in pixels, > 0.
        bilateral_srgb: its bandwidth in colour, in units of 0 to 255, > 0.
        bilateral_compat: its Potts weight; positive smooths.
        iterations: updates of mean field, ≥ 0.
        confidence: probability that a scribble is right, in (0, 1].

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", 2011, equation 3.

    Example:
        >>> Settings(bilateral_sxy=40).scaled(2).bilateral_sxy
        80
    """

    gaussian_sxy: float = 3
    gaussian_compat: float = 3
    bilateral_sxy: float = 80
    bilateral_srgb: float = 13
    bilateral_compat: float = 10
    iterations: int = 10
    confidence: float = 0.95

    def scaled(self, factor: float) -> Settings:
        """The settings for the same picture with factor times as many pixels along each side."""
        return replace(self, gaussian_sxy=factor * self.gaussian_sxy, bilateral_sxy=factor * self.bilateral_sxy)

    def kernels(self) -> list[Gaussian | Bilateral]:
        """The kernels for `DenseCRF`."""
        return [
            Gaussian(self.gaussian_sxy, self.gaussian_compat),
            Bilateral(self.bilateral_sxy, self.bilateral_srgb, self.bilateral_compat),
        ]


def segment_scribbles(
    photo: np.ndarray,
    scribbles: np.ndarray,
    settings: Settings | None = None,
    *,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Label every pixel of a photo from scribbles on a few: argmax Q of the CRF whose unary knows the scribbles alone.

    The labels may be any positive numbers, with gaps: the CRF has one class for each that was drawn.

    Args:
        photo: [H, W, 3] uint8.
        scribbles: [H, W] integers, 0 where nothing is drawn, else the label.
        settings: of the CRF; None: `Settings()`.
        device: where to compute; None: see `pick_device`.

    Returns:
        [H, W] labels among those of the scribbles, in their dtype.

    Raises:
        ValueError: shapes that do not fit, negative labels, no scribble at all, a setting out of its range.
        TypeError: a photo that is not uint8, scribbles that are not integers.

    Example:
        >>> photo = np.zeros((24, 32, 3), np.uint8)
        >>> photo[:, 16:] = 200
        >>> scribbles = np.zeros((24, 32), np.uint8)
        >>> scribbles[8:16, 4], scribbles[8:16, 28] = 3, 7
        >>> labels = segment_scribbles(photo, scribbles)
        >>> [np.unique(half).tolist() for half in (labels[:, :16], labels[:, 16:])]
        [[3], [7]]
    """
    settings = Settings() if settings is None else settings
    drawn = _check(photo, scribbles)
    channels = np.searchsorted(drawn, scribbles) + 1  # labels may leave gaps, classes may not
    channels[scribbles == 0] = 0

    place = pick_device(device)
    # a copy: torch takes no read-only or reversed arrays
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1).to(place)
    unary = unary_from_scribbles(channels, len(drawn), settings.confidence).to(place)
    crf = DenseCRF(len(drawn), settings.kernels(), iterations=settings.iterations)
    labels = crf(unary, image, output="labels")
    crf.check()
    return drawn[labels.cpu().numpy()]


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is named; without a name a GPU where there is one and the package has kernels for it.

    Args:
        device: as `torch.device` takes it, or None.

    Returns:
        The device.

    Raises:
        ValueError: a name that torch does not know.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if device is not None:
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device must be one of torch's, as 'cpu' or 'cuda:0', got {device!r}") from error
    build = build_facts()
    usable = build is not None and build.cuda_kernels and torch.cuda.is_available()
    return torch.device("cuda" if usable else "cpu")


def _check(photo: np.ndarray, scribbles: np.ndarray) -> np.ndarray:
    """The labels that were drawn, ascending."""
    for name, array in (("photo", photo), ("scribbles", scribbles)):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be a numpy array, got {type(array).__name__}")
    if photo.dtype != np.uint8:
        raise TypeError(f"photo must be uint8, got {photo.dtype}")
    if photo.ndim != 3 or photo.shape[2] != 3:
        raise ValueError(f"photo must be [H, W, 3], got {photo.shape}")
    if scribbles.dtype.kind not in "iu":
        raise TypeError(f"scribbles must be integers, got {scribbles.dtype}")
    if scribbles.shape != photo.shape[:2]:
        raise ValueError(f"scribbles must have the size of the photo, {photo.shape[:2]}, got {scribbles.shape}")
    drawn = np.unique(scribbles[scribbles != 0])
    if drawn.size == 0:
        raise ValueError("scribbles must mark some pixels, got 0 everywhere")
    if drawn[0] < 0:
        raise ValueError(f"scribbles must not be negative, got {drawn[0]}")
    return drawn
