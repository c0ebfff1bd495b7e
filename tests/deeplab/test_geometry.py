"""Where kernels are put: strides and dilations of the layouts, output strides, TensorFlow's padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import distance, image, randomised
from torch import Tensor, nn

import deeplab
from deeplab.backbone import Backbone
from deeplab.geometry import SameConv2d, SameMaxPool2d, same_padded
from deeplab.mobilenet import MobileNet
from deeplab.resnet import ResNet
from deeplab.xception import AlignedXception

DOUBLE = torch.float64
ROUNDING = 1e-3  # 100 layers, each of which adds up to 5000 products: 100 · √5000 · 2⁻²⁴ = 4e-4, where errors add up


# Everything padded by d(k - 1)/2 and each stride turned into a dilation of what follows: the dense network's map at
# every 2nd or 4th pixel is the strided network's. torchvision's MobileNetV3 is the one that does not do so.
@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (AlignedXception, {"name": "xception41", "multi_grid": (1, 2, 4)}),
        (ResNet, {"name": "resnet50", "layout": "torch"}),
        (ResNet, {"name": "resnet50_beta", "layout": "tf", "multi_grid": (1, 2, 4)}),
        (ResNet, {"name": "resnet50", "layout": "caffe", "multi_grid": (1, 2, 1)}),
        (MobileNet, {"name": "mobilenet_v2"}),
        (MobileNet, {"name": "mobilenet_v3_large"}),
    ],
)
def test_dense_features_are_the_strided_ones(network: type[Backbone], settings: Any) -> None:
    model = randomised(network(output_stride=32, taps=("low", "aux", "out"), **settings))
    # squeeze-and-excitation takes the mean of its map, which is not that of every 4th pixel
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "SqueezeExcitation":
                setattr(module, name, nn.Identity())
    for size, output_stride in (((49, 65), 16), ((48, 54), 8)):
        x, step = image(1, 3, *size), 32 // output_stride
        with torch.no_grad():
            model.set_output_stride(32)
            strided = model(x)
            model.set_output_stride(output_stride)
            dense = model(x)
            if settings.get("layout") != "caffe":  # whose pooling rounds up once more
                assert dense["out"].shape[-2:] == tuple(-(-side // output_stride) for side in size)
            # the same products, added in an order that depends on the algorithm of the convolution
            assert distance(dense["out"][..., ::step, ::step], strided["out"]) < ROUNDING
            assert distance(dense["low"], strided["low"]) < ROUNDING


def test_dilation_of_torchvisions_mobilenet_v3() -> None:
    """The first convolution of its dilated stage is dilated already, at stride 16 by 2."""
    model = MobileNet("mobilenet_v3_large", layout="torch", output_stride=16)
    dilations = [m.dilation[0] for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels]
    assert dilations == [1] * 12 + [2, 2, 2]
    model = MobileNet("mobilenet_v3_large", layout="tf", output_stride=16)
    dilations = [m.dilation[0] for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels]
    assert dilations == [1] * 13 + [2, 2]


# (stride, dilation) of the units of the four stages at output stride 16 or 8, written from the papers' code:
# TensorFlow's stacks units until the stride is reached and multiplies rates from then on, Caffe's prototxts of
# DeepLab v2 have dilation 2 in res4 and 4 in res5 at output stride 8.
ONE, TWO = (1, 1), (2, 1)
PLACED: dict[tuple[str, int], list[list[tuple[int, int]]]] = {
    ("tf", 16): [[ONE, ONE, TWO], [ONE] * 3 + [TWO], [ONE] * 6, [(1, 2), (1, 4), (1, 8)]],
    ("tf", 8): [[ONE, ONE, TWO], [ONE] * 4, [(1, 2)] * 6, [(1, 4), (1, 8), (1, 16)]],
    ("caffe", 8): [[ONE] * 3, [TWO] + [ONE] * 3, [(1, 2)] * 6, [(1, 4), (1, 8), (1, 16)]],
    ("torch", 8): [[ONE] * 3, [TWO] + [ONE] * 3, [ONE] + [(1, 2)] * 5, [(1, 2), (1, 8), (1, 16)]],
}


def forward(model: ResNet, placed: list[list[tuple[int, int]]], strided: int, x: Tensor) -> Tensor:
    """A ResNet by functions, the `strided`-th convolution of a unit having its stride."""

    def conv_norm(conv: Any, norm: Any, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        padding = dilation * (conv.weight.shape[-1] // 2)
        x = F.conv2d(x, conv.weight, None, stride, padding, dilation)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0, norm.eps)

    x = F.relu(conv_norm(model.conv1, model.bn1, x, 2))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, units in zip((model.layer1, model.layer2, model.layer3, model.layer4), placed):
        for unit, (stride, dilation) in zip(stage, units):
            strides = [stride if index == strided else 1 for index in (1, 2)]
            y = F.relu(conv_norm(unit.conv1, unit.bn1, x, strides[0]))
            y = F.relu(conv_norm(unit.conv2, unit.bn2, y, strides[1], dilation))
            y = conv_norm(unit.conv3, unit.bn3, y)
            projected = isinstance(unit.downsample, nn.Sequential)
            x = F.relu(y + (conv_norm(*unit.downsample, x, stride) if projected else x[..., ::stride, ::stride]))
    return x


@pytest.mark.parametrize(("layout", "output_stride"), PLACED)
def test_layouts_of_resnet(layout: str, output_stride: int) -> None:
    model = ResNet("resnet50", layout=layout, output_stride=output_stride, multi_grid=(1, 2, 4))
    randomised(model)
    x = image(1, 3, 49, 65)
    with torch.no_grad():
        expected = forward(model, PLACED[layout, output_stride], 1 if layout == "caffe" else 2, x)
        assert distance(model(x)["out"], expected) < ROUNDING


def test_low_level_map_of_tensorflow() -> None:
    """Of ResNet: the second unit's last norm, before the shortcut; taking it leaves the other maps as they are."""
    model = randomised(ResNet("resnet50", layout="tf", output_stride=16))
    seen: list[Tensor] = []
    model.layer1[1].bn3.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    x = image(1, 3, 65, 65)
    with torch.no_grad():
        expected = model(x)["out"]
        model.taps = ("low", "out")
        maps = model(x)
    assert torch.equal(maps["low"], seen[0]) and maps["low"].min() < 0
    assert torch.equal(maps["out"], expected)


