"""MobileNetV2 and MobileNetV3-Large of torchvision as backbones, with dilations at any output stride."""

from __future__ import annotations

from collections.abc import Callable

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from densecrf_cuda.settings import check_choice

from .backbone import Backbone, check_output_stride
from .geometry import Atrous, place, same_padded

__all__ = ["MobileNet"]

LAYOUTS = ("torch", "tf")
# channels of the maps; "low" of torchvision's layout is the output of the block, TensorFlow's is inside of it
CHANNELS = {
    "mobilenet_v2": {"torch": 24, "tf": 144, "aux": 32, "out": 320},
    "mobilenet_v3_large": {"torch": 24, "tf": 72, "aux": 40, "out": 960},
}
LOW, AUX = 3, 4  # the last block at stride 4, and the first at stride 8, which torchvision's auxiliary head reads


class MobileNet(Backbone):
    """The layers of torchvision's `features` under their numbers, MobileNetV2 without its last, which classifies.

    Where a stage has lost its stride, its first 3×3 convolution keeps the dilation of the stage before, which leaves
    the kernels on the pixels where the strided network has them. Only torchvision's MobileNetV3 differs: with
    layout="torch" that first convolution has the dilation of its own stage, as its published weights need it.

    Args:
        name: "mobilenet_v2" or "mobilenet_v3_large".
        output_stride: 8, 16 or 32.
        layout: "torch" or "tf". The low-level map is the output of the last block at stride 4, or TensorFlow's: its
            depthwise convolution with norm and activation.
        norm: a function from channels to the norm after every convolution.
        tf_padding: whether convolutions with a stride have TensorFlow's padding, for even sizes (0, 1) and not (1, 1).
        weights: torchvision's, of its classifier of images, which are downloaded.
        taps: names of the maps that are wanted.

    Raises:
        ValueError: an argument out of its range.

    Sandler, Howard, Zhu, Zhmoginov & Chen, "MobileNetV2: inverted residuals and linear bottlenecks", 2018, section 6.3.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     backbone = MobileNet("mobilenet_v2", output_stride=8)
        ...     backbone(torch.zeros(1, 3, 65, 65))["out"].shape
        torch.Size([1, 320, 9, 9])
    """

    def __init__(
        self,
        name: str = "mobilenet_v2",
        *,
        output_stride: int = 16,
        layout: str = "tf",
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        tf_padding: bool = False,
        weights: WeightsEnum | None = None,
        taps: tuple[str, ...] = ("out",),
    ) -> None:
        super().__init__(taps)
        channels = CHANNELS[check_choice("name", name, tuple(CHANNELS))]
        self.layout = check_choice("layout", layout, LAYOUTS)
        network = getattr(torchvision.models, name)(weights=weights, norm_layer=norm)
        layers = network.features[:-1] if name == "mobilenet_v2" else network.features
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)
        if layout == "tf" and "low" in taps:
            self.add_module(str(LOW), TappedResidual(layers[LOW]))
        # of every spatial convolution, before any output stride is set
        self.strides = [conv.stride[0] for _, conv in self._spatial()]
        for name_of_conv, conv in self._spatial() if tf_padding else []:
            if conv.stride[0] > 1:
                parent, _, key = name_of_conv.rpartition(".")
                setattr(self.get_submodule(parent), key, same_padded(conv))
        self.own_dilation = name == "mobilenet_v3_large" and layout == "torch"
        self.channels = {"low": channels[layout], "aux": channels["aux"], "out": channels["out"]}
        self.set_output_stride(output_stride)

    def _spatial(self) -> list[tuple[str, nn.Conv2d]]:
        """Convolutions of more than 1×1, by name."""
        modules = self.named_modules()
        return [(name, conv) for name, conv in modules if isinstance(conv, nn.Conv2d) and conv.kernel_size != (1, 1)]

    def set_output_stride(self, output_stride: int) -> None:
        self.output_stride = check_output_stride(output_stride)
        atrous = Atrous(self.output_stride)
        for (_, conv), wanted in zip(self._spatial(), self.strides):
            before = atrous.dilation
            stride = atrous.take(wanted)
            place(conv, stride, atrous.dilation if self.own_dilation else before)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Feature maps of images [B, 3, H, W]."""
        features = input
        maps: dict[str, Tensor] = {}
        for index, layer in enumerate(self.children()):
            if isinstance(layer, TappedResidual):
                features, low = layer(features)
                maps |= self.tapped(low=low)
            else:
                features = layer(features)
                if index == LOW:
                    maps |= self.tapped(low=features)
            if index == AUX:
                maps |= self.tapped(aux=features)
        return maps | self.tapped(out=features)


class TappedResidual(nn.Module):
    """An inverted residual that also gives what its depthwise convolution, norm and activation do, by its own keys.

    Args:
        block: torchvision's, which adds its input and has no squeeze-and-excitation.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        ((name, layers),) = block.named_children()
        self.add_module(name, _Tapped(*layers.children()))

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Output and low-level map."""
        (layers,) = self.children()
        output, low = layers(input)
        return input + output, low


class _Tapped(nn.Sequential):
    """Expansion, depthwise convolution, projection; a forward of its own tells `fuse` that the second is read."""

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        expansion, depthwise, *projection = self
        low = depthwise(expansion(input))
        output = low
        for layer in projection:
            output = layer(output)
        return output, low
