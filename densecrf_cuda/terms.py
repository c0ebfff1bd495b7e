"""One pairwise term of a CRF as a module: a potential with its parameters, made ready for one problem."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._faults import Report
from .bandwidths import Bandwidth, Numbers, expanded, filled, moved, parse_bandwidth
from .compatibility import parse_compat
from .dense import dense_row_sums
from .inference import DenseTerm, LatticeTerm
from .inputs import Problem
from .lattice import Lattice
from .lattice_cache import spatial_lattice
from .potentials import Features, Potential, describe
from .reference import lattice_features
from .reference.filter import norm_of_row_sums

__all__ = ["PairwiseTerm", "pairwise_terms", "terms_of"]


class PairwiseTerm(nn.Module):
    """A potential inside a CRF.

    What is trainable is a parameter (`weight`, `compat`, `log_sxy`, ...); a weight and a compatibility that are not
    are buffers in double precision, so that 0.7 is 0.7 in whatever precision the inference runs. They follow the
    device of the problem. Bandwidths, or what trained ones began with, and the spacing are numbers of the host, so that
    no GPU is asked for them; `state_dict` holds them as tensors.
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
        self.stated = (type(potential).__name__, str(potential.compat), potential.weight)
        self._spacing = potential.spacing
        self._hold("weight", torch.tensor(potential.weight, dtype=torch.float64), "weights" in trainable)
        self._hold("compat", parse_compat(potential.compat, num_classes), "compatibility" in trainable)
        self.bandwidths: dict[str, Numbers] = dict(potential.bandwidths)
        if "bandwidths" in trainable:
            self._train_bandwidths()
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

    def _train_bandwidths(self) -> None:
        for name, bandwidth in self.bandwidths.items():
            # on the device of what else is trained
            logarithm = torch.tensor(bandwidth, dtype=torch.float64, device=self.weight.device).log()
            logarithm = logarithm.to(torch.get_default_dtype())
            self.register_buffer(f"initial_log_{name}", logarithm.clone())
            self.register_parameter(f"log_{name}", nn.Parameter(logarithm))

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of what is a parameter, as `DenseCRF` takes them."""
        own = {
            "weight": "weights",
            "compat": "compatibility",
            **{f"log_{name}": "bandwidths" for name in self.bandwidths},
        }
        return tuple(dict.fromkeys(own[name] for name, _ in self.named_parameters(recurse=False) if name in own))

    def trained(self) -> list[nn.Parameter]:
        """The parameters among weight, compatibility and log-bandwidths; not those of features."""
        names = ("weight", "compat", *(f"log_{name}" for name in self.bandwidths))
        own = dict(self.named_parameters(recurse=False))
        return [own[name] for name in names if name in own]

    def values(self) -> dict[str, Any]:
        """Weight, compatibility and bandwidths as numbers and lists; waits for the device of trained ones."""
        bandwidths: dict[str, Any] = dict(self.bandwidths)
        for name, start in self.bandwidths.items():
            ratio = self._trained_ratio(name)
            if ratio is not None:
                width = (torch.tensor(start, dtype=torch.float64) * ratio.detach().double().cpu()).tolist()
                bandwidths[name] = tuple(width) if isinstance(start, tuple) else width
        return {"weight": self.weight.item(), "compat": self.compat.tolist(), **bandwidths}

    def set_trainable(self, trainable: tuple[str, ...]) -> None:
        """Make parameters of what is named and fix the rest, all with the values that they have."""
        values = self.values()
        for name, what in (("weight", "weights"), ("compat", "compatibility")):
            held = getattr(self, name).detach().clone()
            delattr(self, name)
            self._hold(name, held.double(), what in trainable)
        for name in self.bandwidths:
            self.bandwidths[name] = values[name]
            if hasattr(self, f"log_{name}"):
                delattr(self, f"log_{name}")
                delattr(self, f"initial_log_{name}")
        if "bandwidths" in trainable:
            self._train_bandwidths()
        self.stated = (self.stated[0], str(values["compat"]), values["weight"])

    @property
    def spacing(self) -> Numbers:
        """From a pixel to the next along each axis (x, y, z, ...), in the units of sxy; to be set for other data."""
        return self._spacing

    @spacing.setter
    def spacing(self, spacing: Bandwidth) -> None:
        self._spacing = parse_bandwidth("spacing", spacing)

    @property
    def description(self) -> str:
        """The potential that this is, with the bandwidths it has, or that trained ones began with."""
        kind, compat, weight = self.stated
        return describe(kind, self.bandwidths, self.spacing, compat, weight)

    def _trained_ratio(self, name: str) -> Tensor | None:
        """What training has multiplied a bandwidth by; None where it is fixed.

        Relative to where it began: an untrained bandwidth is exactly the one that was asked for.
        """
        logarithm: Tensor | None = getattr(self, f"log_{name}", None)
        if logarithm is None:
            return None
        initial: Tensor = getattr(self, f"initial_log_{name}")
        return (logarithm - initial).exp()

    def _numbers_of(self, name: str, count: int) -> tuple[float, ...]:
        """The bandwidth `name` of each of `count` dimensions, or what it began with; that of the grid in pixels."""
        numbers = expanded(name, self.bandwidths[name], count)
        if name != "sxy":
            return numbers
        return tuple(number / step for number, step in zip(numbers, expanded("spacing", self.spacing, count)))

    def bandwidth_of(self, name: str, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The bandwidth `name` of each of `count` dimensions, > 0; that of the grid in pixels."""
        value = filled(self._numbers_of(name, count), dtype, device)
        ratio = self._trained_ratio(name)
        return value if ratio is None else value * moved(ratio, dtype, device)

    def energy_scale(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """weight · compat: [], [C] or [C, C]; a matrix is made symmetric, as pydensecrf does."""
        compat = moved(self.compat, dtype, device)
        if compat.dim() == 2:
            compat = (compat + compat.mT) / 2
        return moved(self.weight, dtype, device) * compat

    def guide(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Guide [B', G, N] and bandwidths [d] of the features; B' = 1 where all images share them."""
        kind = (problem.dtype, problem.device)
        if self.coordinates:
            guide = problem.unary.new_empty((1, 0, problem.unary.shape[2]))
            bandwidth = self.bandwidth_of("sxy", len(problem.grid), *kind)
            if self.needs_image:
                guide = problem.require_image(lambda: self.description)
                bandwidth = torch.cat([bandwidth, self.bandwidth_of("srgb", guide.shape[1], *kind)])
            return guide, bandwidth
        source: Any = self.features
        if isinstance(source, Tensor):
            guide = problem.read_features(source)
        else:
            guide = problem.require_image(lambda: self.description)
            if source is not None:
                guide = problem.read_features(source(problem.image_argument))
        return guide, self.bandwidth_of("bandwidth", guide.shape[1], *kind)

    def lattice_term(self, problem: Problem) -> LatticeTerm:
        """The term with the lattice of this problem's features, from the cache where they are the grid's alone."""
        # dividing by the row sums is "after" with a norm of its own
        normalization = "after" if self.normalization == "homogeneous" else self.normalization
        scale = self.energy_scale(problem.dtype, problem.device)
        if self.coordinates and not self.needs_image and not hasattr(self, "log_sxy"):
            widths = self._numbers_of("sxy", len(problem.grid))
            cached = spatial_lattice(problem.grid, widths, self.normalization, problem.dtype, problem.unary)
            if cached is not None:
                return LatticeTerm(cached.tensors, problem.grid, cached.norm, normalization, scale)
        guide, bandwidth = self.guide(problem)
        lattice = Lattice.on_grid(guide, bandwidth, problem.grid, self.coordinates, watch=False)
        norm = lattice.norm(self.normalization)
        reports = [Report(lattice.tensors.num_vertices, problem.unary.shape[2], lattice.bandwidth)]
        return LatticeTerm(lattice.tensors, problem.grid, norm, normalization, scale, lattice.features, reports)

    def dense_term(self, problem: Problem) -> DenseTerm:
        """The term with the exact filter of this problem's features."""
        guide, bandwidth = self.guide(problem)
        features = lattice_features(guide, bandwidth, problem.grid, self.coordinates)
        reports = problem.check_features(features)
        norm = features.new_empty(0)
        if self.normalization != "none":
            norm = norm_of_row_sums(dense_row_sums(features), self.normalization)
        normalization = "after" if self.normalization == "homogeneous" else self.normalization
        return DenseTerm(features, norm, normalization, self.energy_scale(problem.dtype, problem.device), reports)

    def _host_numbers(self) -> dict[str, Numbers]:
        return self.bandwidths | ({"spacing": self.spacing} if self.coordinates else {})

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, numbers in self._host_numbers().items():
            destination[prefix + name] = torch.tensor(numbers, dtype=torch.float64, device="cpu")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        lists = (missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        for name, own in self._host_numbers().items():
            key = prefix + name
            if key in unexpected_keys:
                unexpected_keys.remove(key)
            if key not in state_dict:
                missing_keys.append(key)
                continue
            try:
                loaded = parse_bandwidth(key, state_dict[key])
            except (TypeError, ValueError) as error:
                error_msgs.append(str(error))
                continue
            if name == "spacing":
                self._spacing = loaded
            elif isinstance(loaded, tuple) != isinstance(own, tuple):
                error_msgs.append(f"{key} must be of the same form as {own}, got {loaded}")
            else:
                self.bandwidths[name] = loaded

    def extra_repr(self) -> str:
        return f"{self.description}, normalization={self.normalization!r}"


def pairwise_terms(
    potentials: Sequence[Potential], num_classes: int, default_normalization: str, trainable: tuple[str, ...]
) -> nn.ModuleList:
    """A term for each potential."""
    for potential in potentials:
        if not isinstance(potential, Potential):
            raise TypeError(f"kernels must be Gaussian, Bilateral or Features, got {type(potential).__name__}")
    return nn.ModuleList(PairwiseTerm(each, num_classes, default_normalization, trainable) for each in potentials)


def terms_of(modules: Iterable[nn.Module]) -> list[PairwiseTerm]:
    """The modules of a list of terms, as what they are."""
    return [module for module in modules if isinstance(module, PairwiseTerm)]
