"""Cross entropy of one or several outputs of a network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["output_loss"]


def output_loss(
    outputs: Tensor | Mapping[str, Tensor],
    labels: Tensor,
    weights: Mapping[str, float] | None = None,
    *,
    ignore_index: int = 255,
) -> Tensor:
    """Σ_k weight_k · cross entropy of output k, each the mean over the labelled pixels.

    Args:
        outputs: what a model gives: logits or log-probabilities [B, C, H, W], or several of them by name: "out", and
            "logits" of a model with CRF, "aux" of one with an auxiliary classifier, "scale_0.5" of `MultiScale`, ...
        labels: [B, H, W], integer, 0 to C - 1, or ignore_index where unknown.
        weights: of the outputs that count; None: "out" alone. {"logits": 1} trains the network around the CRF,
            {"out": 1, "logits": 0.5} keeps its own scores sensible while the CRF learns.
        ignore_index: of pixels that do not count. If none counts, the loss is 0.

    Raises:
        ValueError: weights of outputs that there are none of, or no weights at all.

    Example:
        >>> import deeplab
        >>> outputs = {"out": torch.zeros(1, 2, 4, 4), "aux": torch.zeros(1, 2, 4, 4)}
        >>> deeplab.output_loss(outputs, torch.zeros(1, 4, 4, dtype=torch.long), {"out": 1.0, "aux": 0.5})
        tensor(1.0397)
    """
    named = outputs if isinstance(outputs, Mapping) else {"out": outputs}
    weights = {"out": 1.0} if weights is None else weights
    missing = [name for name in weights if name not in named]
    if missing or not weights:
        raise ValueError(f"weights must be of {', '.join(named)}, got {', '.join(missing) or 'none'}")
    count = (labels != ignore_index).sum().clamp(min=1)
    losses = []
    for name, weight in weights.items():
        scores = named[name].to(torch.promote_types(named[name].dtype, torch.float32))
        losses.append(weight * F.cross_entropy(scores, labels, ignore_index=ignore_index, reduction="sum") / count)
    return torch.stack(losses).sum()
