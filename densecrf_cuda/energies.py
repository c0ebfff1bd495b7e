"""What a distribution, or a labelling, costs: the quantities that inference lowers, see docs/inference.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .inference import negative_unary
from .inputs import Problem
from .iteration import Term, subtract_energies

__all__ = ["entropy", "label_energy", "pairwise_product", "read_labels", "unary_product"]

# Below it pydensecrf takes no logarithm.
LEAST_PROBABILITY = 1e-20


def unary_product(unary: Tensor, q: Tensor) -> Tensor:
    """<U, Q> of each image, [B] in double, for unary [B, C, N] and Q [B, N, C]; a forbidden label of Q = 0 costs 0."""
    costs = -negative_unary(unary)
    return (torch.where(q > 0, costs, 0) * q).sum((1, 2), dtype=torch.float64)


def pairwise_product(terms: Sequence[Term], q: Tensor) -> Tensor:
    """Σ_k <Q, compat_k(filter_k(Q))> of each image, without a factor of 1/2: [B] in double, for Q [B, N, C]."""
    messages = subtract_energies(torch.zeros_like(q), terms, q)
    return -(q * messages).sum((1, 2), dtype=torch.float64)


def entropy(q: Tensor) -> Tensor:
    """-Σ Q log Q of each image, [B] in double, for Q [B, N, C]."""
    return -(q * q.clamp_min(LEAST_PROBABILITY).log()).sum((1, 2), dtype=torch.float64)


def label_energy(problem: Problem, terms: Sequence[Term], labels: Tensor) -> Tensor:
    """The energy of a labelling of each image, [B] in double, for labels [B, N]; NaN where one is out of range."""
    classes = torch.arange(problem.unary.shape[1], device=labels.device)
    chosen = labels[..., None] == classes
    one_hot = chosen.to(problem.dtype)
    energy = unary_product(problem.unary, one_hot) + pairwise_product(terms, one_hot) / 2
    return torch.where(chosen.any(2).all(1), energy, torch.nan)


def read_labels(labels: object, problem: Problem) -> Tensor:
    """Labels of the shape of the unary without its axis of labels, as [B, N]; a GPU is not asked for their range."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must have an integer dtype, got {labels.dtype}")
    expected = (*problem.batch_shape, *problem.grid)
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"labels must have the shape of unary without its labels, {expected}, got {tuple(labels.shape)}"
        )
    if labels.device != problem.device:
        raise ValueError(f"labels must be on the device of unary, {problem.device}, got {labels.device}")
    classes = problem.unary.shape[1]
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = (labels < 0) | (labels >= classes)
        if outside.any():
            raise ValueError(f"labels must be in 0 to {classes - 1}, got {labels[outside][0].item()}")
    return labels.reshape(problem.unary.shape[0], -1)
