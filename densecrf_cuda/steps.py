"""Inference one iteration at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from .energies import entropy, pairwise_product, unary_product
from .inference import negative_unary
from .inputs import Problem
from .iteration import Method, Term, advance

__all__ = ["InferenceStep", "iterate"]


class InferenceStep:
    """Q after some iterations, and what it costs: `DenseCRF.steps` makes it.

    The costs are sums over the points of an image, in double precision: [] where the unary has no batch, else [B].
    They take one more filter of Q, when the first of them is asked for, and are differentiable where q is.

    Attributes:
        iteration: how many iterations led here; 0 is softmax(-U).
        q: probabilities, of the shape and dtype of the unary.

    Example:
        >>> from densecrf_cuda import DenseCRF
        >>> first, second = DenseCRF(2).steps(torch.tensor([[0.0], [1.0]]), iterations=1)
        >>> first
        InferenceStep(iteration=0, q=(2, 1))
    """

    def __init__(self, iteration: int, q: Tensor, problem: Problem, terms: Sequence[Term]) -> None:
        self.iteration = iteration
        self._q, self._problem, self._terms = q, problem, terms
        shape = (*problem.batch_shape, q.shape[2], *problem.grid)
        self.q = q.transpose(1, 2).contiguous().to(problem.unary.dtype).reshape(shape)

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """<U, Q>, Σ_k <Q, compat_k(filter_k Q)> and the entropy."""
        with self._problem.full_precision():
            parts = (
                unary_product(self._problem.unary, self._q),
                pairwise_product(self._terms, self._q),
                entropy(self._q),
            )
        shape = self._problem.batch_shape
        return parts[0].reshape(shape), parts[1].reshape(shape), parts[2].reshape(shape)

    @property
    def energy(self) -> Tensor:
        """<U, Q> + ½ Σ_k <Q, compat_k(filter_k Q)>; of a Q of zeros and ones, `DenseCRF.energy` of its labels."""
        unary, pairwise, _ = self._parts
        return unary + pairwise / 2

    @property
    def free_energy(self) -> Tensor:
        """<U, Q> + ½ Σ_k <Q, compat_k(filter_k Q)> + Σ Q log Q, which mean field looks for a minimum of."""
        unary, pairwise, disorder = self._parts
        return unary + pairwise / 2 - disorder

    @property
    def kl_divergence(self) -> Tensor:
        """What pydensecrf calls klDivergence: the free energy with the pairwise sum counted in full, not by half."""
        unary, pairwise, disorder = self._parts
        return unary + pairwise - disorder

    def __repr__(self) -> str:
        return f"InferenceStep(iteration={self.iteration}, q={tuple(self.q.shape)})"


def iterate(
    make: Callable[[Tensor, Sequence[Term]], Method],
    problem: Problem,
    terms: Sequence[Term],
    iterations: int,
    *,
    tol: float,
    checkpoint: bool,
) -> Iterator[InferenceStep]:
    """The steps of an inference, each computed when it is asked for, with gradients if they were on at the call.

    Args:
        make: makes the method from -U [B, N, C] and the terms.
        problem, terms: what is inferred.
        iterations, tol, checkpoint: as for `DenseCRF`.
    """
    grad = torch.is_grad_enabled()

    def steps() -> Iterator[InferenceStep]:
        moving = None
        for iteration in range(iterations + 1):
            # The caller's own settings are back in force while he has the step.
            with problem.full_precision(), torch.set_grad_enabled(grad):
                if iteration == 0:
                    method = make(negative_unary(problem.unary), terms)
                    state = method.start()
                else:
                    state, moving = advance(method, state, moving, iteration - 1, tol, checkpoint and grad)
                step = InferenceStep(iteration, state[0], problem, terms)
            yield step

    return steps()
