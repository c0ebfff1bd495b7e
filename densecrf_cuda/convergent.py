"""Mean field whose free energy never rises: the concave-convex procedure, all pixels at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .compatibility import subtract_energy
from .iteration import State, Term

__all__ = ["ConvergentMeanField", "curvature", "eigenvalue_bounds"]

# A bound exceeds the eigenvalue by up to C ** 2**-20 - 1 of the matrix's norm, some millionths.
SQUARINGS = 20


class ConvergentMeanField:
    """Mean field by the concave-convex procedure: an update minimises a bound of the free energy that touches it at Q.

    With S = (F + Fᵀ) / 2 for the filter F of a term, the messages are M = Σ_k compat_k(S_k Q), and
    R ← (c R + M) / (1 + c), Q ← softmax(-U - R) from R = 0. The damping c ≥ 0 of each pixel is what the convex part of
    the pairwise energy needs, 0 where there is none or little of it; the update is then the parallel one. Each update
    lowers the free energy by ½ |Q_new - Q|² at least, if the kernel is positive semidefinite as the exact one is:
    docs/inference.md derives it.

    Args:
        start: -U, [B, N, C].
        terms: the pairwise terms.

    Krähenbühl & Koltun, "Parameter learning and convergent inference for dense random fields", 2013, section 4, with
    the term n = m of the kernels and any compatibility.
    """

    def __init__(self, start: Tensor, terms: Sequence[Term]) -> None:
        self.negative_unary, self.terms = start, terms
        convexity = start.new_zeros(1, 1, 1)
        for term in terms:
            convexity = convexity + curvature(term)[..., None].to(start.dtype)
        # The entropy can do with a convexity of 2; 1 of it is kept for the lattice, which is no exact Gaussian.
        self.damping = ((convexity - 1) / 4).clamp_min(0)

    def start(self) -> State:
        return self.negative_unary.softmax(2), torch.zeros_like(self.negative_unary)

    def step(self, state: State, iteration: int) -> State:
        q, negative_messages = state
        gradient = torch.zeros_like(q)
        for term in self.terms:
            y = term.filter(q)
            if not term.symmetric:
                y = (y + term.filter(q, transposed=True)) / 2
            gradient = subtract_energy(gradient, term.compat, y)
        negative_messages = (self.damping * negative_messages + gradient) / (1 + self.damping)
        return (self.negative_unary + negative_messages).softmax(2), negative_messages

    def log_q(self, state: State) -> Tensor:
        return (self.negative_unary + state[1]).log_softmax(2)


def curvature(term: Term) -> Tensor:
    """h ≥ 0 for which <D, S D compat> ≤ Σ_n h_n |D_n|² whatever the change D of Q, whose rows sum to zero; [B', N].

    With -δ_n and ρ_n the bounds of S in the sense of -diag(δ) ≤ S ≤ diag(ρ), h is the larger of δ times the most
    negative eigenvalue of the compatibility and ρ times the most positive one. ρ are the row sums of S, since its
    entries are not negative. For a kernel matrix K, δ is 0 with normalization "none" and "symmetric", and for those
    with n on one side the row sums of S - √n K √n, whose entries k_nm (√n_n - √n_m)² / 2 are not negative either.

    Args:
        term: with a filter of no negative entries.

    Returns:
        [B', N] in the precision of the term's filter.
    """
    least, most = eigenvalue_bounds(term.compat)
    ones = term.ones()
    row_sums = (term.filter(ones) + term.filter(ones, transposed=True))[..., 0] / 2
    convexity = most.clamp_min(0) * row_sums
    if term.normalization in ("before", "after"):
        root = term.norm.sqrt()
        both = term.filter(root[..., None], transposed=term.normalization == "before")[..., 0] / root
        convexity = torch.maximum(convexity, -least.clamp_max(0) * (row_sums - both).clamp_min(0))
    return convexity


def eigenvalue_bounds(compat: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds on the eigenvalues of a compatibility over vectors that sum to zero, as changes of Q do.

    A matrix of distances between labels has none that is positive there, however positive its entries.

    Args:
        compat: as for `subtract_energy`, a matrix symmetric.

    Returns:
        a number that no eigenvalue is below and one that none is above, [] in the dtype of compat: exact for Potts,
        the extremes of a diagonal, within some millionths of the norm of a matrix. No GPU is waited for.

    Example:
        >>> least, most = eigenvalue_bounds(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]))
        >>> round(least.item(), 3), most.item() <= 0
        (-2.0, True)
    """
    if compat.dim() == 0:
        return -compat, -compat
    if compat.dim() == 1:
        return compat.amin(), compat.amax()
    return -_largest_eigenvalue(-compat), _largest_eigenvalue(compat)


def _largest_eigenvalue(matrix: Tensor) -> Tensor:
    """Σ_i λ_i^p, p = 2 ** SQUARINGS, to the power of 1 / p: differentiable where eigenvalues coincide, as sorting them
    is not, and a GPU is not asked whether it succeeded."""
    size = matrix.shape[0]
    if size == 1:
        return matrix.new_zeros(())
    work = matrix.double()
    centre = torch.eye(size, dtype=work.dtype, device=work.device) - 1 / size
    scale = work.detach().norm().clamp_min(torch.finfo(work.dtype).tiny)
    power = centre @ (work / scale) @ centre + centre  # eigenvalues from 0 to 2
    logarithm = work.new_zeros(())
    for i in range(SQUARINGS + 1):
        trace = power.trace()
        logarithm = logarithm + trace.log() / 2**i
        power = (power / trace) @ (power / trace)
    return ((logarithm.exp() - 1) * scale).to(matrix.dtype)
