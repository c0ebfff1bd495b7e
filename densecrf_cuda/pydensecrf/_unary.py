"""Unary energies as objects, and the checks that every unary passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._inputs import read_matrix

__all__ = ["ConstUnary", "LogisticUnary", "Unary", "read_energy"]


class Unary:
    """What `DenseCRF.setUnary` takes: a `ConstUnary` or a `LogisticUnary`, any number of times."""

    energy: Tensor  # [C, N]

    def __init__(self) -> None:
        raise TypeError("Unary is the base of ConstUnary and LogisticUnary: make one of these")


class ConstUnary(Unary):
    """Energies as they are.

    Args:
        u: [C, N], -log p; +infinity forbids a label.

    Raises:
        ValueError: another number of dimensions; NaN, -infinity, a point where all labels are forbidden.

    Example:
        >>> ConstUnary([[0.0, 1.0], [1.0, 0.0]]).energy.shape
        torch.Size([2, 2])
    """

    def __init__(self, u: Any) -> None:
        self.energy = read_energy(u, (None, None))


class LogisticUnary(Unary):
    """Energies of a linear classifier: L f.

    Args:
        L: [C, m], weights.
        f: [m, N], features of every point.

    Raises:
        ValueError: shapes that do not fit; as `ConstUnary`.

    Example:
        >>> LogisticUnary([[1.0], [-1.0]], [[3.0, 1.0, 2.0]]).energy
        tensor([[ 3.,  1.,  2.],
                [-3., -1., -2.]])
    """

    def __init__(self, L: Any, f: Any) -> None:
        weights = read_matrix("L", L, (None, None))
        self.energy = _checked(weights @ read_matrix("f", f, (weights.shape[1], None)))


def read_energy(u: Any, shape: tuple[int | None, int | None]) -> Tensor:
    """A copy of energies [C, N], checked.

    Raises:
        ValueError: another shape; NaN, -infinity, a point where all labels are forbidden.
        TypeError: what are not numbers.
    """
    return _checked(read_matrix("unary energy", u, shape))


def _checked(energy: Tensor) -> Tensor:
    if torch.isfinite(energy.sum()):  # one quick pass over the numbers, which tells that all of them are finite
        return energy
    bad = energy.isnan() | energy.isneginf()
    if bad.any():
        label, point = bad.nonzero()[0].tolist()
        raise ValueError(
            f"unary energies must not be NaN or -infinity, got {energy[label, point]:g} for label {label} of point "
            f"{point}"
        )
    forbidden = energy.isposinf().all(0)
    if forbidden.any():
        point = int(forbidden.byte().argmax())
        raise ValueError(f"unary energies must allow a label, got +infinity for all labels of point {point}")
    return energy
