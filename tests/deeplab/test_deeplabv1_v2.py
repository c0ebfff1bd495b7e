"""DeepLab v1 and v2: exact counts, shapes and receptive fields, and outputs against convolutions written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
import deeplab  # noqa: E402
from deeplab import vgg  # noqa: E402
from deeplab.backbone import Backbone  # noqa: E402
from deeplab.vgg import VGG16, VGGClassifier  # noqa: E402

VGG_CONVOLUTIONS = 14_714_688


def on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return deeplab.create_model(name, **options)


# Parameters of the papers' tables in millions; field and multiply-adds in thousands of millions from their kernels.
@pytest.mark.parametrize(
    ("name", "parameters", "published", "field", "giga"),
    [
        ("deeplabv1_7x7", 134_346_581, 134.3, 396, {321: 242.285, 513: 609.538}),
        ("deeplabv1_4x4", 65_140_565, 65.1, 300, {}),
        ("deeplabv1_4x4-r8", 65_140_565, 65.1, 396, {}),
        ("deeplabv1_largefov", 20_505_429, 20.5, 396, {321: 50.928, 513: 128.585}),
        ("deeplabv2_vgg16_largefov", 20_505_429, 20.5, 396, {321: 50.928, 513: 128.585}),
        ("deeplabv2_vgg16_l", 37_877_652, 37.9, 588, {321: 80.120, 513: 201.956}),
        ("deeplabv2_vgg16_s", 37_877_652, 37.9, 396, {321: 80.120, 513: 201.956}),
        ("deeplabv2_resnet101_l", 44_048_532, 44.0, None, {513: 188.886}),
        ("deeplabv2_resnet101_largefov", 42_887_253, 42.9, None, {}),
        ("deeplabv2_resnet101_l_msc", 44_048_532, 44.0, None, {513: 344.876}),
    ],
)
def test_counts(name: str, parameters: int, published: float, field: int | None, giga: dict[int, float]) -> None:
    model = on_meta(name)
    counts = deeplab.count(model, 513)
    assert counts.parameters == parameters
    assert round(parameters / 1e6, 1) == published
    for size, expected in giga.items():
        assert round(deeplab.count(model, size).multiply_adds / 1e9, 3) == expected
    assert counts.shapes == {"out": (1, 21, 513, 513)}
    if field is not None:
        # the enlargement by 8 reads one more value
        assert max(layer.field.size[0] for layer in counts.layers if layer.field) == field
        assert counts.fields["out"].size == (field + 8, field + 8)


@pytest.mark.parametrize("variant", ["7x7", "4x4", "4x4-r8", "largefov"])
def test_multi_scale_branches_add_640_channels(variant: str) -> None:
    plain, counts = (deeplab.count(on_meta(f"deeplabv1_{variant}{suffix}"), (321, 306)) for suffix in ("", "_msc"))
    channels = (3, 64, 128, 256, 512)
    branches = sum(c * 9 * 128 + 128 + 128 * 128 + 128 for c in channels)
    assert counts.parameters - plain.parameters == branches + 640 * 21
    for name in ("image", "pool1", "pool2", "pool3", "pool4"):
        assert counts[f"classifier.branches.{name}.second"].shape == (1, 128, 41, 39)
    assert counts["classifier.main.fc8"].multiply_adds == (plain["classifier.fc8"].parameters - 21 + 640 * 21) * 41 * 39


@pytest.mark.parametrize(("size", "side"), [(306, 39), (321, 41), (513, 65), (33, 5)])
@pytest.mark.parametrize("pool", [2, 3])
def test_shapes(size: int, side: int, pool: int) -> None:
    counts = deeplab.count(on_meta("deeplabv1_largefov", pool=pool), size)
    assert counts["classifier.fc8"].shape == (1, 21, side, side)
    assert counts.shapes["out"] == (1, 21, size, size)


def test_receptive_fields_of_the_text() -> None:
    """VGG-16 at stride 32 through fc6 sees 404 pixels, 308 with 4 × 4 taps; with the released 3 × 3 poolings 419."""
    at_32 = deeplab.count(on_meta("deeplabv1_7x7", output_stride=32), 513)
    assert at_32["backbone.features.30"].field.size == (212, 212)
    assert at_32["classifier.fc6"].field.size == (404, 404)
    assert at_32["backbone.features.30"].field.rows.window(4).size == 308
    released = {"s": (6, 323), "l": (18, 515)}
    for rates, (rate, field) in released.items():
        counts = deeplab.count(on_meta(f"deeplabv2_vgg16_{rates}", pool=3, atrous_rates=(rate,)), 513)
        assert counts["classifier.0.fc6"].field.size == (field, field)
    assert deeplab.count(on_meta("deeplabv1_largefov", pool=3), 513)["classifier.fc6"].field.size == (419, 419)
    assert sum(p.numel() for p in VGG16().parameters()) == VGG_CONVOLUTIONS


def test_published_fields_of_view() -> None:
    """The papers count the kernel of fc6 in steps of the undilated network: 32 ((k - 1) r / 4 + 1)."""
    fields = {}
    for variant in ("7x7", "4x4", "4x4-r8", "largefov"):
        fc6 = on_meta(f"deeplabv1_{variant}").classifier.fc6
        fields[variant] = 32 * ((fc6.kernel_size[0] - 1) * fc6.dilation[0] // 4 + 1)
    assert fields == {"7x7": 224, "4x4": 128, "4x4-r8": 224, "largefov": 224}


def test_dense_features_contain_those_of_larger_strides() -> None:
    """Without the stride of a pooling the next convolutions, dilated, compute the same values and more between them."""
    torch.manual_seed(0)
    backbone = VGG16().double().eval()
    image = torch.rand(1, 3, 97, 65, dtype=torch.float64)
    maps = {}
    for stride in (8, 16):
        backbone.set_output_stride(stride)
        features = image
        for layer in backbone.features[:-1]:
            features = layer(features)
        maps[stride] = features
    assert maps[8].shape[2:] == (13, 9) and maps[16].shape[2:] == (7, 5)
    # the same sums in another order: 4608 products of double precision
    torch.testing.assert_close(maps[8][:, :, ::2, ::2], maps[16], rtol=1e-11, atol=1e-12 * maps[16].abs().max().item())


@pytest.mark.parametrize(("kernel", "rate", "channels"), [(7, 4, 32), (4, 8, 32), (3, 12, 8)])
def test_decimated_fc6_is_the_full_one_without_the_other_taps(
    kernel: int, rate: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vgg, "HIDDEN", 32)
    generator = torch.Generator().manual_seed(1)
    full = torch.randn(32, 512, 7, 7, generator=generator, dtype=torch.float64)
    state = {"0.weight": full.flatten(1), "0.bias": torch.randn(32, generator=generator)}
    state |= {"3.weight": torch.randn(32, 32, generator=generator), "3.bias": torch.randn(32, generator=generator)}
    classifier = VGGClassifier(5, kernel=kernel, rate=rate, channels=channels).double().eval()
    classifier.load_decimated(state)
    features = torch.randn(1, 512, 9, 11, generator=generator, dtype=torch.float64)
    # fc6 as it was trained, on the stride of 8, where its taps lie 4 apart
    kept = {7: [0, 1, 2, 3, 4, 5, 6], 4: [0, 2, 4, 6], 3: [0, 3, 6]}[kernel]
    mask = torch.zeros(7, 7, dtype=torch.float64)
    mask[torch.tensor(kept)[:, None], torch.tensor(kept)] = 1
    hidden = F.conv2d(features, full * mask, state["0.bias"].double(), padding=12, dilation=4).relu()[
        :, :: 32 // channels
    ]
    step = 32 // channels
    second = F.conv2d(hidden, state["3.weight"].double()[::step, ::step, None, None], state["3.bias"].double()[::step])
    expected = F.conv2d(second.relu(), classifier.fc8.weight, classifier.fc8.bias)
    torch.testing.assert_close(classifier({"out": features}), expected, rtol=1e-10, atol=1e-10)


class Downloads:
    """In the place of torchvision's downloads: every filter of fc6 is filled with its number."""

    @staticmethod
    def vgg16(weights: Any, **settings: Any) -> dict[str, Tensor]:
        state = VGG16().features.state_dict(prefix="features.")
        numbers = torch.arange(4096.0)
        state |= {"classifier.0.weight": numbers[:, None].expand(4096, 512 * 49), "classifier.0.bias": -numbers}
        state |= {"classifier.3.weight": numbers.expand(4096, 4096), "classifier.3.bias": 2 * numbers}
        return state


