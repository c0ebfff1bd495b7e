"""Pyramid, image pooling and decoder against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import image, randomised
from torch import Tensor, nn

from deeplab.heads import ASPP, ASPPSettings, DecoderHead, ImagePooling, PyramidHead

DOUBLE = torch.float64
SETTINGS = ASPPSettings(
    channels=8, rates=(2, 4), stride=16, separable=False, image_pooling=True, dropout=0.1, align_corners=True
)


def relu_norm(norm: nn.Module, x: Tensor) -> Tensor:
    return F.relu(norm(x))


def pyramid(aspp: ASPP, x: Tensor, rates: tuple[int, ...]) -> Tensor:
    """By functions: 1×1, dilated 3×3, the mean of the map."""
    convs, maps = aspp.convs, []
    for index, rate in enumerate((0, *rates)):
        conv, norm, _ = convs[index]
        maps.append(relu_norm(norm, F.conv2d(x, conv.weight, padding=rate, dilation=max(rate, 1))))
    _, conv, norm, _ = convs[-1]
    mean = relu_norm(norm, F.conv2d(x.mean((2, 3), keepdim=True), conv.weight))
    maps.append(mean.expand(-1, -1, *x.shape[2:]))
    conv, norm, _, _ = aspp.project
    return relu_norm(norm, F.conv2d(torch.cat(maps, 1), conv.weight))


def test_pyramid() -> None:
    aspp = randomised(ASPP(16, SETTINGS, nn.BatchNorm2d)).to(DOUBLE)
    x = image(2, 16, 9, 11, dtype=DOUBLE)
    torch.testing.assert_close(aspp(x), pyramid(aspp, x, (2, 4)))
    aspp.set_output_stride(8)
    torch.testing.assert_close(aspp(x), pyramid(aspp, x, (4, 8)))
    aspp.set_output_stride(32)
    torch.testing.assert_close(aspp(x), pyramid(aspp, x, (1, 2)))
    with pytest.raises(ValueError, match="output stride 64"):
        aspp.set_output_stride(64)


def test_separable_pyramid() -> None:
    """With kernels that are outer products, the same as the dense one where nothing stands between the two factors."""
    separable = randomised(ASPP(4, SETTINGS._replace(separable=True), nn.BatchNorm2d)).to(DOUBLE)
    x = image(2, 4, 9, 11, dtype=DOUBLE)
    conv, rate = separable.convs[2], 4
    depthwise = F.conv2d(x, conv.depthwise.weight, padding=rate, dilation=rate, groups=4)
    expected = relu_norm(conv.bn, F.conv2d(relu_norm(conv.depthwise_bn, depthwise), conv.pointwise.weight))
    torch.testing.assert_close(conv(x), expected)
    assert separable(x).shape == (2, 8, 9, 11)


def test_branches_that_are_left_out() -> None:
    one = ASPP(16, SETTINGS._replace(rates=(), image_pooling=False), nn.BatchNorm2d)
    assert len(one.convs) == 1 and one.project[0].in_channels == 8
    two = ASPP(16, SETTINGS._replace(rates=()), nn.BatchNorm2d)
    assert [type(branch) for branch in two.convs] == [nn.Sequential, ImagePooling]


def windows(x: Tensor, height: int, width: int) -> Tensor:
    return x.unfold(2, height, 1).unfold(3, width, 1).mean((-1, -2))


@pytest.mark.parametrize(("size", "window"), [((9, 12), (5, 7)), ((5, 7), (5, 7)), ((4, 9), (4, 7))])
def test_image_pooling_of_tensorflow(size: tuple[int, int], window: tuple[int, int]) -> None:
    """Means over windows of ⌊(crop - 1)/stride⌋ + 1, resized with aligned corners; of all of a smaller side."""
    aspp = randomised(ASPP(16, SETTINGS._replace(image_pooling=(65, 97)), nn.BatchNorm2d)).to(DOUBLE)
    pooling = aspp.convs[-1]
    x = image(2, 16, *size, dtype=DOUBLE)
    means = relu_norm(pooling[2], F.conv2d(windows(x, *window), pooling[1].weight))
    expected = F.interpolate(means, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(pooling(x), expected)
    if size == window:  # the size of training: the mean of the map
        whole = randomised(ASPP(16, SETTINGS, nn.BatchNorm2d)).to(DOUBLE)
        whole.load_state_dict(aspp.state_dict())
        torch.testing.assert_close(aspp(x), whole(x))


def test_image_pooling_follows_the_output_stride() -> None:
    aspp = randomised(ASPP(16, SETTINGS._replace(rates=(), image_pooling=(65, 97)), nn.BatchNorm2d)).to(DOUBLE)
    aspp.set_output_stride(8)
    x = image(1, 16, 12, 14, dtype=DOUBLE)
    assert aspp.convs[-1][0](x).shape[-2:] == (12 - 9 + 1, 14 - 13 + 1)


@pytest.mark.parametrize("extra_conv", [False, True])
def test_head_of_v3(extra_conv: bool) -> None:
    head = randomised(PyramidHead(16, 5, SETTINGS, nn.BatchNorm2d, extra_conv)).to(DOUBLE)
    x = image(2, 16, 9, 11, dtype=DOUBLE)
    expected = pyramid(head[0], x, (2, 4))
    if extra_conv:
        expected = relu_norm(head[2], F.conv2d(expected, head[1].weight, padding=1))
    torch.testing.assert_close(head({"out": x}), head[-1](expected))


@pytest.mark.parametrize("align_corners", [False, True])
def test_decoder(align_corners: bool) -> None:
    settings = SETTINGS._replace(align_corners=align_corners)
    head = randomised(DecoderHead({"low": 6, "out": 16}, 5, settings, nn.BatchNorm2d, 10, separable=False)).to(DOUBLE)
    low, x = image(2, 6, 33, 41, dtype=DOUBLE), image(2, 16, 9, 11, dtype=DOUBLE, seed=1)
    context = F.interpolate(pyramid(head.aspp, x, (2, 4)), (33, 41), mode="bilinear", align_corners=align_corners)
    details = relu_norm(head.project[1], F.conv2d(low, head.project[0].weight))
    assert details.shape[1] == 48
    features = torch.cat([context, details], 1)
    for conv, norm, _ in head.convs:
        features = relu_norm(norm, F.conv2d(features, conv.weight, padding=1))
    torch.testing.assert_close(head({"low": low, "out": x}), head.logits(features))
