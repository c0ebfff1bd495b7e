"""The lattice of one batch of features: built once, then a filter for any number of values."""

from __future__ import annotations

import torch
from torch import Tensor

from ._faults import Report, capacity_needed, watch
from ._status import DeviceStatus, describe
from ._waiting import may_wait
from .bandwidths import Bandwidth, bandwidth_tensor
from .ops import LatticeTensors, lattice_build, lattice_filter
from .potentials import parse_normalization
from .reference import lattice_features
from .reference.filter import norm_of_row_sums

__all__ = ["Lattice", "permutohedral_filter"]

# Above this many bytes the table of neighbours is not made for the most vertices there can be but for four a point,
# twice what photos have been seen to need; a lattice that needs more is built a second time. (On a GPU to know that is
# to wait for it; where that must not be, the overflow is a fault.)
_GENEROUS_BYTES = 1 << 30


def usual_capacity(points: int, d: int) -> int:
    """Vertices of an image that there is room for at first."""
    most = points * (d + 1)
    return most if most * (d + 1) * 8 <= _GENEROUS_BYTES else min(most, 4 * points)


class Lattice:
    """The permutohedral lattice of features, a filter with k(n, m) = exp(-|f_n - f_m|² / 2) in time linear in N.

    Args:
        features: [d, *spatial] or [B, d, *spatial], floating or uint8, d from 1 to 48. Gradients flow to them where
            they require any.
        bandwidth: standard deviation that features are divided by, > 0; one number or one per dimension.
        spatial_dims: how many axes are spatial: None takes [d, N], [d, H, W], [B, d, H, W] and [B, d, D, H, W] as
            such; name it for others, 1 for [B, d, N].

    Raises:
        ValueError: shapes or bandwidths out of range, features that are NaN, infinite, or too large for the bandwidth.
            What only the data shows a GPU finds out later: results are NaN, and the error is raised by `check`, by
            `num_vertices`, or by `filter` once it is known.
        TypeError: features of another dtype.

    Adams, Baek & Davis, "Fast high-dimensional filtering using the permutohedral lattice", 2010.

    Example:
        >>> lattice = Lattice(torch.rand(3, 1000), bandwidth=0.2)
        >>> lattice.filter(torch.ones(2, 1000)).shape
        torch.Size([2, 1000])
    """

    def __init__(self, features: Tensor, bandwidth: Bandwidth = 1.0, *, spatial_dims: int | None = None) -> None:
        if not isinstance(features, Tensor):
            raise TypeError(f"features must be a torch.Tensor, got {type(features).__name__}")
        if not (features.is_floating_point() or features.dtype == torch.uint8):
            raise TypeError(f"features must be floating or uint8, got {features.dtype}")
        guide, grid = _split_spatial("features", "d", features, spatial_dims)
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        count = guide.shape[1]
        wanted = f"one per dimension, {count} for features of shape {tuple(features.shape)}"
        width = bandwidth_tensor("bandwidth", bandwidth, count, dtype, features.device, wanted=wanted)
        self._build(guide, width, grid, False)
        self._watch()

    @classmethod
    def on_grid(
        cls, guide: Tensor, bandwidth: Tensor, grid: tuple[int, ...], coordinates: bool, *, watch: bool = True
    ) -> Lattice:
        """Build from a guide [B, G, N] and bandwidths [d], with the coordinates of the grid where wanted.

        Gradients flow to guide and bandwidth where they require any. Without `watch` it is for the caller to find out
        what a GPU has to say, from `tensors.num_vertices`.
        """
        lattice = cls.__new__(cls)
        lattice._build(guide, bandwidth, grid, coordinates)
        if watch:
            lattice._watch()
        return lattice

    def _build(self, guide: Tensor, bandwidth: Tensor, grid: tuple[int, ...], coordinates: bool) -> None:
        self.grid = grid
        self.dimension: int = bandwidth.shape[0]
        self.bandwidth = bandwidth.detach()
        self.features: Tensor | None = None
        if torch.is_grad_enabled() and (guide.requires_grad or bandwidth.requires_grad):
            self.features = lattice_features(guide, bandwidth, grid, coordinates)
        self.tensors = _build_with_room(guide.detach(), self.bandwidth, grid, coordinates)
        self._norms: dict[str, Tensor] = {}
        self._status = DeviceStatus()

    def _watch(self) -> None:
        watch(self._status, [Report(self.tensors.num_vertices, self.tensors.weights.shape[1], self.bandwidth)])

    @property
    def batch(self) -> int:
        """Number of images; 1 serves any batch of values."""
        return self.tensors.weights.shape[0]

    @property
    def num_vertices(self) -> int:
        """Number of vertices of all images together; waits for the device.

        Raises:
            ValueError: the lattice could not be built.
        """
        number = int(self.tensors.num_vertices)
        if number < 0:
            raise ValueError(describe(-number, points=self.tensors.weights.shape[1], bandwidths=self.bandwidth))
        return number

    def norm(self, normalization: str) -> Tensor:
        """The scale [B, N] of a normalization, from the row sums of the filter; empty [0] for "none"."""
        if normalization == "none":
            return self.tensors.weights.new_empty(0)
        if normalization in self._norms:
            return self._norms[normalization]
        ones = self.tensors.weights.new_ones(self.batch, self.tensors.weights.shape[1], 1)
        row_sums = lattice_filter(ones, self.tensors, self.grid, features=self.features)[..., 0]
        norm = norm_of_row_sums(row_sums, normalization)
        if self.features is None:  # else it belongs to one graph, which a backward pass frees
            self._norms[normalization] = norm
        return norm

    def filter(self, values: Tensor, normalization: str = "symmetric", *, reverse: bool = False) -> Tensor:
        """Filter values with the lattice.

        With K the filter and k = K 1: "none" y = K v; "before" y = K (n v) and "after" y = n K v with
        n = 1 / (k + 1e-20); "symmetric" y = n K (n v) with n = 1 / sqrt(k + 1e-20); "homogeneous" y = K v / k.

        Args:
            values: [C, *spatial] or [B, C, *spatial] in the dtype of the lattice, or half or bfloat16 on a float32
                lattice; any number of channels.
            normalization: as above.
            reverse: the transpose of that map.

        Returns:
            the shape and dtype of values. Differentiable with respect to values and features.

        Raises:
            ValueError: shapes that do not fit the lattice, an unknown normalization; what a GPU is known to have found
                wrong with the features.
            TypeError: values of another dtype.

        Example:
            >>> lattice = Lattice(torch.zeros(1, 4, 4))
            >>> bool((lattice.filter(torch.ones(1, 4, 4), "homogeneous") - 1).abs().max() < 1e-6)
            True
        """
        self._status.raise_if_known()
        name = parse_normalization(normalization)
        if not isinstance(values, Tensor):
            raise TypeError(f"values must be a torch.Tensor, got {type(values).__name__}")
        if tuple(values.shape[-len(self.grid) :]) != self.grid or values.dim() - len(self.grid) not in (1, 2):
            raise ValueError(
                f"values must be [C, *spatial] or [B, C, *spatial] with spatial shape {self.grid}, got "
                f"{tuple(values.shape)}"
            )
        flat, _ = _split_spatial("values", "C", values, len(self.grid))
        norm = self.norm(name) if name != "none" else None
        before, after = name in ("before", "symmetric"), name in ("after", "symmetric", "homogeneous")
        if reverse:
            before, after = after, before
        y = lattice_filter(
            flat.transpose(1, 2),
            self.tensors,
            self.grid,
            features=self.features,
            splat_scale=norm if before else None,
            slice_scale=norm if after else None,
            reverse=reverse,
        )
        return y.transpose(1, 2).reshape(values.shape)

    def check(self) -> None:
        """Wait for the device and raise what it found wrong with the features; the CPU has done that at construction.

        Raises:
            ValueError: bandwidths or features that the lattice could not be built from.

        Example:
            >>> Lattice(torch.rand(3, 100)).check()
        """
        self._status.check()

    def __repr__(self) -> str:
        weights = self.tensors.weights
        return f"Lattice(batch={self.batch}, grid={self.grid}, d={self.dimension}, dtype={weights.dtype})"


