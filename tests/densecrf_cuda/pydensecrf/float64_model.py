"""pydensecrf's inference in float64, from its formulas: how far its float32 may be from what it means.

Simplices are found in float32, as there, so that the vertices are the same; everything else is in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

SIMD_WIDTH = 4


class Lattice:
    """The permutohedral lattice of features [d, N]; points missing from a multiple of four add their vertices."""

    def __init__(self, features: np.ndarray) -> None:
        d, points = features.shape
        padded = np.zeros((d, -(-points // SIMD_WIDTH) * SIMD_WIDTH), np.float32)
        padded[:, :points] = features
        elevated, exact = (self._elevate(padded.astype(dtype)) for dtype in (np.float32, np.float64))
        nearest = np.rint(elevated * np.float32(1 / (d + 1)))
        remainder = nearest * (d + 1)
        offset = elevated - remainder
        rank = np.zeros(elevated.shape, int)
        for i in range(d + 1):
            for j in range(i + 1, d + 1):
                less = offset[i] < offset[j]
                rank[i] += less
                rank[j] += ~less
        rank += nearest.sum(0).astype(int)
        turn = np.where(rank < 0, d + 1, 0) - np.where(rank > d, d + 1, 0)
        rank += turn
        remainder += turn

        # The weight of vertex k is the gap between the offsets of rank d-k and of rank d-k+1.
        ordered = np.take_along_axis((exact - remainder) / (d + 1), np.argsort(rank, axis=0), axis=0)
        weights = np.concatenate([ordered[-1:] + 1 - ordered[:1], (ordered[:-1] - ordered[1:])[::-1]])
        k = np.arange(d + 1)[:, None, None]
        keys = (remainder + np.where(rank <= d - k, k, k - d - 1))[:, :d].astype(int)  # [d+1, d, points]
        unique, ids = np.unique(keys.transpose(2, 0, 1).reshape(-1, d), axis=0, return_inverse=True)
        self.weights, self.ids = weights.T[:points], ids.reshape(-1, d + 1)[:points]
        self.vertices = len(unique)
        place = {tuple(key): i for i, key in enumerate(unique.tolist())}
        self.neighbours = np.full((d + 1, 2, self.vertices), self.vertices)  # the row after the last is zero
        for axis in range(d + 1):
            for i, key in enumerate(unique.tolist()):
                for side, sign in enumerate((-1, 1)):
                    step = tuple(c - sign * d if a == axis else c + sign for a, c in enumerate(key))
                    self.neighbours[axis, side, i] = place.get(step, self.vertices)
        self.gain = 1 / (1 + 2.0**-d)

    @staticmethod
    def _elevate(features: np.ndarray) -> np.ndarray:
        d = len(features)
        deviation = np.float32(math.sqrt(2 / 3) * (d + 1))
        total, rows = np.zeros_like(features[0]), []
        for j in range(d, 0, -1):
            c = features[j - 1] * features.dtype.type(np.float32(deviation / math.sqrt(j * (j + 1))))
            rows.append(total - c * j)
            total = total + c
        return np.stack([*rows, total][::-1])

    def filter(self, values: np.ndarray) -> np.ndarray:
        """[C, N] to [C, N]."""
        rows = np.zeros((self.vertices + 1, len(values)))
        np.add.at(rows, self.ids, self.weights[:, :, None] * values.T[:, None])
        for back, forth in self.neighbours:
            rows[:-1] += 0.5 * (rows[back] + rows[forth])
        return self.gain * (self.weights[:, :, None] * rows[self.ids]).sum(1).T


def infer(unary: np.ndarray, kernels: Sequence[tuple[np.ndarray, Any, int]], iterations: int) -> np.ndarray:
    """Q [C, N] after some iterations.

    Args:
        unary: [C, N].
        kernels: features [d, N], compat (number, [C] or [C, C]) and number of the normalization, of each.
        iterations: updates.
    """
    terms = []
    for features, compat, normalization in kernels:
        lattice = Lattice(features)
        sums = lattice.filter(np.ones((1, unary.shape[1])))
        norm = 1 / (np.sqrt(sums) if normalization == 3 else sums)
        before, after = norm if normalization in (1, 3) else 1, norm if normalization in (2, 3) else 1
        matrix = np.asarray(compat, float)
        matrix = (matrix + matrix.T) / 2 if matrix.ndim == 2 else np.diag(matrix) if matrix.ndim else None
        terms.append((lattice, before, after, -compat * np.eye(len(unary)) if matrix is None else matrix))
    q = softmax(-unary)
    for _ in range(iterations):
        q = softmax(
            -unary - sum(matrix @ (after * lattice.filter(before * q)) for lattice, before, after, matrix in terms)
        )
    return q


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(float) - logits.max(0))
    return p / p.sum(0)
