"""Mean field composed of differentiable operators: what runs where gradients are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._faults import Report, unary_fault
from .compatibility import subtract_energy
from .dense import dense_product
from .iteration import Method, State, Term, infer, recomputed, subtract_energies
from .mean_field import mean_field_unrolled_with_status, mean_field_with_status
from .ops import lattice_filter

__all__ = [
    "DenseTerm",
    "LatticeTerm",
    "MeanField",
    "composed_inference",
    "fused_mean_field",
    "negative_unary",
    "unrolled_mean_field",
    "wants_gradients",
]


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
        self.symmetric = False  # neighbours that do not exist keep the axes of the blur from commuting

    def ones(self) -> Tensor:
        weights = self.lattice[0]
        return weights.new_ones(*weights.shape[:2], 1)

    def filter(self, values: Tensor, *, transposed: bool = False) -> Tensor:
        return lattice_filter(
            values,
            self.lattice,
            self.grid,
            features=self.features,
            splat_scale=self.slice_scale if transposed else self.splat_scale,
            slice_scale=self.splat_scale if transposed else self.slice_scale,
            reverse=transposed,
        )

    def subtract(self, logits: Tensor, q: Tensor) -> Tensor:
        return subtract_energy(logits, self.compat, self.filter(q))


class DenseTerm:
    """A term whose filter is the exact Gaussian of features [B', d, N]."""

    def __init__(
        self, features: Tensor, norm: Tensor, normalization: str, compat: Tensor, reports: Sequence[Report] = ()
    ) -> None:
        self.reports = reports
        self.features, self.norm, self.normalization, self.compat = features, norm, normalization, compat
        self.symmetric = normalization in ("none", "symmetric")

    def ones(self) -> Tensor:
        return self.features.new_ones(self.features.shape[0], self.features.shape[2], 1)

    def filter(self, values: Tensor, *, transposed: bool = False) -> Tensor:
        before, after = ("after", "before") if transposed else ("before", "after")
        scaled = values * self.norm[..., None] if self.normalization in (before, "symmetric") else values
        y = dense_product(scaled, self.features)
        return y * self.norm[..., None] if self.normalization in (after, "symmetric") else y

    def subtract(self, logits: Tensor, q: Tensor) -> Tensor:
        return subtract_energy(logits, self.compat, self.filter(q))


class MeanField:
    """The parallel update, Q ← damping Q + (1 - damping) softmax(-U - Σ_k compat_k(filter_k(Q))).

    Args:
        start: -U, [B, N, C].
        terms: the pairwise terms.
        damping: share of the old Q that is kept, in [0, 1).
    """

    def __init__(self, start: Tensor, terms: Sequence[Term], damping: float = 0.0) -> None:
        self.negative_unary, self.terms, self.damping = start, terms, damping

    def start(self) -> State:
        return self.negative_unary.softmax(2), self.negative_unary

    def step(self, state: State, iteration: int) -> State:
        logits = subtract_energies(self.negative_unary, self.terms, state[0])
        updated = logits.softmax(2)
        if self.damping > 0:
            updated = self.damping * state[0] + (1 - self.damping) * updated
        return updated, logits

    def log_q(self, state: State) -> Tensor:
        q, logits = state
        # Before the first iteration Q is a softmax with damping too.
        return q.log() if self.damping > 0 and logits is not self.negative_unary else logits.log_softmax(2)


def wants_gradients(unary: Tensor, terms: Sequence[LatticeTerm]) -> bool:
    """Whether a backward pass may come."""
    tensors = [unary, *(t for term in terms for t in (term.norm, term.compat, term.features))]
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def fused_mean_field(
    unary: Tensor,
    terms: Sequence[LatticeTerm],
    grid: Sequence[int],
    iterations: int,
    *,
    report: Callable[[Report], None],
    **settings: Any,
) -> Tensor:
    """`mean_field.mean_field` of terms; `report` is called with what a GPU found wrong."""
    result, status = mean_field_with_status(
        unary,
        [term.lattice for term in terms],
        [term.norm for term in terms],
        [term.normalization for term in terms],
        [term.compat for term in terms],
        grid,
        iterations,
        **settings,
    )
    report(Report(status, unary.shape[2]))
    return result


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
            result, status = recomputed(unroll, *inputs) if checkpoint else unroll(*inputs)
            if report is not None:
                report(Report(status, unary.shape[2]))
            return result

    return composed_inference(
        lambda start: MeanField(start, terms, damping),
        unary,
        iterations,
        tol=tol,
        output=output,
        checkpoint=checkpoint,
        report=report,
    )


def composed_inference(
    method: Callable[[Tensor], Method],
    unary: Tensor,
    iterations: int,
    *,
    tol: float = -1.0,
    output: str = "probabilities",
    checkpoint: bool = False,
    report: Callable[[Report], None] | None = None,
) -> Tensor:
    """Inference step by step, differentiable.

    Args:
        method: makes it from -U, [B, N, C] in the precision of the computation.
        unary, iterations, tol, output, checkpoint, report: as for `unrolled_mean_field`.

    Returns:
        [B, C, N] in the dtype of unary, or labels [B, N] int64.
    """
    if report is not None and unary.device.type == "cuda":
        report(Report(unary_fault(unary), unary.shape[2]))
    made = method(negative_unary(unary))
    return infer(made, iterations, tol=tol, output=output, checkpoint=checkpoint, dtype=unary.dtype)


def negative_unary(unary: Tensor) -> Tensor:
    """-U of a unary [B, C, N] as [B, N, C], in the precision of the computation."""
    return -unary.to(torch.promote_types(unary.dtype, torch.float32)).transpose(1, 2).contiguous()
