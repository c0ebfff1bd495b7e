"""Heads: atrous spatial pyramid pooling with image pooling, and the decoder of v3+."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densecrf_cuda import AtrousSeparableConv2d

from .geometry import place

__all__ = ["ASPP", "ASPPSettings", "CascadeHead", "DecoderHead", "ImagePooling", "PyramidHead", "conv3x3", "conv_relu"]

Norm = Callable[[int], nn.Module]
Pooling = bool | tuple[int, int]


def conv_relu(channels: int, out: int, norm: Norm, kernel_size: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, norm, ReLU, in the keys 0, 1, 2 of torchvision."""
    conv = nn.Conv2d(channels, out, kernel_size, bias=False)
    place(conv, 1, dilation)
    return nn.Sequential(conv, norm(out), nn.ReLU())


def conv3x3(channels: int, out: int, norm: Norm, separable: bool, dilation: int = 1) -> nn.Module:
    """The same with 3×3, or a separable one with norm and ReLU after both of its convolutions."""
    if separable:
        return AtrousSeparableConv2d(channels, out, dilation=dilation, depthwise_norm=norm, norm=norm)
    return conv_relu(channels, out, norm, 3, dilation)


def resize(input: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """Bilinear, to the height and width of another map."""
    return F.interpolate(input, like.shape[-2:], mode="bilinear", align_corners=align_corners)


class ASPPSettings(NamedTuple):
    """What a pyramid is made of.

    Args:
        channels: of every branch and of the result.
        rates: dilations of the 3×3 branches at `stride`; none: the 1×1 branch and image pooling alone.
        stride: the output stride for which the rates are.
        separable: whether the 3×3 branches are separable.
        image_pooling: True for the mean of the whole map; the size (H, W) of TensorFlow's training images for means
            over windows of that size, which other sizes than that one need to give TensorFlow's results; False: none.
        dropout: the probability after the projection.
        align_corners: of the resizing of windows' means.
    """

    channels: int
    rates: tuple[int, ...]
    stride: int
    separable: bool
    image_pooling: Pooling
    dropout: float
    align_corners: bool


class ImagePooling(nn.Sequential):
    """The mean over the map, or over a window at every pixel, a 1×1 convolution, and the map's size again."""

    def __init__(self, channels: int, out: int, norm: Norm, crop: tuple[int, int] | None, align_corners: bool) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *conv_relu(channels, out, norm))
        self.crop, self.align_corners = crop, align_corners

    def set_output_stride(self, output_stride: int) -> None:
        if self.crop is not None:
            self[0] = WindowMean(*((size - 1) // output_stride + 1 for size in self.crop))

    def forward(self, input: Tensor) -> Tensor:
        return resize(super().forward(input), input, self.align_corners)


class WindowMean(nn.Module):
    """The mean over every window that lies in the map; over the whole side where the map is smaller."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(input, (min(self.height, input.shape[-2]), min(self.width, input.shape[-1])), stride=1)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1×1 convolution, 3×3 ones of several dilations, image pooling, a projection.

    Keys of the state dict are torchvision's: `convs.0` is the 1×1, then the dilated, at last image pooling; `project`.

    Args:
        channels: of the input.
        settings: of the pyramid.
        norm: a function from channels to the norm after every convolution.

    Chen, Papandreou, Schroff & Adam, "Rethinking atrous convolution for semantic image segmentation", 2017, section
    3.3 and figure 5.
    """

    def __init__(self, channels: int, settings: ASPPSettings, norm: Norm) -> None:
        super().__init__()
        self.settings, out = settings, settings.channels
        branches: list[nn.Module] = [conv_relu(channels, out, norm)]
        branches += [conv3x3(channels, out, norm, settings.separable) for _ in settings.rates]
        if settings.image_pooling is not False:
            crop = None if settings.image_pooling is True else settings.image_pooling
            branches.append(ImagePooling(channels, out, norm, crop, settings.align_corners))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(*conv_relu(len(branches) * out, out, norm), nn.Dropout(settings.dropout))
        self.set_output_stride(settings.stride)

    def set_output_stride(self, output_stride: int) -> None:
        """Scale the dilations with the map: a stride half as large doubles them."""
        for branch, rate in zip(self.convs[1:], self.rates(output_stride)):
            conv: Any = branch.get_submodule("depthwise" if self.settings.separable else "0")
            place(conv, 1, rate)
        if isinstance(self.convs[-1], ImagePooling):
            self.convs[-1].set_output_stride(output_stride)

    def rates(self, output_stride: int) -> tuple[int, ...]:
        """The dilations at an output stride."""
        scaled = [rate * self.settings.stride for rate in self.settings.rates]
        if any(rate % output_stride for rate in scaled):
            raise ValueError(
                f"atrous_rates {self.settings.rates} of output stride {self.settings.stride} must be whole numbers "
                f"at output stride {output_stride} too"
            )
        return tuple(rate // output_stride for rate in scaled)

    def forward(self, input: Tensor) -> Tensor:
        return self.project(torch.cat([branch(input) for branch in self.convs], 1))


class PyramidHead(nn.Sequential):
    """The head of v3: the pyramid and a 1×1 convolution, with torchvision's 3×3 convolution between them or without."""

    def __init__(self, channels: int, num_classes: int, settings: ASPPSettings, norm: Norm, extra_conv: bool) -> None:
        between = conv_relu(settings.channels, settings.channels, norm, 3) if extra_conv else ()
        super().__init__(ASPP(channels, settings, norm), *between, nn.Conv2d(settings.channels, num_classes, 1))

    def set_output_stride(self, output_stride: int) -> None:
        aspp: Any = self[0]
        aspp.set_output_stride(output_stride)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return super().forward(features["out"])


class CascadeHead(nn.Sequential):
    """The head of the cascaded v3: a 1×1 convolution, the context being in the backbone."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(nn.Conv2d(channels, num_classes, 1))

    def set_output_stride(self, output_stride: int) -> None:
        """Nothing of it depends on the stride."""

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return super().forward(features["out"])


class DecoderHead(nn.Module):
    """The head of v3+: the pyramid at the size of the low-level map, beside 48 channels of it, two 3×3 convolutions.

    Args:
        channels: of "low" and "out".
        num_classes: of the logits.
        settings: of the pyramid.
        norm: a function from channels to the norm after every convolution.
        decoder_channels: of the 3×3 convolutions.
        separable: whether they are separable.

    Chen, Zhu, Papandreou, Schroff & Adam, "Encoder-decoder with atrous separable convolution for semantic image
    segmentation", 2018, figure 2 and section 4.1.
    """

    def __init__(
        self,
        channels: dict[str, int],
        num_classes: int,
        settings: ASPPSettings,
        norm: Norm,
        decoder_channels: int,
        separable: bool,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(channels["out"], settings, norm)
        self.project = conv_relu(channels["low"], 48, norm)
        self.convs = nn.Sequential(
            conv3x3(settings.channels + 48, decoder_channels, norm, separable),
            conv3x3(decoder_channels, decoder_channels, norm, separable),
        )
        self.logits = nn.Conv2d(decoder_channels, num_classes, 1)
        self.align_corners = settings.align_corners

    def set_output_stride(self, output_stride: int) -> None:
        self.aspp.set_output_stride(output_stride)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        low = self.project(features["low"])
        context = resize(self.aspp(features["out"]), low, self.align_corners)
        return self.logits(self.convs(torch.cat([context, low], 1)))
