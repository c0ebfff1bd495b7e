"""The classes of pydensecrf.densecrf: the same names, argument orders, defaults and results.

Arrays of any dtype and layout, lists and torch tensors are read, and copied at once. What pydensecrf answers with a
crash or with silent nonsense raises a ValueError or TypeError here; docs/migrating_pydensecrf.md has the list.
"""

from __future__ import annotations

from typing import Any

import torch

from . import eigen
from ._crf import DenseCRF
from ._enums import KernelType, NormalizationType
from ._inputs import read_image, read_integer, read_widths
from ._raster import Raster
from ._unary import ConstUnary, LogisticUnary, Unary

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "ConstUnary",
    "DenseCRF",
    "DenseCRF2D",
    "KernelType",
    "LogisticUnary",
    "NormalizationType",
    "Unary",
    "eigen",
]

CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over the pixels of a picture: the class of pydensecrf.

    Args:
        w: width, ≥ 1.
        h: height, ≥ 1; pixel (x, y) is point y·w + x.
        nlabels, device: as for `DenseCRF`.

    Raises:
        ValueError, TypeError, RuntimeError: as `DenseCRF`.

    Example:
        >>> import numpy as np
        >>> crf = DenseCRF2D(32, 24, 2)
        >>> crf.setUnaryEnergy(-np.log(np.random.default_rng(0).dirichlet([1, 1], 24 * 32).T))
        >>> crf.addPairwiseGaussian(sxy=3, compat=3)
        >>> crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.zeros((24, 32, 3), np.uint8), compat=10)
        >>> np.array(crf.inference(5)).reshape(2, 24, 32).shape
        (2, 24, 32)
    """

    def __init__(self, w: int, h: int, nlabels: int, *, device: str | torch.device | None = None) -> None:
        width, height = read_integer("w", w, 1), read_integer("h", h, 1)
        super().__init__(width * height, nlabels, device=device)
        self._raster = Raster((height, width))

    def addPairwiseGaussian(
        self,
        sxy: Any,
        compat: Any,
        kernel: KernelType = DIAG_KERNEL,
        normalization: NormalizationType = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add the smoothness kernel, over coordinates alone.

        Args:
            sxy: standard deviation in pixels, > 0: a number, or one for x and one for y.
            compat, kernel, normalization: as for `addPairwiseEnergy`.

        Raises:
            ValueError: a bandwidth that is not positive or too small; a compat of another shape.
            TypeError: what are not numbers.
        """
        no_channels = torch.empty((0, self._raster.points))
        self._add(no_channels, read_widths("sxy", sxy, 2), True, compat, kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: Any,
        srgb: Any,
        rgbim: Any,
        compat: Any,
        kernel: KernelType = DIAG_KERNEL,
        normalization: NormalizationType = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add the appearance kernel, over coordinates and colours.

        Args:
            sxy: as for `addPairwiseGaussian`.
            srgb: standard deviation in the units of the picture, > 0: a number, or one for each channel.
            rgbim: [h, w, 3], uint8 or other numbers.
            compat, kernel, normalization: as for `addPairwiseEnergy`.

        Raises:
            ValueError: another shape; pixels that are not finite; as `addPairwiseGaussian`.
            TypeError: what are not numbers.
        """
        height, width = self._raster.shape
        widths = read_widths("sxy", sxy, 2) + read_widths("srgb", srgb, 3)
        self._add(read_image(rgbim, height, width), widths, True, compat, kernel, normalization)
