"""Losses that a segmentation has by itself: pairs of alike pixels with different labels, weighed by dense kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._faults import watch
from ._status import DeviceStatus
from .inputs import Problem, read_problem
from .iteration import Term
from .potentials import Bilateral, Potential, parse_normalization
from .terms import PairwiseTerm, pairwise_terms, terms_of

__all__ = ["CRFLoss", "crf_loss"]

KINDS = ("potts", "normalized_cut")
REDUCTIONS = ("mean", "sum", "none")
# rloss trains with these bandwidths on photos of PASCAL VOC (there at half the resolution, with sxy halved).
DEFAULT_KERNELS = (Bilateral(sxy=100, srgb=15),)


class CRFLoss(nn.Module):
    """How much the probabilities of a segmentation disagree between alike pixels: a loss without labels.

    With S_k the probabilities of label k at all N pixels and W = Σ_j weight_j compat_j K_j the kernels,

        "potts":           Σ_k S_kᵀ W (1 - S_k) / N
        "normalized_cut":  Σ_k S_kᵀ W (1 - S_k) / (S_kᵀ W 1)

    Neither is ever negative. Potts is 0 where all pixels surely have one label. The normalized cut lies between 0 and
    C; a label that no pixel has counts 1, the limit. With a mask r, S becomes r S, 1 becomes r, and N becomes Σ r.

    Where probabilities sum to one, Potts is (1ᵀ W 1 - Σ_k S_kᵀ W S_k) / N, at most about Σ_j weight_j compat_j with the
    default normalization. The authors' code returns -Σ_k S_kᵀ W S_k: negative, less by a number that depends on the
    image alone, and per image instead of per pixel.

    Args:
        kernels: `Gaussian`, `Bilateral`, `Features`, with numbers ≥ 0 as `compat`.
        kind: "potts" or "normalized_cut".
        normalization: of the kernels that name none; None: "symmetric" for Potts, "none" for the normalized cut, which
            divides by the row sums itself.
        reduction: "mean" or "sum" over the images of a batch, or "none".
        filter: "lattice" (linear in N) or "dense" (exact, quadratic in N).
        spatial_dims: number of spatial axes; None takes [C, N], [C, H, W], [B, C, H, W] and [B, C, D, H, W] as such.

    Raises:
        ValueError, TypeError: an argument out of its range or of the wrong type.

    Tang et al., "On regularized losses for weakly-supervised CNN segmentation", ECCV 2018 (Potts), and "Normalized cut
    loss for weakly-supervised CNN segmentation", CVPR 2018.

    Example:
        >>> regularizer = CRFLoss([Bilateral(sxy=20, srgb=15)])
        >>> logits, image = torch.zeros(1, 4, 12, 16, requires_grad=True), 255 * torch.rand(1, 3, 12, 16)
        >>> regularizer(logits.softmax(1), image).backward()
    """

    def __init__(
        self,
        kernels: Sequence[Potential] = DEFAULT_KERNELS,
        *,
        kind: str = "potts",
        normalization: str | None = None,
        reduction: str = "mean",
        filter: str = "lattice",
        spatial_dims: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("kind", kind, KINDS),
            ("reduction", reduction, REDUCTIONS),
            ("filter", filter, ("lattice", "dense")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")
        if not kernels:
            raise ValueError("kernels must hold at least one kernel, got none")
        if normalization is None:
            normalization = "symmetric" if kind == "potts" else "none"
        default = parse_normalization(normalization)
        self.kind, self.reduction, self.filter, self.spatial_dims = kind, reduction, filter, spatial_dims
        self.kernels = pairwise_terms(kernels, 1, default, ())
        for term in self._terms():
            if term.compat.dim() or float(term.compat * term.weight) < 0:
                raise ValueError(f"compat must be a number, with its weight not negative, got {term.description}")
        self._status = DeviceStatus()

    def forward(self, probabilities: Tensor, image: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            probabilities: S, [B, C, H, W] or [C, H, W] floating, in [0, 1]; half and bfloat16 are computed in float32.
                One channel is the foreground of two labels.
            image: guide of the kernels that have one, [B, G, H, W] or [G, H, W], uint8 or floating, in the units of
                `srgb`.
            mask: r, [B, H, W] or [H, W]: which pixels count (bool), or how much (floating, ≥ 0). An image where none
                does has the loss 0.

        Returns:
            [] or, with reduction "none", [B] ([] where there is no batch); float32 or float64. Differentiable with
            respect to probabilities, image and mask.

        Raises:
            ValueError: shapes that do not fit; a probability outside [0, 1]; NaN. What only the data shows a GPU finds
                out later: the loss is then NaN, and the error of a kernel is raised by the next call or by `check`.
            TypeError: another dtype.
        """
        self._status.raise_if_known()
        channels, dims = _layout(probabilities, self.spatial_dims)
        problem = read_problem(probabilities, image, channels, self._terms(), dims, name="probabilities")
        _check_range("probabilities", probabilities, 1.0)
        share = None if mask is None else _read_mask(mask, problem)
        with problem.full_precision():
            s = problem.unary.to(problem.dtype).transpose(1, 2)
            if channels == 1:
                s = torch.cat([1 - s, s], 2)
            dense = self.filter == "dense"
            terms = [term.dense_term(problem) if dense else term.lattice_term(problem) for term in self._terms()]
            watch(self._status, [report for term in terms for report in term.reports])
            r = torch.ones_like(s[..., :1]) if share is None else share.to(s.dtype).expand(*s.shape[:2], 1)
            loss = _potts(s, r, terms) if self.kind == "potts" else _normalized_cut(s, r, terms)
        if self.reduction == "none":
            return loss.reshape(problem.batch_shape)
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def check(self) -> None:
        """Wait for the device and raise what it found wrong in earlier calls; on the CPU they have raised it.

        Raises:
            ValueError: as `forward`.
        """
        self._status.check()

    def _terms(self) -> list[PairwiseTerm]:
        return terms_of(self.kernels)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, reduction={self.reduction!r}, filter={self.filter!r}"


