"""Pairwise potentials as users state them: what features they filter over, with which bandwidths and compatibility."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .bandwidths import Bandwidth, Numbers, parse_bandwidth
from .compatibility import Compat
from .reference.filter import NORMALIZATIONS

__all__ = ["Bilateral", "Features", "Gaussian", "Potential", "describe", "parse_normalization"]

_PYDENSECRF_NAMES = {
    "no_normalization": "none",
    "normalize_before": "before",
    "normalize_after": "after",
    "normalize_symmetric": "symmetric",
}


def parse_normalization(normalization: str) -> str:
    """The short name of a normalization; pydensecrf's constants are understood too.

    Example:
        >>> parse_normalization("NORMALIZE_SYMMETRIC")
        'symmetric'
    """
    if not isinstance(normalization, str):
        raise TypeError(f"normalization must be a string, got {type(normalization).__name__}")
    name = _PYDENSECRF_NAMES.get(normalization.lower(), normalization.lower())
    if name not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
    return name


class Potential:
    """What the potentials share. The energy of a term is weight · compat(filtered Q).

    Attributes:
        bandwidths: by name ("sxy", "srgb" or "bandwidth"), standard deviations: a number, or one per dimension.
        spacing: from a pixel to the next along each axis, in the units of sxy: a number, or one per axis.
        compat: as given; the number of classes is known to the CRF alone.
        weight: scale of the compatibility, trainable on its own.
        normalization: None: that of the CRF.
    """

    coordinates = False
    needs_image = False

    def __init__(
        self,
        bandwidths: dict[str, Bandwidth],
        compat: Compat,
        weight: float,
        normalization: str | None,
        spacing: Bandwidth = 1.0,
    ) -> None:
        self.bandwidths = {name: parse_bandwidth(name, bandwidth) for name, bandwidth in bandwidths.items()}
        self.spacing = parse_bandwidth("spacing", spacing)
        self.compat = compat
        if not math.isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight}")
        self.weight = float(weight)
        self.normalization = None if normalization is None else parse_normalization(normalization)

    def __repr__(self) -> str:
        return describe(type(self).__name__, self.bandwidths, self.spacing, self.compat, self.weight)


def describe(kind: str, bandwidths: dict[str, Numbers], spacing: Numbers, compat: object, weight: float) -> str:
    """A potential as the call that makes it; a spacing of 1 goes without saying.

    Example:
        >>> describe("Gaussian", {"sxy": 4.0}, (0.8, 0.8, 3.0), 3, 1.0)
        'Gaussian(sxy=4.0, spacing=(0.8, 0.8, 3.0), compat=3, weight=1.0)'
    """
    numbers: dict[str, object] = dict(bandwidths)
    if spacing != 1.0:
        numbers["spacing"] = spacing
    stated = numbers | {"compat": compat, "weight": weight}
    return f"{kind}({', '.join(f'{name}={value}' for name, value in stated.items())})"


class Gaussian(Potential):
    """Smoothness: k = exp(-Σ_a (spacing_a (p_a - q_a))² / (2 sxy_a²)) over pixel coordinates p, q, of any grid.

    Axes are counted from the last one of the tensor: x is W, y is H, and z is D in [C, D, H, W], or time in
    [C, T, H, W]. A grid that is no picture needs `spatial_dims=` of the CRF.

    Args:
        sxy: standard deviation in pixels, or in the units of spacing, > 0; one number, or one per axis in the order
            (x, y, z, ...).
        compat: Potts weight (positive smooths), [C] or [C, C]; see `compatibility`.
        spacing: from the centre of a pixel to the next, > 0, in millimetres for instance, which sxy is in then: sxy /
            spacing pixels; one number, or one per axis in the order of sxy. 1: sxy is in pixels.
        weight: scale of the compatibility.
        normalization: "none", "before", "after", "symmetric", "homogeneous"; None takes that of the CRF.

    Raises:
        ValueError: a bandwidth or a spacing that is not positive and finite, an unknown normalization.

    Krähenbühl & Koltun 2011, equation 3, second kernel.

    Example:
        >>> Gaussian(sxy=3, compat=3)
        Gaussian(sxy=3.0, compat=3, weight=1.0)
        >>> Gaussian(sxy=4, compat=3, spacing=(0.8, 0.8, 3))
        Gaussian(sxy=4.0, spacing=(0.8, 0.8, 3.0), compat=3, weight=1.0)
    """

    coordinates = True

    def __init__(
        self,
        sxy: Bandwidth,
        compat: Compat = 1.0,
        *,
        spacing: Bandwidth = 1.0,
        weight: float = 1.0,
        normalization: str | None = None,
    ) -> None:
        super().__init__({"sxy": sxy}, compat, weight, normalization, spacing)


class Bilateral(Potential):
    """Appearance: k = exp(-|spacing (p - q)|² / (2 sxy²) - |I_p - I_q|² / (2 srgb²)) over coordinates and the image I.

    Args:
        sxy, spacing: as for `Gaussian`.
        srgb: standard deviation in the units of the image (0 to 255 as a rule), > 0; one number, or one per channel.
        compat, weight, normalization: as for `Gaussian`.

    Raises:
        ValueError: as `Gaussian`.

    Krähenbühl & Koltun 2011, equation 3, first kernel.

    Example:
        >>> Bilateral(sxy=80, srgb=13, compat=10)
        Bilateral(sxy=80.0, srgb=13.0, compat=10, weight=1.0)
    """

    coordinates = True
    needs_image = True

    def __init__(
        self,
        sxy: Bandwidth,
        srgb: Bandwidth,
        compat: Compat = 1.0,
        *,
        spacing: Bandwidth = 1.0,
        weight: float = 1.0,
        normalization: str | None = None,
    ) -> None:
        super().__init__({"sxy": sxy, "srgb": srgb}, compat, weight, normalization, spacing)


class Features(Potential):
    """Any features: k = exp(-Σ_i (f_i - g_i)² / (2 bandwidth_i²)), for volumes, point sets and learned guides.

    Args:
        features: [d, *spatial] (shared by the batch) or [B, d, *spatial], floating, d from 1 to 48; or a function or
            module from the image given to the CRF to such a tensor; or None: that image itself.
        compat, weight, normalization: as for `Gaussian`.
        bandwidth: standard deviation in the units of the features, > 0; one number, or one per dimension.

    Raises:
        ValueError: as `Gaussian`.
        TypeError: features that are none of these.

    Example:
        >>> points = torch.rand(3, 1000)
        >>> Features(points, compat=5, bandwidth=0.1)
        Features(bandwidth=0.1, compat=5, weight=1.0)
    """

    def __init__(
        self,
        features: Tensor | Callable[[Tensor], Tensor] | None = None,
        compat: Compat = 1.0,
        *,
        bandwidth: Bandwidth = 1.0,
        weight: float = 1.0,
        normalization: str | None = None,
    ) -> None:
        super().__init__({"bandwidth": bandwidth}, compat, weight, normalization)
        if isinstance(features, Tensor):
            if not (features.is_floating_point() or features.dtype == torch.uint8):
                raise TypeError(f"features must be floating or uint8, got {features.dtype}")
            if features.dim() < 2:
                raise ValueError(f"features must be [d, *spatial] or [B, d, *spatial], got {tuple(features.shape)}")
        elif features is not None and not callable(features):
            raise TypeError(
                f"features must be a tensor, a function of the image or None, got {type(features).__name__}"
            )
        self.features = features
        self.needs_image = not isinstance(features, Tensor)
