"""Label compatibility: what a filtered distribution costs each label. Signs are those of pydensecrf."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Compat", "parse_compat", "subtract_energy"]

Compat = float | Sequence[float] | Sequence[Sequence[float]] | Tensor


def parse_compat(compat: Compat, num_classes: int) -> Tensor:
    """A compatibility as a tensor of double precision, checked.

    Args:
        compat: a number w (Potts), [C] (diagonal) or [C, C] (matrix), finite.
        num_classes: C.

    Returns:
        [], [C] or [C, C].

    Raises:
        ValueError: another shape, or NaN or infinity.
        TypeError: not numbers.

    Example:
        >>> parse_compat(3, 21)
        tensor(3., dtype=torch.float64)
    """
    try:
        tensor = torch.as_tensor(compat, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"compat must be a number, a vector or a matrix of numbers, got {compat!r}") from error
    if tuple(tensor.shape) not in ((), (num_classes,), (num_classes, num_classes)):
        raise ValueError(
            f"compat must be a number, [{num_classes}] or [{num_classes}, {num_classes}] for {num_classes} classes, "
            f"got shape {tuple(tensor.shape)}"
        )
    if not torch.isfinite(tensor).all():
        bad = tensor[~torch.isfinite(tensor)][0].item()
        raise ValueError(f"compat must be finite, got {'NaN' if math.isnan(bad) else bad}")
    return tensor


def subtract_energy(logits: Tensor, compat: Tensor, filtered: Tensor) -> Tensor:
    """Logits less the energy of a term: -w y (Potts), v y (diagonal) or A y (matrix).

    A positive Potts weight smooths; in the other two forms a negative entry makes a label attract itself.

    Args:
        logits: [B, N, C].
        compat: [], [C] or [C, C].
        filtered: y, [B, N, C].

    Returns:
        [B, N, C].

    Example:
        >>> subtract_energy(torch.zeros(1, 1, 2), torch.tensor(2.0), torch.tensor([[[0.25, 0.75]]]))
        tensor([[[0.5000, 1.5000]]])
    """
    if compat.dim() == 2:
        return logits - filtered @ compat.mT
    return torch.addcmul(logits, filtered, compat, value=1 if compat.dim() == 0 else -1)