def crf_loss(
    probabilities: Tensor,
    image: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    kernels: Sequence[Potential] = DEFAULT_KERNELS,
    kind: str = "potts",
    normalization: str | None = None,
    reduction: str = "mean",
    filter: str = "lattice",
    spatial_dims: int | None = None,
) -> Tensor:
    """The loss of `CRFLoss` in one call: Σ_k S_kᵀ W (1 - S_k) per pixel, or the normalized cut.

    Args:
        probabilities, image, mask: as for `CRFLoss.forward`.
        kernels, kind, normalization, reduction, filter, spatial_dims: as for `CRFLoss`.

    Returns:
        [] or, with reduction "none", one number per image.

    Raises:
        ValueError, TypeError: as `CRFLoss`. What only the data shows on a GPU leaves NaN in the result; a `CRFLoss`
            can tell what it was.

    Tang et al., "On regularized losses for weakly-supervised CNN segmentation", ECCV 2018.

    Example:
        >>> sure = torch.zeros(2, 8, 8)
        >>> sure[0] = 1
        >>> crf_loss(sure, torch.zeros(3, 8, 8)).item()
        0.0
    """
    settings: dict[str, Any] = {"kind": kind, "normalization": normalization, "reduction": reduction, "filter": filter}
    loss: Tensor = CRFLoss(kernels, spatial_dims=spatial_dims, **settings)(probabilities, image, mask)
    return loss


def _filtered(values: Tensor, terms: Sequence[Term]) -> Tensor:
    """W values for [B, N, C]: a Potts term takes -w y off as its energy."""
    total = torch.zeros_like(values)
    for term in terms:
        total = term.subtract(total, values)
    return total


def _potts(s: Tensor, r: Tensor, terms: Sequence[Term]) -> Tensor:
    disagreement = (r * s * _filtered(r * (1 - s), terms)).sum((1, 2))
    pixels = r.sum((1, 2))
    return disagreement / torch.where(pixels > 0, pixels, 1)


def _normalized_cut(s: Tensor, r: Tensor, terms: Sequence[Term]) -> Tensor:
    # As 1 - association, which stays differentiable where a label has nearly no pixels: cut and degree vanish there
    # alike, and the gradient of their quotient is a difference of huge numbers.
    filtered = _filtered(torch.cat([r * s, r], 2), terms)
    association = (r * s * filtered[..., :-1]).sum(1)
    degree = (r * s * filtered[..., -1:]).sum(1)
    present = degree > torch.finfo(degree.dtype).tiny
    cuts = 1 - torch.where(present, association, 0) / torch.where(present, degree, 1)
    return torch.where((r > 0).any(1), cuts, 0).sum(1)


def _layout(probabilities: object, spatial_dims: int | None) -> tuple[int, int | None]:
    """How many channels there are, and how many spatial axes; what is no such tensor is left to be refused later."""
    if not isinstance(probabilities, Tensor):
        return 1, spatial_dims
    dims = {2: 1, 3: 2, 4: 2, 5: 3}.get(probabilities.dim(), 2) if spatial_dims is None else spatial_dims
    if not 1 <= dims < probabilities.dim():
        return 1, dims
    channels = probabilities.shape[-dims - 1]
    if channels == 0:
        raise ValueError(f"probabilities must have at least one channel, got shape {tuple(probabilities.shape)}")
    return channels, dims


def _read_mask(mask: Tensor, problem: Problem) -> Tensor:
    """[B, N, 1]"""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
    if not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise TypeError(f"mask must be bool or floating, got {mask.dtype}")
    if tuple(mask.shape) != (*problem.batch_shape, *problem.grid):
        raise ValueError(
            f"mask must have the shape of probabilities without the labels, {(*problem.batch_shape, *problem.grid)}, "
            f"got {tuple(mask.shape)}"
        )
    if mask.device != problem.device:
        raise ValueError(f"mask must be on the device of probabilities, {problem.device}, got {mask.device}")
    if mask.is_floating_point():
        _check_range("mask", mask, math.inf)
    return mask.reshape(-1, math.prod(problem.grid), 1)


def _check_range(name: str, tensor: Tensor, most: float) -> None:
    """Refuse what is not in [0, most]; a GPU is not asked: NaN stays NaN there."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu":
        return
    margin = 4 * torch.finfo(tensor.dtype).eps  # a softmax may round to a little more than 1
    bad = ~((tensor >= -margin) & (tensor <= most + margin) & tensor.isfinite())
    if bad.any():
        wanted = "in [0, 1]" if most == 1 else "finite and not negative"
        raise ValueError(f"{name} must be {wanted}, got {tensor[bad][0].item()}")
