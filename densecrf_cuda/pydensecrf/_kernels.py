"""One pairwise energy of a drop-in CRF: its features and compatibility, and the lattice that filters with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..bandwidths import filled
from ..inference import LatticeTerm
from ..lattice import Lattice
from ..lattice_cache import spatial_lattice
from ._raster import Raster, forget_padding

__all__ = ["PairwiseKernel"]


class PairwiseKernel:
    """A Gaussian kernel with a compatibility; the lattice is built at once, and again by every copy.

    Args:
        guide: [G, N], channels of the features; G may be 0 where there are coordinates.
        widths: bandwidths, of the coordinates (where wanted) and of the channels.
        raster: the points.
        coordinates: whether the coordinates of the raster come before the channels.
        compat: [], [C] or [C, C], float32.
        normalization: "none", "before", "after" or "symmetric".
        device: where it is computed.

    Raises:
        ValueError: features or bandwidths that no lattice can be built from.
    """

    def __init__(
        self,
        guide: Tensor,
        widths: tuple[float, ...],
        raster: Raster,
        *,
        coordinates: bool,
        compat: Tensor,
        normalization: str,
        device: torch.device,
    ) -> None:
        self.guide = guide
        self.widths = widths
        self.raster = raster
        self.coordinates = coordinates
        self.compat = compat
        self.normalization = normalization
        self.device = device
        self.term = self._build()

    def _build(self) -> LatticeTerm:
        compat = self.compat.to(self.device)
        if self.coordinates and not len(self.guide):
            cached = spatial_lattice(
                self.raster.shape,
                self.widths,
                self.normalization,
                torch.float32,
                torch.empty(0, device=self.device),
                variant="padded" if self.raster.is_padded else "",
                build=self._lattice if self.raster.is_padded else None,
            )
            if cached is not None:
                return LatticeTerm(cached.tensors, self.raster.computed, cached.norm, self.normalization, compat)
        lattice = self._lattice()
        norm = lattice.norm(self.normalization)
        return LatticeTerm(lattice.tensors, self.raster.computed, norm, self.normalization, compat)

    def _lattice(self) -> Lattice:
        """The lattice of the computed grid; what a GPU finds wrong with the features is waited for, and raised."""
        guide, coordinates = self.guide, self.coordinates
        if self.raster.is_padded:
            if coordinates:  # as channels: the padding has none
                guide, coordinates = torch.cat([self.raster.coordinates(), guide]), False
            guide = self.raster.padded(guide)
        bandwidth = filled(self.widths, torch.float32, self.device)
        lattice = Lattice.on_grid(guide[None].to(self.device), bandwidth, self.raster.computed, coordinates)
        lattice.check()
        if self.raster.is_padded:
            forget_padding(lattice.tensors, self.raster)
        return lattice

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "term"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.term = self._build()