@pytest.mark.parametrize(("name", "channels"), [("mobilenet_v2", 144), ("mobilenet_v3_large", 72)])
def test_low_level_map_of_mobilenet(name: str, channels: int) -> None:
    plain, model = randomised(MobileNet(name, layout="tf")), MobileNet(name, layout="tf", taps=("low", "out")).eval()
    model.load_state_dict(plain.state_dict())
    seen: list[Tensor] = []
    layers = next(plain.get_submodule("3").children())
    layers[1].register_forward_hook(lambda module, args, output: seen.append(output))
    x = image(1, 3, 65, 65)
    with torch.no_grad():
        expected = plain(x)["out"]
        maps = model(x)
    assert torch.equal(maps["low"], seen[0]) and maps["low"].shape == (1, channels, 17, 17)
    assert torch.equal(maps["out"], expected)


@pytest.mark.parametrize("sizes", [((64, 86), (1, 1)), ((65, 87), (0, 0)), ((64, 87), (1, 0))])
def test_padding_of_tensorflow(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """For a 3×3 kernel at stride 2, (0, 1) where the size is even, (1, 1) where it is odd."""
    (height, width), even = sizes
    x = image(2, 4, height, width, dtype=DOUBLE)
    conv = nn.Conv2d(4, 6, 3, 2, 1, dtype=DOUBLE)
    padding = (1 - even[1], 1, 1 - even[0], 1)
    same = same_padded(conv)
    assert same.weight is conv.weight and same.bias is conv.bias
    torch.testing.assert_close(same(x), F.conv2d(F.pad(x, padding), conv.weight, conv.bias, 2))
    pooled = F.max_pool2d(F.pad(x, padding, value=-1e9), 3, 2)
    assert torch.equal(SameMaxPool2d()(x), pooled)
    assert same(x).shape[-2:] == pooled.shape[-2:] == (-(-height // 2), -(-width // 2))


def test_padding_of_tensorflow_with_a_dilation() -> None:
    """At stride 1 it is d(k - 1)/2 on every side."""
    x = image(1, 4, 20, 21, dtype=DOUBLE)
    conv = SameConv2d(4, 4, 3, dilation=3, groups=4, dtype=DOUBLE)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, 1, 3, 3, 4))


def test_which_backbones_have_the_padding_of_tensorflow() -> None:
    """Xception pads explicitly, so only MobileNets and the pooling of ResNets differ, and only for even sizes."""
    even, odd = image(1, 3, 64, 64), image(1, 3, 65, 65)
    for backbone in ("resnet50_beta", "mobilenet_v2", "mobilenet_v3_large"):
        model = randomised(deeplab.deeplabv3(backbone=backbone, layout="tf"))
        other = deeplab.deeplabv3(backbone=backbone, layout="tf", tf_padding=False).eval()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert distance(model(even), other(even)) > 0.01
            assert distance(model(odd), other(odd)) < 1e-5  # the same sums in float32
