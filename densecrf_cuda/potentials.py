"""Pairwise potentials as users state them: what features they filter over, with which bandwidths and compatibility."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

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


def describe(kind: str, bandwidths: Mapping[str, Numbers], compat: Compat, weight: float) -> str:
    """A potential as its class would be called.

    Example:
        >>> describe("Gaussian", {"sxy": 3.0}, 2, 1.0)
        'Gaussian(sxy=3.0, compat=2, weight=1.0)'
    """
    widths = ", ".join(f"{name}={bandwidth}" for name, bandwidth in bandwidths.items())
    return f"{kind}({widths}, compat={compat}, weight={weight})"


class Potential:
    """What the potentials share. The energy of a term is weight · compat(filtered Q).

    Attributes:
        bandwidths: by name ("sxy", "srgb" or "bandwidth"), standard deviations: a number, or one per dimension.
        compat: as given; the number of classes is known to the CRF alone.
        weight: scale of the compatibility, trainable on its own.
        normalization: None: that of the CRF.
    """

    coordinates = False
    needs_image = False

    def __init__(
        self, bandwidths: dict[str, Bandwidth], compat: Compat, weight: float, normalization: str | None
    ) -> None:
        self.bandwidths = {name: parse_bandwidth(name, bandwidth) for name, bandwidth in bandwidths.items()}
        self.compat = compat
        if not math.isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight}")
        self.weight = float(weight)
        self.normalization = None if normalization is None else parse_normalization(normalization)

    def __repr__(self) -> str:
        return describe(type(self).__name__, self.bandwidths, self.compat, self.weight)


class Gaussian(Potential):
    """Smoothness: k = exp(-Σ_a (p_a - q_a)² / (2 sxy_a²)) over pixel coordinates p, q.

    Args:
        sxy: standard deviation in pixels, > 0; one number, or one per axis in the order (x, y, z, ...).
        compat: Potts weight (positive smooths), [C] or [C, C]; see `compatibility`.
        weight: scale of the compatibility.
        normalization: "none", "before", "after", "symmetric", "homogeneous"; None takes that of the CRF.

    Raises:
        ValueError: a bandwidth that is not positive and finite, an unknown normalization.

    Krähenbühl & Koltun 2011, equation 3, second kernel.

    Example:
        >>> Gaussian(sxy=3, compat=3)
        Gaussian(sxy=3.0, compat=3, weight=1.0)
    """

    coordinates = True

    def __init__(
        self, sxy: Bandwidth, compat: Compat = 1.0, *, weight: float = 1.0, normalization: str | None = None
    ) -> None:
        super().__init__({"sxy": sxy}, compat, weight, normalization)


class Bilateral(Potential):
    """Appearance: k = exp(-|p - q|² / (2 sxy²) - |I_p - I_q|² / (2 srgb²)) over coordinates and the image I.

    Args:
        sxy: as for `Gaussian`.
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
        weight: float = 1.0,
        normalization: str | None = None,
    ) -> None:
        super().__init__({"sxy": sxy, "srgb": srgb}, compat, weight, normalization)


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