def _build_with_room(guide: Tensor, bandwidth: Tensor, grid: tuple[int, ...], coordinates: bool) -> LatticeTensors:
    """Build with the usual capacity, then with more where that was too little."""
    batch, _, points = guide.shape
    d = bandwidth.shape[0]
    most, capacity = batch * points * (d + 1), batch * usual_capacity(points, d)
    try:
        tensors = lattice_build(guide, bandwidth, grid, coordinates, capacity)
    except ValueError as error:
        if capacity == most or "capacity" not in str(error):
            raise
        return lattice_build(guide, bandwidth, grid, coordinates, most)
    if capacity == most or not may_wait(guide.device):
        return tensors
    needed = capacity_needed(int(tensors.num_vertices))
    return lattice_build(guide, bandwidth, grid, coordinates, needed) if needed else tensors


def _split_spatial(name: str, letter: str, tensor: Tensor, spatial_dims: int | None) -> tuple[Tensor, tuple[int, ...]]:
    """[B, C, N] and the spatial shape, from [C, *spatial] or [B, C, *spatial]."""
    if spatial_dims is None:
        spatial_dims = {2: 1, 3: 2, 4: 2, 5: 3}.get(tensor.dim(), 0)
    if spatial_dims < 1 or tensor.dim() - spatial_dims not in (1, 2):
        raise ValueError(
            f"{name} must be [{letter}, *spatial] or [B, {letter}, *spatial], got shape {tuple(tensor.shape)}"
            f" with spatial_dims={spatial_dims}"
        )
    batched = tensor if tensor.dim() == spatial_dims + 2 else tensor[None]
    return batched.flatten(2), tuple(batched.shape[2:])


