"""One pairwise energy of a drop-in CRF: its features and compatibility, and the lattice that filters with them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..bandwidths import filled
from ..inference import LatticeTerm
from ..lattice import Lattice
from ..lattice_cache import spatial_lattice
from ..ops import LatticeTensors
from ._raster import Raster, forget_padding

__all__ = ["PairwiseKernel"]

MAX_CACHED_POINTS = 1 << 21  # two such lattices take about a quarter of a gigabyte


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
        if self.coordinates and not len(self.guide):
            lattice, norm = self._lattice_of_the_grid()
        else:
            lattice, norm = _build_lattice(self.guide, self.widths, self.raster, self.coordinates, *self._settings)
        return LatticeTerm(lattice, self.raster.computed, norm, self.normalization, self.compat.to(self.device))

    @property
    def _settings(self) -> tuple[str, torch.device]:
        return self.normalization, self.device

    def _lattice_of_the_grid(self) -> tuple[LatticeTensors, Tensor]:
        if self.raster.is_padded and self.raster.points <= MAX_CACHED_POINTS:
            return _padded_grid_lattice(self.widths, self.raster, *self._settings)
        cached = None
        if not self.raster.is_padded:
            like = torch.empty(0, device=self.device)
            cached = spatial_lattice(self.raster.shape, self.widths, self.normalization, torch.float32, like)
        if cached is not None:
            return cached.tensors, cached.norm
        return _build_lattice(self.guide, self.widths, self.raster, True, *self._settings)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "term"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.term = self._build()


def _build_lattice(
    guide: Tensor,
    widths: tuple[float, ...],
    raster: Raster,
    coordinates: bool,
    normalization: str,
    device: torch.device,
) -> tuple[LatticeTensors, Tensor]:
    """A lattice and its norm; what a GPU finds wrong with the features is waited for, and raised."""
    grid = raster.computed
    if raster.is_padded:
        if coordinates:  # as channels: the padding has none
            guide, coordinates = torch.cat([raster.coordinates(), guide]), False
        guide = raster.padded(guide)
    bandwidth = filled(widths, torch.float32, device)
    lattice = Lattice.on_grid(guide[None].to(device), bandwidth, grid, coordinates)
    lattice.check()
    if raster.is_padded:
        forget_padding(lattice.tensors, raster)
    return lattice.tensors, lattice.norm(normalization)


@lru_cache(maxsize=2)
def _padded_grid_lattice(
    widths: tuple[float, ...], raster: Raster, normalization: str, device: torch.device
) -> tuple[LatticeTensors, Tensor]:
    """The lattice of a padded grid, kept for the next picture of that size; `spatial_lattice` keeps those of others."""
    guide = torch.empty((0, raster.points))
    lattice, norm = _build_lattice(guide, widths, raster, True, normalization, device)
    vertices = int(lattice.num_vertices)
    offsets = lattice.vertex_offsets[: vertices + 1].clone()
    return lattice._replace(vertex_offsets=offsets, neighbours=lattice.neighbours[:, :vertices].contiguous()), norm
