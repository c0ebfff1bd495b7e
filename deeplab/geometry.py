"""Strides turned into dilations, and TensorFlow's padding: what decides where a kernel of given weights is put."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Atrous", "SameConv2d", "SameMaxPool2d", "place", "same_padded"]


class Atrous:
    """The à trous rule: once a network has the stride that is wanted, every further stride becomes a dilation.

    Args:
        stride: ≥ 1, the stride that the layers to come may have together.

    Example:
        >>> atrous = Atrous(2)
        >>> [(atrous.dilation, atrous.take(stride)) for stride in (2, 2, 1)]
        [(1, 2), (1, 1), (2, 1)]
    """

    def __init__(self, stride: int) -> None:
        self.left, self.dilation = stride, 1

    def take(self, stride: int) -> int:
        """The stride that a layer of this stride has left; `dilation` grows for the layers after it where it has none.

        A layer itself keeps the dilation of the one before: its kernel reads the map before its stride.
        """
        if self.left >= stride:
            self.left //= stride
            return stride
        self.dilation *= stride
        return 1


def place(conv: nn.Conv2d, stride: int, dilation: int) -> None:
    """Give a convolution its stride and dilation, with the padding dilation · (k - 1) / 2 that keeps the map's size."""
    conv.stride, conv.dilation = (stride, stride), (dilation, dilation)
    vertical, horizontal = (dilation * (size - 1) // 2 for size in conv.kernel_size)
    conv.padding = (vertical, horizontal)


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding "SAME": at stride 2, what is odd of it goes to the right and bottom.

    For sizes that a stride of 2 halves evenly, the padding of a 3×3 kernel is (0, 1) and not (1, 1).

    Example:
        >>> import torch
        >>> SameConv2d(3, 8, 3, stride=2)(torch.zeros(1, 3, 64, 65)).shape
        torch.Size([1, 8, 32, 33])
    """

    def forward(self, input: Tensor) -> Tensor:
        (k, m), (s, t), (d, e) = self.kernel_size, self.stride, self.dilation
        padding = _same(input.shape[-1], m, t, e) + _same(input.shape[-2], k, s, d)
        return F.conv2d(F.pad(input, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SameMaxPool2d(nn.Module):
    """The largest of 3×3 values at stride 2 with TensorFlow's padding "SAME".

    Example:
        >>> import torch
        >>> SameMaxPool2d()(torch.zeros(1, 8, 64, 65)).shape
        torch.Size([1, 8, 32, 33])
    """

    def forward(self, input: Tensor) -> Tensor:
        padding = _same(input.shape[-1], 3, 2, 1) + _same(input.shape[-2], 3, 2, 1)
        return F.max_pool2d(F.pad(input, padding, value=float("-inf")), 3, 2)


def same_padded(conv: nn.Conv2d) -> SameConv2d:
    """The same convolution of a square kernel, sharing its parameters, with TensorFlow's padding."""
    same = SameConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[0],
        conv.stride[0],
        dilation=conv.dilation[0],
        groups=conv.groups,
        device="meta",
    )
    same.weight, same.bias = conv.weight, conv.bias
    return same
