"""Batch normalization as a scale and a shift per channel: of running statistics, or of those of a batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "Affine",
    "ChannelAffine",
    "batch_affine",
    "folds",
    "frozen_affine",
    "has_hooks",
    "is_frozen_batch_norm",
    "normalizes_batch",
    "track_statistics",
    "wide",
]


class Affine(NamedTuple):
    """x -> scale · x + shift per channel; None for 1 and for 0."""

    scale: Tensor | None
    shift: Tensor | None


class ChannelAffine(nn.Module):
    """x -> scale · x + shift: what a norm with running statistics does, computed beforehand.

    Args:
        scale: [C], floating.
        shift: [C], in the dtype of scale.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] in its own dtype."""
        scaled = wide(input) * self.scale[:, None, None] + self.shift[:, None, None]
        return scaled.to(input.dtype)

    def extra_repr(self) -> str:
        return str(len(self.scale))


def has_hooks(module: nn.Module) -> bool:
    """Whether anything besides the forward of its class runs when the module is called."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks) or "forward" in module.__dict__


def folds(norm: nn.Module) -> bool:
    """Whether a norm is nothing but a scale and a shift per channel once the statistics are known."""
    if has_hooks(norm):
        return False
    if isinstance(norm, nn.SyncBatchNorm):
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        return type(norm).forward is nn.SyncBatchNorm.forward and not (together and normalizes_batch(norm))
    batch_norm = isinstance(norm, nn.BatchNorm2d) and type(norm).forward is nn.BatchNorm2d.forward
    return batch_norm or isinstance(norm, ChannelAffine) or is_frozen_batch_norm(norm)


def is_frozen_batch_norm(norm: nn.Module) -> bool:
    """Whether a norm is the FrozenBatchNorm2d of torchvision or of another library."""
    # Every library of detection has a class of this name, with the buffers of a BatchNorm2d in place of its parameters.
    statistics = {"weight", "bias", "running_mean", "running_var"}
    return type(norm).__name__ == "FrozenBatchNorm2d" and statistics <= norm._buffers.keys() and hasattr(norm, "eps")


def normalizes_batch(norm: nn.Module) -> bool:
    """Whether a norm that folds takes its statistics from the batch, as in training, and not from its buffers."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return False
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def frozen_affine(norm: Any, bias: Tensor | None) -> Affine:
    """A convolution's bias and then a norm that folds, with the statistics of its buffers.

    scale = weight / sqrt(running_var + eps),  shift = (bias - running_mean) · scale + norm.bias
    """
    if norm is None:
        return Affine(None, bias)
    if isinstance(norm, ChannelAffine):
        return Affine(norm.scale, norm.shift if bias is None else torch.addcmul(norm.shift, wide(bias), norm.scale))
    mean = wide(norm.running_mean)
    return Affine(*_affine(norm, mean if bias is None else mean - wide(bias), wide(norm.running_var)))


def batch_affine(norm: Any, mean: Tensor, variance: Tensor, bias: Tensor | None) -> Affine:
    """A convolution's bias and then a norm, with the statistics [C] of what the convolution gives without its bias.

    The bias cancels. It stays in the graph, so that its gradient is zero as that of the two modules and not missing.
    """
    scale, shift = _affine(norm, mean, variance)
    return Affine(scale, shift if bias is None else shift + (bias - bias))


def _affine(norm: Any, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * wide(norm.weight)
    shift = -mean * scale if norm.bias is None else torch.addcmul(wide(norm.bias), mean, scale, value=-1)
    return scale, shift


@torch.no_grad()
def track_statistics(norm: Any, mean: Tensor, variance: Tensor, count: int, bias: Tensor | None) -> None:
    """Update running statistics as the norm itself would.

    Args:
        norm: a BatchNorm2d in training mode.
        mean: [C] of what the convolution gives without its bias.
        variance: [C], biased: divided by count.
        count: values per channel, ≥ 2.
        bias: [C], of the convolution.
    """
    if not (norm.training and norm.track_running_stats):
        return
    factor: float | Tensor = 0.0 if norm.momentum is None else norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            # not float(): that would wait for a GPU
            factor = norm.num_batches_tracked.to(mean.dtype).reciprocal()
    for running, value in (
        (norm.running_mean, mean if bias is None else mean + bias),
        (norm.running_var, variance * (count / (count - 1))),
    ):
        if running is not None:
            running.copy_(wide(running).to(value.dtype).lerp(value, factor))


def wide(tensor: Tensor) -> Tensor:
    """In a type that sums and products are computed in: half and bfloat16 become float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
