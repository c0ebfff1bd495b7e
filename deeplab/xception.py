"""Xception: the original with its classifier, and the modified aligned one of DeepLab v3+ with 41, 65 or 71 layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from densecrf_cuda import AtrousSeparableConv2d
from densecrf_cuda.settings import check_choice, whole_number

from .backbone import Backbone, check_multi_grid, check_output_stride
from .geometry import Atrous, SameMaxPool2d, place

__all__ = ["AlignedXception", "Xception", "xception"]

# blocks of the entry flow, (channels, stride); which of them gives the low-level map; blocks of the middle flow
FLOWS: dict[str, tuple[tuple[tuple[int, int], ...], int, int]] = {
    "xception41": (((128, 2), (256, 2), (728, 2)), 1, 8),
    "xception65": (((128, 2), (256, 2), (728, 2)), 1, 16),
    "xception71": (((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)), 2, 16),
}

_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=3e-4)  # TensorFlow's decay 0.9997
_keras_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


class AlignedBlock(nn.Module):
    """Three separable convolutions, the last of them with the stride, and a shortcut around them.

    Args:
        channels: of the input.
        widths: output channels of the three convolutions.
        stride: of the block, before any output stride is set.
        shortcut: whether the input is added, through a 1×1 convolution where size or channels differ. Without it the
            block is the network's last one, whose activations follow every convolution instead of preceding it.
    """

    def __init__(self, channels: int, widths: Sequence[int], stride: int, shortcut: bool = True) -> None:
        super().__init__()
        self.stride = stride
        act = "none" if shortcut else "relu"
        self.conv1, self.conv2, self.conv3 = (
            AtrousSeparableConv2d(
                before,
                after,
                pre_activation="relu" if shortcut else "none",
                depthwise_norm=_norm,
                depthwise_activation=act,
                norm=_norm,
                activation=act,
            )
            for before, after in pairwise((channels, *widths))
        )
        self.skip: nn.Module | None = nn.Identity() if shortcut else None
        if shortcut and (stride != 1 or channels != widths[-1]):
            self.skip = nn.Sequential(nn.Conv2d(channels, widths[-1], 1, stride, bias=False), _norm(widths[-1]))

    def place(self, stride: int, dilations: Sequence[int]) -> None:
        """Give the block its stride and the three convolutions their dilations."""
        for conv, conv_stride, dilation in zip((self.conv1, self.conv2, self.conv3), (1, 1, stride), dilations):
            place(conv.depthwise, conv_stride, dilation)
        if isinstance(self.skip, nn.Sequential):
            projection: Any = self.skip[0]
            place(projection, stride, 1)

    def forward(self, input: Tensor) -> Tensor:
        return self.finish(input, self.start(input))

    def start(self, input: Tensor) -> Tensor:
        """The first two convolutions: a map of the input's size without an activation, the low-level one of v3+."""
        return self.conv2(self.conv1(input))

    def finish(self, input: Tensor, features: Tensor) -> Tensor:
        """The third convolution of what `start` gave, and the shortcut."""
        return self.conv3(features, residual=None if self.skip is None else self.skip(input))


