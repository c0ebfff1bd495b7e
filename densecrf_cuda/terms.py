"""One pairwise term of a CRF as a module: a potential with its parameters, made ready for one problem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .compatibility import parse_compat
from .dense import dense_row_sums
from .inference import DenseTerm, LatticeTerm
from .inputs import Problem
from .lattice import Lattice
from .potentials import Features, Potential
from .reference import lattice_features
from .reference.filter import norm_of_row_sums

__all__ = ["PairwiseTerm"]


class PairwiseTerm(nn.Module):
    """A potential inside a CRF.

    What is trainable is a parameter (`weight`, `compat`, `log_sxy`, ...), the rest are buffers in double precision, so
    that a bandwidth of 0.7 is 0.7 in whatever precision the inference runs.
    """

    weight: Tensor
    compat: Tensor

    def __init__(
        self, potential: Potential, num_classes: int, default_normalization: str, trainable: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.normalization = potential.normalization or default_normalization
        self.coordinates = potential.coordinates
        self.needs_image = potential.needs_image
        self.description = repr(potential)
        self._hold("weight", torch.tensor(potential.weight, dtype=torch.float64), "weights" in trainable)
        self._hold("compat", parse_compat(potential.compat, num_classes), "compatibility" in trainable)
        self.bandwidth_names = tuple(potential.bandwidths)
        for name, bandwidth in potential.bandwidths.items():
            self.register_buffer(name, bandwidth)
            if "bandwidths" in trainable:
                logarithm = bandwidth.log().to(torch.get_default_dtype())
                self.register_buffer(f"initial_log_{name}", logarithm.clone())
                self.register_parameter(f"log_{name}", nn.Parameter(logarithm))
        features = potential.features if isinstance(potential, Features) else None
        if isinstance(features, Tensor) and not isinstance(features, nn.Parameter):
            self.register_buffer("features", features)
        else:
            self.features = features

    def _hold(self, name: str, value: Tensor, trainable: bool) -> None:
        if trainable:
            self.register_parameter(name, nn.Parameter(value.to(torch.get_default_dtype())))
        else:
            self.register_buffer(name, value)

    def bandwidth_of(self, name: str, dtype: torch.dtype, count: int) -> Tensor:
        """The bandwidth `name` of each of `count` dimensions, > 0."""
        value: Tensor = getattr(self, name).to(dtype)
        logarithm: Tensor | None = getattr(self, f"log_{name}", None)
        if logarithm is not None:
            # Relative to where it began: an untrained bandwidth is exactly the one that was asked for.
            initial: Tensor = getattr(self, f"initial_log_{name}")
            value = value * (logarithm - initial).exp().to(dtype)
        if value.dim() == 1 and value.shape[0] != count:
            raise ValueError(f"{name} must be a number or {count} numbers, one per dimension, got {value.shape[0]}")
        return value.expand(count)

    def energy_scale(self, dtype: torch.dtype) -> Tensor:
        """weight · compat: [], [C] or [C, C]; a matrix is made symmetric, as pydensecrf does."""
        compat = self.compat.to(dtype)
        if compat.dim() == 2:
            compat = (compat + compat.mT) / 2
        return self.weight.to(dtype) * compat

    def guide(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Guide [B', G, N] and bandwidths [d] of the features; B' = 1 where all images share them."""
        if self.coordinates:
            parts = [self.bandwidth_of("sxy", problem.dtype, len(problem.grid))]
            guide = problem.unary.new_empty((1, 0, problem.unary.shape[2]))
            if self.needs_image:
                guide = problem.require_image(self.description)
                parts.append(self.bandwidth_of("srgb", problem.dtype, guide.shape[1]))
            return guide, torch.cat(parts)
        source: Any = self.features
        if not isinstance(source, Tensor):
            image = problem.require_image(self.description)
            if source is not None:
                image = problem.read_features(source(problem.image_argument))
            return image, self.bandwidth_of("bandwidth", problem.dtype, image.shape[1])
        guide = problem.read_features(source)
        return guide, self.bandwidth_of("bandwidth", problem.dtype, guide.shape[1])

    def lattice_term(self, problem: Problem) -> LatticeTerm:
        """The term with the lattice of this problem's features."""
        guide, bandwidth = self.guide(problem)
        lattice = Lattice.on_grid(guide, bandwidth, problem.grid, self.coordinates)
        return LatticeTerm(
            lattice.tensors,
            problem.grid,
            lattice.norm(self.normalization),
            # dividing by the row sums is "after" with a norm of its own
            "after" if self.normalization == "homogeneous" else self.normalization,
            self.energy_scale(problem.dtype),
            lattice.features,
        )

    def dense_term(self, problem: Problem) -> DenseTerm:
        """The term with the exact filter of this problem's features."""
        guide, bandwidth = self.guide(problem)
        features = lattice_features(guide, bandwidth, problem.grid, self.coordinates)
        if not torch.compiler.is_compiling() and features.device.type == "cpu" and not features.isfinite().all():
            raise ValueError(f"features must be finite, got {features[~features.isfinite()][0].item()}")
        norm = features.new_empty(0)
        if self.normalization != "none":
            norm = norm_of_row_sums(dense_row_sums(features), self.normalization)
        normalization = "after" if self.normalization == "homogeneous" else self.normalization
        return DenseTerm(features, norm, normalization, self.energy_scale(problem.dtype))

    def extra_repr(self) -> str:
        return f"{self.description}, normalization={self.normalization!r}"
