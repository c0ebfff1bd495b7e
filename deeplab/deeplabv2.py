"""DeepLab v2: the sum of classifiers with different rates, over ResNet-101 or VGG-16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torchvision.models import ResNet101_Weights, VGG16_Weights

from densecrf_cuda.settings import check_choice, whole_number

from .backbone import Backbone
from .geometry import place
from .resnet import ResNet
from .segmentation import DeepLab
from .vgg import VGG16, VGGClassifier, classifier_conv, load_vgg

__all__ = ["deeplabv2"]

RATES = {"L": (6, 12, 18, 24), "S": (2, 4, 8, 12), "largefov": (12,)}  # at output stride 8


def deeplabv2(
    *,
    backbone: str = "resnet101",
    aspp: str = "L",
    num_classes: int = 21,
    output_stride: int = 8,
    atrous_rates: Sequence[int] | None = None,
    layout: str = "caffe",
    pool: int = 2,
    align_corners: bool = True,
    weights: ResNet101_Weights | VGG16_Weights | None = None,
) -> DeepLab:
    """DeepLab v2; `MultiScale` puts its three scales around it.

    Args:
        backbone: "resnet101", whose branches are one 3 × 3 convolution each, or "vgg16", whose are fc6, fc7 and fc8
            with 1024 channels.
        aspp: rates of the branches at output stride 8: "L" for 6, 12, 18, 24; "S" for 2, 4, 8, 12; "largefov" for one
            branch of rate 12.
        num_classes: ≥ 1, with the background.
        output_stride: 8, 16 or 32; rates are in proportion.
        atrous_rates: other rates at output stride 8, any number of them.
        layout: of the ResNet: "caffe", whose stages have their stride in the first 1 × 1 convolution, as the released
            models; "torch" is what torchvision's weights were trained with.
        pool: window of the poolings of VGG-16: 2, or 3 as in the released models.
        align_corners: of the bilinear resizing to the image: True as in Caffe.
        weights: torchvision's for images, downloaded; fc6 and fc7 of VGG-16 are decimated from its classifier.

    Returns:
        a `DeepLab` from images [B, 3, H, W] to logits [B, num_classes, H, W].

    Raises:
        ValueError, TypeError: an argument out of its range, or weights of another network.

    Chen, Papandreou, Kokkinos, Murphy & Yuille, "DeepLab: semantic image segmentation with deep convolutional nets,
    atrous convolution, and fully connected CRFs", 2016, sections 3 and 4.1, figures 4 and 7.

    Example:
        >>> import torch
        >>> import deeplab
        >>> with torch.device("meta"):
        ...     model = deeplab.deeplabv2()
        >>> sum(parameter.numel() for parameter in model.parameters())
        44048532
    """
    check_choice("backbone", backbone, ("resnet101", "vgg16"))
    num_classes = whole_number("num_classes", num_classes, 1)
    given = RATES[check_choice("aspp", aspp, tuple(RATES))] if atrous_rates is None else atrous_rates
    rates = tuple(whole_number("atrous_rates", rate, 1) for rate in given)
    if not rates:
        raise ValueError("atrous_rates must name at least one rate, got none")
    expected = ResNet101_Weights if backbone == "resnet101" else VGG16_Weights
    if weights is not None and not isinstance(weights, expected):
        raise ValueError(f"weights must be of {expected.__name__} for {backbone!r}, got {weights}")
    features: Backbone
    branches: list[nn.Module]
    if isinstance(weights, ResNet101_Weights) or backbone == "resnet101":
        features = ResNet("resnet101", layout=layout, weights=weights)
        branches = [_ResNetBranch(2048, num_classes, rate) for rate in rates]
    else:
        features = VGG16(pool=pool)
        classifiers = [VGGClassifier(num_classes, kernel=3, rate=rate, channels=1024) for rate in rates]
        if weights is not None:
            load_vgg(features, classifiers, weights)
        branches = list(classifiers)
    model = DeepLab(features, _SumOfBranches(branches), align_corners=align_corners)
    model.set_output_stride(output_stride)
    return model


class _SumOfBranches(nn.ModuleList):
    """The atrous spatial pyramid of v2: classifiers of the same map, summed."""

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Logits at the resolution of the map "out"."""
        first, *others = self
        logits = first(maps)
        for branch in others:
            logits = logits + branch(maps)
        return logits

    def set_output_stride(self, output_stride: int) -> None:
        """Rates in proportion to the resolution."""
        for branch in self:
            branch.set_output_stride(output_stride)  # type: ignore[operator]


class _ResNetBranch(nn.Module):
    """A 3 × 3 convolution to the classes, with its rate at output stride 8."""

    def __init__(self, in_channels: int, num_classes: int, rate: int) -> None:
        super().__init__()
        self.conv = classifier_conv(in_channels, num_classes, 3)
        self.rate = rate

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        return self.conv(maps["out"])

    def set_output_stride(self, output_stride: int) -> None:
        rate, rest = divmod(8 * self.rate, output_stride)
        if rest:
            raise ValueError(
                f"output_stride must leave whole rates, {self.rate} at output stride 8, got {output_stride}"
            )
        place(self.conv, 1, rate)