class AlignedXception(Backbone):
    """The modified aligned Xception: strided separable convolutions instead of pooling, BatchNorm after every 3×3.

    Args:
        name: "xception41", "xception65" or "xception71".
        output_stride: 8, 16 or 32.
        multi_grid: dilations of the last block's three convolutions, times those of the output stride.
        taps: names of the maps that are wanted.

    Raises:
        ValueError: another name or stride, other than three dilations.

    Chen, Zhu, Papandreou, Schroff & Adam, "Encoder-decoder with atrous separable convolution for semantic image
    segmentation", 2018, figure 4. Xception-41 and -71 are those of the authors' code.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     backbone = AlignedXception("xception65", output_stride=16)
        >>> sum(parameter.numel() for parameter in backbone.parameters())
        37867312
    """

    def __init__(
        self,
        name: str = "xception65",
        *,
        output_stride: int = 16,
        multi_grid: Sequence[int] | None = None,
        taps: tuple[str, ...] = ("out",),
    ) -> None:
        super().__init__(taps)
        entry, self.low_block, repeats = FLOWS[check_choice("name", name, tuple(FLOWS))]
        self.multi_grid = check_multi_grid(multi_grid)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False), _norm(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 1, 1, bias=False), _norm(64), nn.ReLU(),
        )  # fmt: skip
        widths = (64, *(width for width, _ in entry))
        self.entry = nn.Sequential(
            *(AlignedBlock(before, (after,) * 3, stride) for before, (after, stride) in zip(widths, entry))
        )
        self.middle = nn.Sequential(*(AlignedBlock(728, (728,) * 3, 1) for _ in range(repeats)))
        self.exit = nn.Sequential(
            AlignedBlock(728, (728, 1024, 1024), 2), AlignedBlock(1024, (1536, 1536, 2048), 1, shortcut=False)
        )
        self.channels = {"low": 256, "aux": 728, "out": 2048}
        _initialise(self)
        self.set_output_stride(output_stride)

    def set_output_stride(self, output_stride: int) -> None:
        self.output_stride = check_output_stride(output_stride)
        atrous = Atrous(self.output_stride // 2)
        blocks: list[Any] = [*self.entry, *self.middle, *self.exit]
        for block in blocks:
            dilation = atrous.dilation
            grid = self.multi_grid if block is blocks[-1] else (1, 1, 1)
            block.place(atrous.take(block.stride), [dilation * rate for rate in grid])

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Feature maps of images [B, 3, H, W], in TensorFlow's checkpoints on [-1, 1]."""
        features = self.stem(input)
        maps: dict[str, Tensor] = {}
        blocks: list[Any] = list(self.entry)
        for index, block in enumerate(blocks):
            inner = block.start(features)
            if index == self.low_block:
                maps |= self.tapped(low=inner)
            features = block.finish(features, inner)
        features = self.middle(features)
        maps |= self.tapped(aux=features)
        return maps | self.tapped(out=self.exit(features))


class PooledBlock(nn.Module):
    """Separable convolutions and a pooling by 2, beside a strided 1×1 convolution.

    Args:
        channels: of the input.
        widths: output channels of the convolutions.
        first_relu: whether the input goes through a ReLU.
    """

    def __init__(self, channels: int, widths: Sequence[int], first_relu: bool = True) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                _plain_separable(before, after, "relu" if first_relu or index else "none", "none")
                for index, (before, after) in enumerate(pairwise((channels, *widths)))
            )
        )
        self.pool = SameMaxPool2d()
        self.skip = nn.Sequential(nn.Conv2d(channels, widths[-1], 1, 2, bias=False), _keras_norm(widths[-1]))

    def forward(self, input: Tensor) -> Tensor:
        return self.pool(self.convs(input)) + self.skip(input)


class MiddleBlock(nn.Module):
    """Three separable convolutions, each after a ReLU, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (_plain_separable(channels, channels, "relu", "none") for _ in range(3))

    def forward(self, input: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(input)), residual=input)


class Xception(nn.Sequential):
    """The classifier of images of Chollet 2017, figure 5: 36 convolutions, 34 of them separable.

    Between depthwise and pointwise convolution it has neither norm nor activation, and its first two convolutions are
    not padded.

    Args:
        num_classes: ≥ 1.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = Xception()
        >>> sum(parameter.numel() for parameter in model.parameters())
        22855952
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, bias=False), _keras_norm(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, bias=False), _keras_norm(64), nn.ReLU(),
        )  # fmt: skip
        self.entry = nn.Sequential(
            PooledBlock(64, (128, 128), first_relu=False), PooledBlock(128, (256, 256)), PooledBlock(256, (728, 728))
        )
        self.middle = nn.Sequential(*(MiddleBlock(728) for _ in range(8)))
        self.exit = nn.Sequential(
            PooledBlock(728, (728, 1024)),
            _plain_separable(1024, 1536, "none", "relu"),
            _plain_separable(1536, 2048, "none", "relu"),
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(2048, whole_number("num_classes", num_classes, 1))
        _initialise(self)


def xception(*, num_classes: int = 1000) -> Xception:
    """The original Xception, a classifier of images.

    Args:
        num_classes: ≥ 1.

    Returns:
        a module from images [B, 3, H, W], H and W ≥ 71, on [-1, 1], to logits [B, num_classes].

    Raises:
        ValueError, TypeError: num_classes is no positive integer.

    Chollet, "Xception: deep learning with depthwise separable convolutions", 2017, figure 5.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     xception(num_classes=10)(torch.zeros(1, 3, 299, 299)).shape
        torch.Size([1, 10])
    """
    return Xception(num_classes)


def _plain_separable(channels: int, out: int, pre_activation: str, activation: str) -> AtrousSeparableConv2d:
    return AtrousSeparableConv2d(
        channels,
        out,
        depthwise_bias=False,
        depthwise_norm=False,
        depthwise_activation="none",
        pre_activation=pre_activation,
        norm=_keras_norm,
        activation=activation,
    )


def _initialise(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            # by inputs: a depthwise kernel has k² of them, and its outputs would be counted C times too many
            nn.init.kaiming_normal_(child.weight, mode="fan_in", nonlinearity="relu")
