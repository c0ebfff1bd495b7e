"""Unaries and features from what one has, with the names, values and layouts of pydensecrf.utils."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._inputs import as_array

__all__ = [
    "compute_unary",
    "create_pairwise_bilateral",
    "create_pairwise_gaussian",
    "softmax_to_unary",
    "unary_from_labels",
    "unary_from_softmax",
]


def unary_from_labels(labels: Any, n_labels: int, gt_prob: float, zero_unsure: bool = True) -> NDArray[np.float32]:
    """Energies of an annotation that is right with probability p: -log p, and -log((1 - p) / (C - 1)) elsewhere.

    Args:
        labels: of any shape with N entries, integers: 1 to C with `zero_unsure`, else 0 to C-1.
        n_labels: C, ≥ 1; label 0 is not counted where it means unsure.
        gt_prob: p, in (0, 1).
        zero_unsure: label l has row l-1, and 0 stands for -log(1 / C) in every row.

    Returns:
        [C, N], float32.

    Raises:
        ValueError: gt_prob or a label out of its range.
        TypeError: labels that are not integers.

    Example:
        >>> unary_from_labels([0, 1, 2], 2, gt_prob=0.7).round(2)
        array([[0.69, 0.36, 1.2 ],
               [0.69, 1.2 , 0.36]], dtype=float32)
    """
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob must be in (0, 1), got {gt_prob}")
    if n_labels < 1:
        raise ValueError(f"n_labels must be at least 1, got {n_labels}")
    flat = as_array("labels", labels).ravel()
    if flat.dtype.kind not in "iub":
        raise TypeError(f"labels must be integers, got {flat.dtype}")
    least = -1 if zero_unsure else 0
    row = flat.astype(np.int64) + least
    if row.size and not (row.min() >= least and row.max() < n_labels):
        bad = row[(row < least) | (row >= n_labels)][0] - least
        raise ValueError(f"labels must be from 0 to {n_labels - 1 - least}, got {bad}")
    wrong = -np.log((1.0 - gt_prob) / (n_labels - 1)) if n_labels > 1 else math.inf
    unary = np.full((n_labels, row.size), wrong, np.float32)
    sure = np.flatnonzero(row >= 0)
    unary[row[sure], sure] = -np.log(gt_prob)
    if zero_unsure:
        unary[:, row < 0] = -np.log(1.0 / n_labels)
    return unary


def unary_from_softmax(sm: Any, scale: float | None = None, clip: float | None = 1e-5) -> NDArray[np.float32]:
    """Energies of class probabilities: -log p, with p clipped from below.

    Args:
        sm: p, [C, *spatial] with N points.
        scale: s in (0, 1], trust in p: s p + (1 - s) / C is used instead; None for p itself.
        clip: least probability; None for none, where p = 0 forbids a label.

    Returns:
        [C, N], float32.

    Raises:
        ValueError: scale out of its range, or fewer than one dimension.

    Example:
        >>> unary_from_softmax(np.array([[1.0, 0.5], [0.0, 0.5]])).round(2)
        array([[-0.  ,  0.69],
               [11.51,  0.69]], dtype=float32)
    """
    p = as_array("sm", sm)
    if p.ndim == 0:
        raise ValueError(f"sm must be [C, *spatial], got {p}")
    if scale is not None:
        if not 0 < scale <= 1:
            raise ValueError(f"scale must be in (0, 1], got {scale}")
        # An array, so that the sum is double for any p, as it is in pydensecrf.
        p = scale * p + (1 - scale) * np.full(p.shape, 1 / len(p))
    if clip is not None:
        p = np.clip(p, clip, 1.0)
    with np.errstate(divide="ignore"):
        energy = -np.log(p)
    return energy.reshape(len(p), -1).astype(np.float32, order="C")


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> NDArray[np.float32]:
    """Coordinates of a grid over bandwidths, for `addPairwiseEnergy`: f_a = position_a / sdims_a.

    Args:
        sdims: standard deviations in points, > 0, one per axis.
        shape: of the grid, N points in all.

    Returns:
        [len(shape), N], float32, the first axis (y, of an image) first.

    Raises:
        ValueError: another number of bandwidths than axes; a bandwidth that is not positive.

    Example:
        >>> create_pairwise_gaussian((2, 1), (2, 3))
        array([[0. , 0. , 0. , 0.5, 0.5, 0.5],
               [0. , 1. , 2. , 0. , 1. , 2. ]], dtype=float32)
    """
    features = np.empty((len(shape), *shape), np.float32)
    _fill_coordinates(features, sdims)
    return features.reshape(len(shape), -1)


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: float | Sequence[float], img: Any, chdim: int = -1
) -> NDArray[np.float32]:
    """Coordinates and channels of a picture of any dimension over bandwidths, for `addPairwiseEnergy`.

    Args:
        sdims: standard deviations in points, > 0, one per spatial axis.
        schan: standard deviation in the units of img, > 0: a number, or one per channel.
        img: the picture with N points, its channels along the axis `chdim`.
        chdim: axis of the channels; -1: img has no such axis, but one channel.

    Returns:
        [spatial axes + channels, N], float32, coordinates first.

    Raises:
        ValueError: another number of bandwidths than axes or channels; a bandwidth that is not positive.

    Example:
        >>> create_pairwise_bilateral((1, 1), 10, np.array([[0, 50], [100, 150]]))
        array([[ 0.,  0.,  1.,  1.],
               [ 0.,  1.,  0.,  1.],
               [ 0.,  5., 10., 15.]], dtype=float32)
    """
    image = as_array("img", img)
    channels = image[np.newaxis] if chdim == -1 else np.moveaxis(image, chdim, 0)
    axes = channels.ndim - 1
    widths: Any = [schan] * len(channels) if isinstance(schan, Number) else schan
    if len(widths) != len(channels):
        raise ValueError(f"schan must be a number or one for each of {len(channels)} channels, got {schan}")
    features = np.empty((axes + len(channels), *channels.shape[1:]), np.float32)
    _fill_coordinates(features[:axes], sdims)
    features[axes:] = channels
    for channel, width in zip(features[axes:], widths):
        channel /= _positive("schan", width)
    return features.reshape(len(features), -1)


def _fill_coordinates(features: NDArray[np.float32], sdims: Sequence[float]) -> None:
    shape = features.shape[1:]
    if len(sdims) != len(shape):
        raise ValueError(f"sdims must have one bandwidth for each of {len(shape)} axes, got {sdims}")
    for axis, (size, width) in enumerate(zip(shape, sdims)):
        steps = np.arange(size, dtype=np.float32)
        steps /= _positive("sdims", width)
        features[axis] = steps.reshape(-1, *[1] * (len(shape) - 1 - axis))


def _positive(name: str, width: float) -> float:
    if not width > 0:
        raise ValueError(f"{name} must be positive, got {width}")
    return width


def compute_unary(labels: Any, M: int, GT_PROB: float = 0.5) -> NDArray[np.float32]:
    """The old name of `unary_from_labels`, with unsure zeros.

    Example:
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     compute_unary([1, 0], 2).shape
        (2, 2)
    """
    warnings.warn("compute_unary is deprecated, use unary_from_labels", DeprecationWarning, stacklevel=2)
    return unary_from_labels(labels, M, GT_PROB)


def softmax_to_unary(sm: Any, GT_PROB: float = 1) -> NDArray[np.float32]:
    """The old name of `unary_from_softmax`, without clipping; GT_PROB is its scale.

    Example:
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     softmax_to_unary(np.full((2, 3), 0.5)).shape
        (2, 3)
    """
    warnings.warn("softmax_to_unary is deprecated, use unary_from_softmax", DeprecationWarning, stacklevel=2)
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)
