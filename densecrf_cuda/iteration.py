"""Iterative inference: what every kind of it consists of, and the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from ._faults import Report

__all__ = ["Method", "State", "Term", "advance", "infer", "recomputed", "subtract_energies"]

# Q [B, N, C], and what else a method carries from one iteration to the next.
State = tuple[Tensor, Tensor]


class Term(Protocol):
    """A pairwise term of the energy, and what a GPU reports about it."""

    reports: Sequence[Report]
    compat: Tensor  # [], [C] or [C, C], symmetric
    norm: Tensor  # [B', N], or [0] where the normalization is "none"
    normalization: str
    symmetric: bool  # whether the filter is its own transpose

    def ones(self) -> Tensor:
        """[B', N, 1]: one value per point of every image that has features of its own."""
        ...

    def filter(self, values: Tensor, *, transposed: bool = False) -> Tensor:
        """The filter, or its transpose, of values [B, N, C]."""
        ...

    def subtract(self, logits: Tensor, q: Tensor) -> Tensor:
        """Logits less the energy compat(filter(Q)) of the term, all [B, N, C]."""
        ...


class Method(Protocol):
    """One kind of inference for one problem."""

    def start(self) -> State:
        """The state before the first iteration."""
        ...

    def step(self, state: State, iteration: int) -> State:
        """The state after one more; `iteration` counts from 0."""
        ...

    def log_q(self, state: State) -> Tensor:
        """log Q, [B, N, C], more exact than the logarithm of a rounded Q where there is more to know."""
        ...


def subtract_energies(logits: Tensor, terms: Sequence[Term], q: Tensor) -> Tensor:
    """Logits less the energies of all terms, in their order."""
    for term in terms:
        logits = term.subtract(logits, q)
    return logits


def advance(
    method: Method, state: State, moving: Tensor | None, iteration: int, tol: float, checkpoint: bool
) -> tuple[State, Tensor | None]:
    """One iteration; images that have converged stay as they are.

    Args:
        method, state, iteration: as for `Method.step`.
        moving: which images have not converged yet, [B, 1, 1]; None for all.
        tol: an image has converged after an iteration that changes no probability by more; negative: never.
        checkpoint: recompute the iteration in the backward pass.

    Returns:
        the next state, and which images it still moves.
    """

    def step(q: Tensor, other: Tensor) -> State:
        return method.step((q, other), iteration)

    new = recomputed(step, *state) if checkpoint else step(*state)
    if moving is not None:
        new = torch.where(moving, new[0], state[0]), torch.where(moving, new[1], state[1])
    if tol >= 0:
        still = (new[0] - state[0]).abs().amax((1, 2), keepdim=True) > tol
        moving = still if moving is None else moving & still
    return new, moving


def infer(method: Method, iterations: int, *, tol: float, output: str, checkpoint: bool, dtype: torch.dtype) -> Tensor:
    """Q [B, C, N] or its logarithm in a dtype, or labels [B, N], after so many iterations."""
    state, moving = method.start(), None
    for iteration in range(iterations):
        state, moving = advance(method, state, moving, iteration, tol, checkpoint)
    if output == "labels":
        return state[0].argmax(2)
    result = method.log_q(state) if output == "log_probabilities" else state[0]
    return result.transpose(1, 2).contiguous().to(dtype)


def recomputed(function: Callable[..., tuple[Tensor, Tensor]], *inputs: object) -> tuple[Tensor, Tensor]:
    """What a function returns, computed again in the backward pass instead of kept."""
    # Nothing in it is random, and the state of a GPU's generator is not to be asked for while a graph is captured.
    result: tuple[Tensor, Tensor] = recompute(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result
