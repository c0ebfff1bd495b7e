"""Inference in the dense CRF from its formulas, in numpy with kernel matrices: one image, float64, small N."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from helpers import noise
from torch import Tensor

from densecrf_cuda import DenseCRF, Features


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(0))
    return e / e.sum(0)


def matrix_of(compat: Any, classes: int) -> np.ndarray:
    """A compatibility as the matrix of what label m costs label l."""
    compat = np.asarray(compat, np.float64)
    forms = {0: lambda w: -w * np.eye(classes), 1: np.diag, 2: lambda a: (a + a.T) / 2}
    return forms[compat.ndim](compat)


def filter_matrix(features: np.ndarray, normalization: str) -> np.ndarray:
    """F [N, N] of features [d, N]."""
    kernel = np.exp(-((features[:, :, None] - features[:, None]) ** 2).sum(0) / 2)
    rows = kernel.sum(1)
    left = {"after": 1 / rows, "homogeneous": 1 / rows, "symmetric": rows**-0.5}.get(normalization, np.ones_like(rows))
    right = {"before": 1 / rows, "symmetric": rows**-0.5}.get(normalization, np.ones_like(rows))
    return left[:, None] * kernel * right


class Model:
    """Q and unary are [C, N]; a term is a filter matrix and a matrix of compatibilities."""

    def __init__(self, unary: np.ndarray, terms: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self.unary, self.terms = unary, terms

    def messages(self, q: np.ndarray, symmetric: bool = False) -> np.ndarray:
        filters = [(f + f.T) / 2 if symmetric else f for f, _ in self.terms]
        return sum((m @ q @ f.T for f, (_, m) in zip(filters, self.terms)), np.zeros_like(q))

    def energy(self, q: np.ndarray) -> float:
        return float((self.unary * q).sum() + (q * self.messages(q)).sum() / 2)

    def free_energy(self, q: np.ndarray) -> float:
        return self.energy(q) + float((q * np.log(np.maximum(q, 1e-300))).sum())

    def convergent(self, iterations: int) -> np.ndarray:
        """Each pixel damped by what the positive eigenvalues of its pairwise energy ask for."""
        classes, points = self.unary.shape
        centre = np.eye(classes) - 1 / classes
        convexity = np.zeros(points)
        for f, m in self.terms:
            kernel = (f + f.T) / 2
            diagonal = np.diag(m)
            whole = (m != np.diag(diagonal)).any()
            eigenvalues = np.linalg.eigvalsh(centre @ m @ centre) if whole else diagonal
            h = max(eigenvalues.max(), 0) * kernel.sum(1)
            if not np.allclose(f, f.T):  # f = diag(a) K or K diag(a), and K has a diagonal of ones
                ratio = np.sqrt(np.diag(f)[None, :] / np.diag(f)[:, None])
                geometric = f * ratio if np.allclose(f * ratio, (f * ratio).T) else f / ratio
                h = np.maximum(h, -min(eigenvalues.min(), 0) * (kernel - geometric).sum(1))
            convexity += h
        damping = np.maximum(convexity - 1, 0) / 4
        messages, q = np.zeros_like(self.unary), softmax(-self.unary)
        for _ in range(iterations):
            messages = (damping * messages + self.messages(q, symmetric=True)) / (1 + damping)
            q = softmax(-self.unary - messages)
        return q


class Example(NamedTuple):
    """The same problem for the package, [C, N], and for the model."""

    crf: DenseCRF
    unary: Tensor
    model: Model


def make_example(
    compats: Sequence[Any], classes: int, normalization: str = "symmetric", points: int = 12, seed: int = 0, **kw: Any
) -> Example:
    """Points scattered in the plane, a kernel for each compatibility, the exact filter in double."""
    unary = 2 * noise(classes, points, seed=seed)
    positions = [2 * noise(2, points, seed=seed + 1 + k) for k in range(len(compats))]
    kernels = [Features(f, c) for f, c in zip(positions, compats)]
    crf = DenseCRF(classes, kernels, normalization=normalization, **{"filter": "dense", "spatial_dims": 1} | kw)
    terms = [(filter_matrix(f.numpy(), normalization), matrix_of(c, classes)) for f, c in zip(positions, compats)]
    return Example(crf, unary, Model(unary.numpy(), terms))


def brute_force(model: Model) -> tuple[float, np.ndarray]:
    """The least energy of all labellings, and where it is."""
    classes, points = model.unary.shape
    grids = np.stack(np.meshgrid(*[np.arange(classes)] * points, indexing="ij")).reshape(points, -1).T
    energies = [model.energy(np.eye(classes)[labels].T) for labels in grids]
    best = int(np.argmin(energies))
    return energies[best], grids[best]