def permutohedral_filter(
    values: Tensor,
    features: Tensor,
    bandwidth: Bandwidth = 1.0,
    *,
    normalization: str = "symmetric",
    spatial_dims: int | None = None,
) -> Tensor:
    """Filter values once with the lattice of features; `Lattice` builds once and filters many times.

    Args:
        values: [C, *spatial] or [B, C, *spatial], floating.
        features: [d, *spatial] or [B, d, *spatial], floating or uint8, d from 1 to 48.
        bandwidth: standard deviation that features are divided by, > 0; one number or one per dimension.
        normalization: "none", "before", "after", "symmetric" or "homogeneous", see `Lattice.filter`.
        spatial_dims: as for `Lattice`; None also finds [B, C, N] beside [B, d, N] where nothing else fits.

    Returns:
        the shape and dtype of values. Differentiable with respect to values and features.

    Raises:
        ValueError, TypeError: as `Lattice` and `Lattice.filter`. What only the data shows on a GPU leaves NaN in the
            result; `Lattice` can tell what it was.

    Adams, Baek & Davis 2010.

    Example:
        >>> image = torch.rand(3, 8, 8)
        >>> permutohedral_filter(image, image * 255, bandwidth=30, normalization="homogeneous").shape
        torch.Size([3, 8, 8])
    """
    if not (isinstance(values, Tensor) and isinstance(features, Tensor)):
        raise TypeError(
            f"values and features must be torch.Tensor, got {type(values).__name__} and {type(features).__name__}"
        )
    if spatial_dims is None and values.dim() == features.dim() == 3:
        same_images = values.shape[1:] == features.shape[1:]
        spatial_dims = 1 if not same_images and values.shape[::2] == features.shape[::2] else 2
    if values.dtype == torch.float64:
        features = features.double()
    elif features.dtype == torch.float64:
        features = features.float()
    return Lattice(features, bandwidth, spatial_dims=spatial_dims).filter(values, normalization)
