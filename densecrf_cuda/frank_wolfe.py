"""Frank-Wolfe inference: steps along the solution of a linearised problem, plain or regularised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .iteration import State, Term, subtract_energies
from .settings import FrankWolfeSettings

__all__ = ["FrankWolfe", "project_to_simplex"]

# Of a line search with the entropy, by turns halvings of the bracket and Newton's: the slope has poles close to the
# ends, where Newton's method alone is slow.
SEARCH_STEPS = 10


class FrankWolfe:
    """Q ← Q + α (P - Q) from softmax(-U), where P minimises <G, P> + r(P) with G = U + Σ_k compat_k(filter_k Q).

    P is softmax(-G / weight) with the entropy, the distribution nearest to -G / weight with "l2", the cheapest label
    without regularization. The entropy with weight 1 and steps of 1 is the parallel mean field. As there, the filter
    stands for its own transpose, which the lattice's nearly is; the line search takes the objective as it is.

    Args:
        start: -U, [B, N, C].
        terms: the pairwise terms.
        settings: the objective and the steps.

    Frank & Wolfe, "An algorithm for quadratic programming", 1956; Lê-Huu & Alahari, "Regularized Frank-Wolfe for dense
    CRFs: generalizing mean field and beyond", 2021.
    """

    def __init__(self, start: Tensor, terms: Sequence[Term], settings: FrankWolfeSettings) -> None:
        self.negative_unary, self.terms, self.settings = start, terms, settings
        self.weight = 0.0 if settings.regularization == "none" else float(settings.weight)

    def start(self) -> State:
        return self.negative_unary.softmax(2), self.negative_unary

    def step(self, state: State, iteration: int) -> State:
        q, step_size = state[0], self.settings.step_size
        messages = subtract_energies(torch.zeros_like(q), self.terms, q)
        logits = self.negative_unary + messages
        if self.weight:
            logits = logits / self.weight
        p = self._minimise_linear(logits)
        if step_size == "line_search":
            return torch.lerp(q, p, self._line_search(q, p, messages)), logits
        return torch.lerp(q, p, 2 / (iteration + 2) if isinstance(step_size, str) else float(step_size)), logits

    def log_q(self, state: State) -> Tensor:
        q, logits = state
        if logits is self.negative_unary or (
            self.settings.regularization == "entropy" and self.settings.step_size == 1
        ):
            return logits.log_softmax(2)
        # A corner of the simplex has labels of probability 0, which a loss must survive.
        return q.clamp_min(torch.finfo(q.dtype).tiny).log()

    def _minimise_linear(self, logits: Tensor) -> Tensor:
        if self.settings.regularization == "entropy":
            return logits.softmax(2)
        if self.settings.regularization == "l2":
            return project_to_simplex(logits)
        labels = torch.arange(logits.shape[2], device=logits.device)
        return (logits.argmax(2, keepdim=True) == labels).to(logits.dtype)

    def _line_search(self, q: Tensor, p: Tensor, messages: Tensor) -> Tensor:
        """The step in [0, 1] from Q towards P that minimises the objective of an image, [B, 1, 1].

        The quadratic part has it in closed form, with "l2" as well. With the entropy a search of ten
        steps for a point of slope 0 starts where the bound is least that takes the entropy for linear between Q and P;
        the better of the two is taken, which is never worse than Q.
        """
        d = p - q
        along = subtract_energies(torch.zeros_like(d), self.terms, d)
        # A label that is forbidden has probability 0 in both.
        unary = self.negative_unary.masked_fill(self.negative_unary == -torch.inf, 0)
        slope = -_inner(unary + messages / 2, d) - _inner(q, along) / 2
        curvature = -_inner(d, along)
        if self.settings.regularization == "l2":
            slope, curvature = slope + self.weight * _inner(q, d), curvature + self.weight * _inner(d, d)
        elif self.settings.regularization == "entropy":
            return self._entropic_search(q, d, slope, curvature).to(q.dtype)
        return _minimise_quadratic(slope, curvature).to(q.dtype)

    def _entropic_search(self, q: Tensor, d: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
        def mixed(step: Tensor) -> Tensor:
            return (q + step.to(q.dtype) * d).clamp_min(torch.finfo(q.dtype).tiny)

        def regularization(step: Tensor) -> Tensor:
            return self.weight * _inner(mixed(step), mixed(step).log())

        def objective(step: Tensor) -> Tensor:
            return step * (slope + step * curvature / 2) + regularization(step)

        chord = regularization(torch.ones_like(slope)) - regularization(torch.zeros_like(slope))
        first = step = _minimise_quadratic(slope + chord, curvature)
        low, high = torch.zeros_like(first), torch.ones_like(first)
        for i in range(SEARCH_STEPS):
            m = mixed(step)
            rise = slope + step * curvature + self.weight * _inner(d, m.log())
            low, high = torch.where(rise < 0, step, low), torch.where(rise < 0, high, step)
            halved = (low + high) / 2
            if i % 2:
                bend = curvature + self.weight * _inner(d, d / m)
                newton = step - rise / torch.where(bend > 0, bend, 1)
                inside = (bend > 0) & (newton >= low) & (newton <= high)
                halved = torch.where(inside, newton, halved)
            step = halved
        return torch.where(objective(step) < objective(first), step, first)


def project_to_simplex(values: Tensor) -> Tensor:
    """The distribution nearest to each row: max(v - θ, 0) with the θ for which it sums to 1.

    Args:
        values: [..., C]; -infinity becomes 0.

    Returns:
        [..., C], not negative, of sum 1.

    Held, Wolfe & Crowder, "Validation of subgradient optimization", 1974, section 3.

    Example:
        >>> project_to_simplex(torch.tensor([0.75, 0.25, -1.0])), project_to_simplex(torch.tensor([3.0, 1.0]))
        (tensor([0.7500, 0.2500, 0.0000]), tensor([1., 0.]))
    """
    values = values - values.amax(-1, keepdim=True)  # for the precision of the sums
    ordered = values.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    count = torch.arange(1, values.shape[-1] + 1, device=values.device, dtype=values.dtype)
    kept = (ordered * count > excess).sum(-1, keepdim=True)
    return (values - excess.gather(-1, (kept - 1).clamp_min(0)) / kept).clamp_min(0)


def _minimise_quadratic(slope: Tensor, curvature: Tensor) -> Tensor:
    """The step in [0, 1] that minimises slope · step + curvature / 2 · step²."""
    convex = curvature > 0
    inside = (-slope / torch.where(convex, curvature, 1)).clamp(0, 1)
    return torch.where(convex, inside, (slope + curvature / 2 < 0).to(slope.dtype))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each image, [B, 1, 1], in double: it is the small difference of large sums."""
    return (a * b).sum((1, 2), keepdim=True, dtype=torch.float64)