def test_weights_are_decimated_into_every_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.VGG16_Weights
    monkeypatch.setattr(weights, "get_state_dict", Downloads.vgg16)
    model = deeplab.deeplabv2(backbone="vgg16", aspp="L", weights=weights.IMAGENET1K_V1)
    for branch in model.classifier:
        assert branch.fc6.weight[7].unique().tolist() == [28] and branch.fc6.bias[7] == -28
        assert branch.fc7.weight[3, :3].flatten().tolist() == [0, 4, 8] and branch.fc7.bias[3] == 24
    with pytest.raises(ValueError, match="must have a classifier"):
        deeplab.deeplabv1(weights=weights.IMAGENET1K_FEATURES)
    with pytest.raises(ValueError, match="must be of ResNet101_Weights for 'resnet101', got VGG16"):
        deeplab.deeplabv2(weights=weights.IMAGENET1K_V1)


def test_pyramid_is_the_sum_of_its_branches() -> None:
    torch.manual_seed(0)
    model = deeplab.deeplabv2(atrous_rates=(1, 2)).eval()
    image = torch.rand(2, 3, 33, 41)
    with torch.no_grad():
        features = model.backbone(image)["out"]
        one, two = (branch.conv for branch in model.classifier)
        scores = F.conv2d(features, one.weight, one.bias, padding=1)
        scores += F.conv2d(features, two.weight, two.bias, padding=2, dilation=2)
        expected = F.interpolate(scores, (33, 41), mode="bilinear", align_corners=True)
        torch.testing.assert_close(model(image), expected)
    assert features.shape == (2, 2048, 5, 6)


