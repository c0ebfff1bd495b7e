"""Mean field composed of differentiable operators: what runs where gradients are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from ._faults import Report, unary_fault
from .compatibility import subtract_energy
from .dense import dense_product
from .mean_field import mean_field_unrolled_with_status
from .ops import lattice_filter

__all__ = ["DenseTerm", "LatticeTerm", "Term", "unrolled_mean_field"]


class Term(Protocol):
    """A pairwise term of the energy, and what a GPU reports about it."""

    reports: Sequence[Report]

    def subtract(self, logits: Tensor, q: Tensor) -> Tensor:
        """Logits less the energy compat(filter(Q)) of the term, all [B, N, C]."""
        ...


class LatticeTerm:
    """A term whose filter is the lattice; norm [B', N] is read unless the normalization is "none"."""

    def __init__(
        self,
        lattice: Sequence[Tensor],
        grid: Sequence[int],
        norm: Tensor,
        normalization: str,
        compat: Tensor,
        features: Tensor | None = None,
        reports: Sequence[Report] = (),
    ) -> None:
        self.reports = reports
        self.lattice, self.grid, self.features, self.compat = lattice, grid, features, compat
        self.norm, self.normalization = norm, normalization
        self.splat_scale = norm if normalization in ("before", "symmetric") else None
        self.slice_scale = norm if normalization in ("after", "symmetric") else None

    def subtract(self, logits: Tensor, q: Tensor) -> Tensor:
        y = lattice_filter(
            q,
            self.lattice,
            self.grid,
            features=self.features,
            splat_scale=self.splat_scale,
            slice_scale=self.slice_scale,
        )
        return subtract_energy(logits, self.compat, y)


class DenseTerm:
    """A term whose filter is the exact Gaussian of features [B', d, N]."""

    def __init__(
        self, features: Tensor, norm: Tensor, normalization: str, compat: Tensor, reports: Sequence[Report] = ()
    ) -> None:
        self.reports = reports
        self.features, self.norm, self.normalization, self.compat = features, norm, normalization, compat

    def subtract(self, logits: Tensor, q: Tensor) -> Tensor:
        before = self.normalization in ("before", "symmetric")
        y = dense_product(q * self.norm[..., None] if before else q, self.features)
        if self.normalization in ("after", "symmetric"):
            y = y * self.norm[..., None]
        return subtract_energy(logits, self.compat, y)


def unrolled_mean_field(
    unary: Tensor,
    terms: Sequence[Term],
    iterations: int,
    *,
    damping: float = 0.0,
    tol: float = -1.0,
    output: str = "probabilities",
    checkpoint: bool = False,
    fused: bool = True,
    report: Callable[[Report], None] | None = None,
) -> Tensor:
    """Mean field as `mean_field.mean_field` computes it, step by step and differentiable.

    Memory for the backward pass is O(iterations × N × C); `checkpoint` keeps only Q of each iteration and computes
    the rest a second time.

    Args:
        unary: [B, C, N] energies; half and bfloat16 are computed in float32.
        terms: the pairwise terms.
        iterations, damping, tol, output: as for `mean_field.mean_field`.
        checkpoint: recompute each iteration in the backward pass.
        fused: use `mean_field_unrolled` for what it covers: lattices, the plain update.
        report: called with what a GPU reports about the unary.

    Returns:
        [B, C, N] in the dtype of unary, or labels [B, N] int64.

    Krähenbühl & Koltun 2011, algorithm 1; unrolled as in Zheng et al., "Conditional random fields as recurrent neural
    networks", 2015.

    Example:
        >>> unrolled_mean_field(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), [], 3, output="labels")
        tensor([[0, 1]])
    """
    lattice_terms = [term for term in terms if isinstance(term, LatticeTerm)]
    if fused and damping == 0 and tol < 0 and output != "labels" and len(lattice_terms) == len(terms) > 0:

        def unroll(
            unary: Tensor, features: list[Tensor], norms: list[Tensor], compats: list[Tensor]
        ) -> tuple[Tensor, Tensor]:
            return mean_field_unrolled_with_status(
                unary,
                [term.lattice for term in lattice_terms],
                norms,
                [term.normalization for term in lattice_terms],
                compats,
                lattice_terms[0].grid,
                iterations,
                features=features,
                logarithm=output == "log_probabilities",
            )

        norms, compats = [term.norm for term in lattice_terms], [term.compat for term in lattice_terms]
        features = [term.features for term in lattice_terms if term.features is not None]
        if len(features) in (0, len(terms)):
            inputs = (unary, features, norms, compats)
            result, status = _recomputed(unroll, *inputs) if checkpoint else unroll(*inputs)
            if report is not None:
                report(Report(status, unary.shape[2]))
            return result

    if report is not None and unary.device.type == "cuda":
        report(Report(unary_fault(unary), unary.shape[2]))
    work = unary.to(torch.promote_types(unary.dtype, torch.float32))
    start = -work.transpose(1, 2).contiguous()

    def step(q: Tensor) -> tuple[Tensor, Tensor]:
        logits = start
        for term in terms:
            logits = term.subtract(logits, q)
        updated = logits.softmax(2)
        if damping > 0:
            updated = damping * q + (1 - damping) * updated
        return updated, logits

    logits = start
    q = logits.softmax(2)
    active: Tensor | None = None
    for _ in range(iterations):
        updated, new_logits = _recomputed(step, q) if checkpoint else step(q)
        if active is not None:  # images that have converged stay as they are
            updated, new_logits = torch.where(active, updated, q), torch.where(active, new_logits, logits)
        if tol >= 0:
            moving = (updated - q).abs().amax((1, 2), keepdim=True) > tol
            active = moving if active is None else active & moving
        q, logits = updated, new_logits
    if output == "labels":
        return q.argmax(2)
    if output == "log_probabilities":
        q = q.log() if damping > 0 and iterations > 0 else logits.log_softmax(2)
    return q.transpose(1, 2).contiguous().to(unary.dtype)


def _recomputed(function: Callable[..., tuple[Tensor, Tensor]], *inputs: object) -> tuple[Tensor, Tensor]:
    # Nothing in it is random, and the state of a GPU's generator is not to be asked for while a graph is captured.
    result: tuple[Tensor, Tensor] = recompute(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result
