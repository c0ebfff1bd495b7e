"""Parameters and multiply-adds of every variant, against what the papers and torchvision publish."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import on_meta
from torchvision import models

import deeplab
from deeplab.counting import count
from densecrf_cuda import AtrousSeparableConv2d

WIDE = (1025, 2049)
V3, V3PLUS = deeplab.deeplabv3, deeplab.deeplabv3plus


def v3(backbone: str, **settings: Any) -> tuple[Any, dict[str, Any]]:
    return V3, {"backbone": backbone, **settings}


def v3plus(backbone: str, **settings: Any) -> tuple[Any, dict[str, Any]]:
    return V3PLUS, {"backbone": backbone, **settings}


# Parameters, and 10⁹ multiply-adds at a size, to the digits given. Parameters of DeepLab v3 with ResNet-101 (58.16 M)
# and MobileNetV2 (2.11 M) are published by TensorFlow, as are multiply-adds of all Xceptions and the ResNet-101, which
# are by 0.12 to 0.24 · 10⁹ higher for element-wise operations, and by what space-to-batch rounds up.
EXPECTED = [
    (v3("xception65", output_stride=16), 53_407_813, 513, 64.920),
    (v3("xception65", output_stride=8), 53_407_813, 513, 227.040),
    (v3plus("xception65", separable=False), 54_711_461, 513, 86.679),
    (v3plus("xception65", separable=False, output_stride=8), 54_711_461, 513, 248.782),
    (v3plus("xception65"), 41_055_413, 513, 54.035),
    (v3plus("xception65", output_stride=8), 41_055_413, 513, 176.852),
    (v3plus("xception65", num_classes=19), 41_054_899, WIDE, 418.376),
    (v3("resnet101_beta"), 58_164_437, 513, 76.052),
    (v3("resnet101_beta", output_stride=8), 58_164_437, 513, 252.252),
    (v3("resnet101_beta", output_stride=32), 58_164_437, 513, 51.407),
    (v3plus("resnet101_beta", separable=False), 59_468_085, 513, 97.811),
    (v3("resnet50_beta"), 39_172_309, 513, 55.427),
    (v3plus("resnet50_beta", separable=False), 40_475_957, 513, 77.186),
    (v3plus("resnet50_beta"), 26_819_909, 513, 44.542),
    (v3("resnet50", layout="tf"), 39_048_533, 513, 48.289),
    (v3plus("resnet50", layout="tf", separable=False), 40_352_181, 513, 70.048),
    (v3plus("resnet50", layout="tf"), 26_696_133, 513, 37.404),
    (v3("mobilenet_v2"), 2_113_557, 513, 2.741),
    (v3("mobilenet_v2", num_classes=19), 2_113_043, WIDE, 21.233),
    (v3("resnet50", aux=True), 42_004_074, 513, 178.644),
    (v3("resnet101", aux=True), 60_996_202, 513, 258.665),
    (v3("mobilenet_v3_large", aux=True), 11_029_328, 513, 10.448),
]


@pytest.mark.parametrize(("model", "parameters", "size", "billions"), EXPECTED)
def test_published(model: tuple[Any, dict[str, Any]], parameters: int, size: Any, billions: float) -> None:
    counts = count(on_meta(model[0], **model[1]), size)
    assert counts.parameters == counts.trainable == parameters
    assert round(counts.multiply_adds / 1e9, 3) == billions


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("resnet50", "DeepLabV3_ResNet50_Weights"),
        ("resnet101", "DeepLabV3_ResNet101_Weights"),
        ("mobilenet_v3_large", "DeepLabV3_MobileNet_V3_Large_Weights"),
    ],
)
def test_what_torchvision_publishes(backbone: str, name: str) -> None:
    meta = models.get_weight(f"{name}.COCO_WITH_VOC_LABELS_V1").meta
    counts = count(on_meta(V3, backbone=backbone, aux=True), 520)
    assert counts.parameters == meta["num_params"]
    assert round(counts.multiply_adds / 1e9, 3) == meta["_ops"]


# Without a published number: sums of k·k·C·O/groups + 2·O over the layers of the papers' tables, and what other code's
# variants have: DeepLab v3 on MobileNetV2 with torchvision's head.
@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (v3("resnet50"), 39_638_869),
        (v3("resnet101"), 58_630_997),
        (v3("mobilenet_v3_large"), 11_025_477),
        (v3("mobilenet_v2", layout="torch"), 5_113_877),
        (v3plus("resnet50", separable=False), 40_352_181),
    ],
)
def test_parameters(model: tuple[Any, dict[str, Any]], parameters: int) -> None:
    assert count(on_meta(model[0], **model[1]), 65).parameters == parameters


def bottleneck(channels: int, width: int, out: int) -> int:
    """Parameters of a ResNet's unit without a projection."""
    return channels * width + 9 * width * width + width * out + 2 * (2 * width + out)


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "resnet50_beta", "resnet101_beta"])
@pytest.mark.parametrize("cascade", [4, 5, 6, 7])
def test_parameters_of_a_cascade(backbone: str, cascade: int) -> None:
    """Every block after the fourth is three more of its units; the head is a 1×1 convolution of 2048 channels."""
    depth = backbone.split("_")[0]
    with torch.device("meta"):
        classifier = models.get_model(depth)
    expected = sum(p.numel() for p in classifier.parameters()) - 2048 * 1000 - 1000
    if backbone.endswith("_beta"):  # three 3×3 convolutions for one of 7×7, 128 channels for 64 into the first unit
        stem = 3 * 64 * 9 + 64 * 64 * 9 + 64 * 128 * 9 + 2 * (64 + 64 + 128)
        expected += stem - (3 * 64 * 49 + 2 * 64) + 64 * (64 + 256)
    expected += 3 * (cascade - 4) * bottleneck(2048, 512, 2048) + 2048 * 21 + 21
    model = on_meta(V3, backbone=backbone, cascade=cascade)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_original_xception() -> None:
    model = on_meta(deeplab.xception)
    assert sum(p.numel() for p in model.parameters()) == 22_855_952  # as published with Keras
    assert sum(isinstance(module, AtrousSeparableConv2d) for module in model.modules()) == 34
    assert model(torch.zeros(2, 3, 299, 299, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize(("name", "layers"), [("xception41", 41), ("xception65", 65), ("xception71", 71)])
def test_layers_of_aligned_xception(name: str, layers: int) -> None:
    """Counted as in its name: 3×3 convolutions and the classifier of images, two of the stem's being dense."""
    backbone = on_meta(V3, backbone=name).get_submodule("backbone")
    separable = sum(isinstance(module, AtrousSeparableConv2d) for module in backbone.modules())
    assert separable + 2 == {"xception41": 41, "xception65": 65, "xception71": 71}[name] == layers


def test_separable_convolutions_of_v3plus() -> None:
    """63 in the body of Xception-65, 3 in the pyramid, 2 in the decoder."""
    model = on_meta(V3PLUS)
    assert sum(isinstance(module, AtrousSeparableConv2d) for module in model.modules()) == 68


@pytest.mark.parametrize(
    ("backbone", "parameters", "keys", "buffers"),
    [("resnet50", 42_004_074, 370, 57_277), ("resnet101", 60_996_202, 676, 109_552)],
)
def test_size_of_state_dict(backbone: str, parameters: int, keys: int, buffers: int) -> None:
    model = on_meta(V3, backbone=backbone, aux=True)
    assert len(model.state_dict()) == keys
    assert sum(buffer.numel() for buffer in model.buffers()) == buffers
