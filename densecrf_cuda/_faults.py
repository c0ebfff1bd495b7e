"""Fault words of csrc/status.h, where plain PyTorch finds the fault or one decides what follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ._status import _DIMENSION_BITS, _FAULT_SHIFT, _POINT_BITS, DeviceStatus

__all__ = ["Report", "capacity_needed", "feature_fault", "unary_fault", "update_fault", "watch"]

_NOT_FINITE, _CAPACITY, _UNARY, _OVERFLOW = 2, 4, 5, 6


class Report(NamedTuple):
    """What one step of a computation has to say, for `DeviceStatus.watch`."""

    words: Tensor  # int64
    points: int  # of one image
    bandwidths: Tensor | None = None  # [d] of the lattice that it is about


def watch(status: DeviceStatus, reports: Iterable[Report]) -> None:
    """Leave reports with a status, which raises them at once on the CPU, later on a GPU."""
    for report in reports:
        if type(report.words) is Tensor:  # what is fake or traced says nothing
            status.watch(report.words, report.points, report.bandwidths)


def capacity_needed(num_vertices: int) -> int:
    """How many vertices a lattice has that overflowed, from what it says its number of vertices is; 0 if it did not.

    Example:
        >>> capacity_needed(24540), capacity_needed(-((4 << 56) + 24540))
        (0, 24540)
    """
    word = -num_vertices
    return word & ((1 << _FAULT_SHIFT) - 1) if word >> _FAULT_SHIFT == _CAPACITY else 0


def unary_fault(unary: Tensor) -> Tensor:
    """The fault word [] of a unary [B, C, N] that no distribution follows from, 0 where there is none."""
    bad = (unary.isnan() | unary.isneginf()).any(1) | unary.isposinf().all(1)
    place = _first(bad)
    return _word(bad, _UNARY, place)


def update_fault(iteration: int, point: int) -> int:
    """The fault word of a point without a distribution: the unary's fault before the first iteration."""
    kind = _OVERFLOW if iteration else _UNARY
    return (kind << _FAULT_SHIFT) + (iteration << _POINT_BITS) + point


def feature_fault(features: Tensor) -> Tensor:
    """The fault word [] of features [B, d, N] that are not finite, 0 where all are."""
    bad = ~features.transpose(1, 2).isfinite()
    place, d = _first(bad), features.shape[1]
    return _word(bad, _NOT_FINITE, (place // d << _DIMENSION_BITS) + place % d)


def _first(bad: Tensor) -> Tensor:
    return bad.flatten().to(torch.uint8).argmax()


def _word(bad: Tensor, kind: int, place: Tensor) -> Tensor:
    return torch.where(bad.any(), place + (kind << _FAULT_SHIFT), torch.zeros_like(place))
