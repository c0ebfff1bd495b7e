"""What other implementations of the CRF-RNN layer have learned, as matrices in double precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["learned_matrices"]

# In the order in which the Keras layer makes them, which is that of its get_weights().
_NAMES = ("spatial_ker_weights", "bilateral_ker_weights", "compatibility_matrix")


def learned_matrices(weights: Mapping[str, Any] | Sequence[Any]) -> list[Tensor]:
    """Spatial kernel weights, bilateral kernel weights and compatibility matrix, with the signs that they came with.

    Args:
        weights: three arrays or tensors [C, C] in that order, or a mapping where the last part of a name tells which;
            a network's state puts a prefix before it, Keras a number behind it.

    Raises:
        ValueError: not three, an entry that is missing or ambiguous, not [C, C], not finite, or of another size.

    Example:
        >>> eye = torch.eye(2)
        >>> [len(matrix) for matrix in learned_matrices([3 * eye, 5 * eye, -eye])]
        [2, 2, 2]
    """
    if isinstance(weights, Mapping):
        entries = [_entry(weights, name) for name in _NAMES]
    elif len(weights) == len(_NAMES):
        entries = list(weights)
    else:
        raise ValueError(f"weights must be the three arrays {', '.join(_NAMES)}, got {len(weights)}")
    matrices: list[Tensor] = []
    for name, entry in zip(_NAMES, entries):
        matrix = torch.as_tensor(entry).detach().to("cpu", torch.float64)
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"{name} must be [C, C], got shape {tuple(matrix.shape)}")
        if matrices and matrix.shape != matrices[0].shape:
            raise ValueError(f"{name} must be {tuple(matrices[0].shape)} like {_NAMES[0]}, got {tuple(matrix.shape)}")
        if not matrix.isfinite().all():
            raise ValueError(f"{name} must be finite, got {matrix[~matrix.isfinite()][0].item()}")
        matrices.append(matrix)
    return matrices


def _entry(weights: Mapping[str, Any], name: str) -> Any:
    keys = [key for key in weights if key.replace("/", ".").split(":")[0].split(".")[-1] == name]
    if len(keys) != 1:
        raise ValueError(f"there must be one entry {name}, got {len(keys)} among {', '.join(weights)}")
    return weights[keys[0]]