class Scores(Backbone):
    """A network of one convolution, so that its scores can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def set_output_stride(self, output_stride: int) -> None:
        self.output_stride = output_stride

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(input)}


class Out(nn.Module):
    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        return maps["out"]


@pytest.mark.parametrize("align_corners", [False, True])
def test_multi_scale_takes_the_largest_score(align_corners: bool) -> None:
    torch.manual_seed(0)
    base = deeplab.DeepLab(Scores(), Out(), align_corners=align_corners)
    model = deeplab.MultiScale(base, (0.5, 1.5)).train()
    image = torch.rand(2, 3, 35, 42)

    def resized(x: Tensor, *size: int) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)

    conv = base.backbone.conv
    own = conv(image)
    others = {"scale_0.5": conv(resized(image, 17, 21)), "scale_1.5": conv(resized(image, 52, 63))}
    fused = torch.stack([own, *(resized(scores, 18, 21) for scores in others.values())]).amax(0)
    outputs = model(image)
    assert list(outputs) == ["out", "scale_1", "scale_0.5", "scale_1.5"]
    for name, scores in {"out": fused, "scale_1": own, **others}.items():
        torch.testing.assert_close(outputs[name], resized(scores, 35, 42))
    torch.testing.assert_close(model.eval()(image), outputs["out"])
    outputs["out"].sum().backward()
    assert conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("scales", [(0.5, 1.0), (0.0,), (-1,), (float("inf"),)])
def test_bad_scales(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="scales must be positive and other than 1"):
        deeplab.MultiScale(deeplab.DeepLab(Scores(), Out()), scales)
    with pytest.raises(TypeError, match="must be a DeepLab, got Scores"):
        deeplab.MultiScale(Scores())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deeplabv1_9x9", {}, "name must be that of a model, for instance deeplabv1_7x7"),
        ("deeplabv1_7x7", {"variant": "5x5"}, "variant must be"),
        ("deeplabv1_7x7", {"pool": 4}, "pool must be 2 or 3, got 4"),
        ("deeplabv1_7x7", {"output_stride": 12}, "output_stride must be 8, 16, 32, got 12"),
        ("deeplabv1_4x4", {"output_stride": 32}, "taps of fc6 at whole numbers"),
        ("deeplabv2_resnet101_l", {"atrous_rates": (3,), "output_stride": 16}, "whole rates, 3 at output stride 8"),
        ("deeplabv2_resnet101_l", {"atrous_rates": ()}, "at least one rate, got none"),
        ("deeplabv2_resnet101_l", {"num_classes": 0}, "num_classes"),
    ],
)
def test_bad_arguments(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(name, **options)


def test_factories_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("a factory asked the network")

    monkeypatch.setattr(torchvision._internally_replaced_utils, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    for name in deeplab.list_models():
        on_meta(name)
