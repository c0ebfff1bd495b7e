"""ResNet-50 and -101 of torchvision with the strides and dilations of PyTorch's, TensorFlow's and Caffe's DeepLab."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.resnet import Bottleneck

from densecrf_cuda.settings import check_choice, whole_number

from .backbone import Backbone, check_multi_grid, check_output_stride
from .geometry import Atrous, SameMaxPool2d, place

__all__ = ["LAYOUTS", "ResNet"]

LAYOUTS = ("torch", "tf", "caffe")
NAMES = ("resnet50", "resnet101", "resnet50_beta", "resnet101_beta")
Norm = Callable[[int], nn.Module]
_Module = TypeVar("_Module", bound=nn.Module)


class ResNet(Backbone):
    """torchvision's ResNet, its parameters under their names there, with atrous convolution.

    The same kernels have been given strides and dilations in three ways, which no checkpoint tells apart:

    | layout | stride of a stage | dilation where a stage has lost its stride |
    |---|---|---|
    | "torch" | 3×3 convolution of its first unit | the first unit keeps that of the stage before |
    | "tf" | 3×3 convolution of its last unit; the last stage has none | from the next stage on |
    | "caffe" | 1×1 convolution of its first unit | from its first unit on |

    Args:
        name: "resnet50", "resnet101", or with "_beta", whose 7×7 convolution is three of 3×3.
        output_stride: 8, 16 or 32, with more stages up to 4 · 2^(cascade - 1).
        layout: "torch", "tf" or "caffe".
        multi_grid: dilations of the three units of the fourth and every further stage, times those of the output
            stride.
        cascade: number of stages: 4, or 5 to 7, the further ones being like the fourth.
        norm: a function from channels to the norm after every convolution.
        tf_padding: whether the pooling has TensorFlow's padding, which for even sizes is (0, 1) and not (1, 1).
        weights: torchvision's, of its classifier of images, which are downloaded; not for "_beta".
        taps: names of the maps that are wanted.

    Raises:
        ValueError: an argument out of its range.

    Chen, Papandreou, Schroff & Adam, "Rethinking atrous convolution for semantic image segmentation", 2017, sections
    3.1 and 3.2 and figure 3.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     backbone = ResNet("resnet50", output_stride=8)
        ...     backbone(torch.zeros(1, 3, 65, 65))["out"].shape
        torch.Size([1, 2048, 9, 9])
    """

    layer1: nn.Sequential

    def __init__(
        self,
        name: str = "resnet101",
        *,
        output_stride: int = 16,
        layout: str = "torch",
        multi_grid: Sequence[int] | None = None,
        cascade: int = 4,
        norm: Norm = nn.BatchNorm2d,
        tf_padding: bool = False,
        weights: WeightsEnum | None = None,
        taps: tuple[str, ...] = ("out",),
    ) -> None:
        super().__init__(taps)
        depth, _, beta = check_choice("name", name, NAMES).partition("_")
        self.layout = check_choice("layout", layout, LAYOUTS)
        self.multi_grid = check_multi_grid(multi_grid)
        if beta and weights is not None:
            raise ValueError(f"weights of torchvision are of another network than {name!r}, got {weights}")
        network = getattr(torchvision.models, depth)(weights=weights, norm_layer=norm)
        self.conv1, self.bn1, self.relu = network.conv1, network.bn1, network.relu
        self.maxpool = SameMaxPool2d() if tf_padding else nn.MaxPool2d(3, 2, 1, ceil_mode=layout == "caffe")
        self.stages = [f"layer{index + 1}" for index in range(_check_cascade(cascade))]
        for stage in self.stages:
            units = getattr(network, stage, None)
            setattr(self, stage, _further_stage(norm) if units is None else units)
        if beta:
            self.conv1, self.bn1 = _beta_stem(norm), norm(128)
            skip = nn.Sequential(nn.Conv2d(128, 256, 1, bias=False), norm(256))
            self.layer1[0] = _initialised(Bottleneck(128, 64, downsample=skip, norm_layer=norm))
        self.channels = {"low": 256, "aux": 1024, "out": 2048}
        self.set_output_stride(output_stride)

    def set_output_stride(self, output_stride: int) -> None:
        self.output_stride = check_output_stride(output_stride, 4 * 2 ** (len(self.stages) - 1))
        atrous = Atrous(self.output_stride // 4)
        for index, name in enumerate(self.stages):
            units = self._units(name)
            strided = self._strided_unit(index, len(units))
            grid = self.multi_grid if index >= 3 else (1,) * len(units)
            for position, (unit, rate) in enumerate(zip(units, grid)):
                before = atrous.dilation
                stride = atrous.take(2 if position == strided else 1)
                if self.layout == "caffe":
                    _place(unit, stride, 1, atrous.dilation * rate)
                else:
                    _place(unit, 1, stride, before * rate)

    def _units(self, stage: str) -> list[Any]:
        return list(self.get_submodule(stage).children())

    def _strided_unit(self, index: int, units: int) -> int | None:
        if self.layout == "tf":
            return units - 1 if index + 1 < len(self.stages) else None
        return 0 if index else None

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Feature maps of images [B, 3, H, W]."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(input))))
        features, low = self._first_stage(features)
        maps = self.tapped(low=low)
        for name in self.stages[1:]:
            features = getattr(self, name)(features)
            if name == "layer3":
                maps |= self.tapped(aux=features)
        return maps | self.tapped(out=features)

    def _first_stage(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Output of layer1 and the low-level map: that output, or TensorFlow's, which is taken before its stride.

        TensorFlow's is the second unit's last convolution and norm, before the shortcut is added.
        """
        if self.layout != "tf" or "low" not in self.taps:
            features = self.layer1(features)
            return features, features
        first, second, *rest = self._units("layer1")
        features = first(features)
        inner = second.relu(second.bn1(second.conv1(features)))
        inner = second.relu(second.bn2(second.conv2(inner)))
        low = second.bn3(second.conv3(inner))
        features = second.relu(low + features)
        for unit in rest:
            features = unit(features)
        return features, low


def _check_cascade(cascade: int) -> int:
    if not 4 <= whole_number("cascade", cascade, 4) <= 7:
        raise ValueError(f"cascade must be 4 to 7, got {cascade}")
    return cascade


def _place(unit: Any, first: int, second: int, dilation: int) -> None:
    """Strides of the first 1×1 and of the 3×3 convolution of a unit, dilation of the latter."""
    place(unit.conv1, first, 1)
    place(unit.conv2, second, dilation)
    if isinstance(unit.downsample, nn.Sequential):
        projection: Any = unit.downsample[0]
        place(projection, first * second, 1)
    else:
        unit.downsample = nn.MaxPool2d(1, first * second) if first * second > 1 else None


def _beta_stem(norm: Norm) -> nn.Sequential:
    """Three 3×3 convolutions, without norm and activation of the last, which follow as `bn1` and `relu`."""
    layers: list[nn.Module] = []
    for channels, stride in ((3, 2), (64, 1)):
        layers += [nn.Conv2d(channels, 64, 3, stride, 1, bias=False), norm(64), nn.ReLU(inplace=True)]
    return _initialised(nn.Sequential(*layers, nn.Conv2d(64, 128, 3, 1, 1, bias=False)))


def _further_stage(norm: Norm) -> nn.Sequential:
    return _initialised(nn.Sequential(*(Bottleneck(2048, 512, norm_layer=norm) for _ in range(3))))


def _initialised(module: _Module) -> _Module:
    """As torchvision initialises its ResNets."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
    return module
