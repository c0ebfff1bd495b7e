"""Every DeepLab as a module: shapes, output strides, training, freezing, groups of parameters, compilation, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import distance, image, on_meta, randomised
from torch import nn

import deeplab
from deeplab.families import BACKBONES
from densecrf_cuda import fuse

V3, V3PLUS = deeplab.deeplabv3, deeplab.deeplabv3plus


OTHER_LAYOUTS = [("resnet50", "tf"), ("resnet50", "caffe"), ("mobilenet_v2", "torch"), ("mobilenet_v3_large", "tf")]


@pytest.mark.parametrize("factory", [V3, V3PLUS])
@pytest.mark.parametrize(("backbone", "layout"), [*((name, None) for name in BACKBONES), *OTHER_LAYOUTS])
def test_any_size_and_output_stride(factory: Any, backbone: str, layout: str | None) -> None:
    model = on_meta(factory, backbone=backbone, layout=layout, num_classes=4, aux=True)
    for output_stride, size in ((8, (33, 33)), (16, (64, 47)), (32, (33, 130))):
        model.set_output_stride(output_stride)
        outputs = model(torch.zeros(1, 3, *size, device="meta"))
        shapes = {name: tuple(tensor.shape) for name, tensor in outputs.items()}
        assert shapes == {"out": (1, 4, *size), "aux": (1, 4, *size)}
        assert model.output_stride == output_stride


def test_cascade() -> None:
    """Blocks 4 to 7 have dilations 2, 4, 8, 16 at output stride 16, times the multi-grid; strides go up to 256."""
    model = on_meta(V3, backbone="resnet50_beta", cascade=7, multi_grid=(1, 2, 1))
    for block, rate in ((4, 2), (5, 4), (6, 8), (7, 16)):
        units = list(model.get_submodule(f"backbone.layer{block}"))
        assert [unit.conv2.dilation[0] for unit in units] == [rate, 2 * rate, rate]
    for output_stride in (8, 64, 256):
        model.set_output_stride(output_stride)
        x = torch.zeros(1, 3, 513, 257, device="meta")
        side = -(-513 // output_stride)
        assert model.get_submodule("backbone")(x)["out"].shape == (1, 2048, side, -(-257 // output_stride))
        assert model(x).shape == (1, 21, 513, 257)


# (channels, side) at 513 × 513 of what the parts of Xception-65 give, at output strides 16 and 8
SHAPES = {
    "stem": ((64, 257), (64, 257)),
    "entry.0.conv3": ((128, 129), (128, 129)),
    "entry.1.conv2": ((256, 129), (256, 129)),
    "entry.1.conv3": ((256, 65), (256, 65)),
    "entry.2.conv3": ((728, 33), (728, 65)),
    "middle": ((728, 33), (728, 65)),
    "exit.0": ((1024, 33), (1024, 65)),
    "exit.1": ((2048, 33), (2048, 65)),
}
# dilations of the depthwise convolutions of the same parts
DILATIONS = {"entry.2": (1, 1), "middle.15": (1, 2), "exit.0": (1, 2), "exit.1": (2, 4)}


@pytest.mark.parametrize("column", [0, 1])
def test_shapes_of_xception(column: int) -> None:
    model = on_meta(V3PLUS, output_stride=(16, 8)[column])
    seen: dict[str, tuple[int, ...]] = {}
    watched = {f"backbone.{name}": (expected[column]) for name, expected in SHAPES.items()}
    watched |= {"classifier.aspp": (256, (33, 65)[column]), "classifier.convs": (256, 129), "classifier": (21, 129)}
    for name in watched:

        def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            seen[name] = tuple(output.shape)

        model.get_submodule(name).register_forward_hook(note)
    out = model(torch.zeros(1, 3, 513, 513, device="meta"))
    assert seen == {name: (1, channels, side, side) for name, (channels, side) in watched.items()}
    assert out.shape == (1, 21, 513, 513)
    for name, expected in DILATIONS.items():
        for conv in ("conv1", "conv2", "conv3"):
            assert model.get_submodule(f"backbone.{name}.{conv}.depthwise").dilation[0] == expected[column]
    rates = [conv.dilation[0] for conv in list(model.get_submodule("classifier.aspp.convs"))[1:4]]
    assert rates == [[6, 12, 18], [12, 24, 36]][column]


@pytest.mark.parametrize(
    ("factory", "settings"),
    [
        (V3PLUS, {"backbone": "xception41"}),
        (V3, {"backbone": "resnet50_beta", "aspp_separable": True, "image_pooling": (65, 65)}),
        (V3, {"backbone": "mobilenet_v3_large", "layout": "torch"}),
    ],
)
def test_output_stride_of_evaluation(factory: Any, settings: Any) -> None:
    """A model set to stride 8 is a model of stride 8 with the same parameters; set back, it is what it was."""
    model = randomised(factory(num_classes=3, output_stride=16, **settings))
    dense = factory(num_classes=3, output_stride=8, **settings).eval()
    dense.load_state_dict(model.state_dict())
    x = image(1, 3, 49, 33)
    with torch.no_grad():
        before, expected = model(x), dense(x)
        model.set_output_stride(8)
        assert torch.equal(model(x), expected) and not torch.equal(expected, before)
        model.set_output_stride(16)
        assert torch.equal(model(x), before)


def test_output_stride_that_the_pyramid_cannot_have() -> None:
    model = on_meta(V3, backbone="mobilenet_v2", atrous_rates=(3, 5), output_stride=16)
    with pytest.raises(ValueError, match=r"atrous_rates \(3, 5\).*output stride 32"):
        model.set_output_stride(32)
    assert model.output_stride == 16  # as before


@pytest.mark.parametrize(
    ("factory", "settings"),
    [
        (V3PLUS, {"backbone": "xception41"}),
        (V3PLUS, {"backbone": "mobilenet_v2", "atrous_rates": (6, 12, 18), "aux": True}),
    ],
)
def test_training(factory: Any, settings: Any) -> None:
    """Gradients reach every parameter, in training and with frozen norms; evaluation gives the same twice."""
    torch.manual_seed(0)
    model = factory(num_classes=3, **settings)
    x = image(2, 3, 33, 49)
    for frozen in (False, True):
        model.freeze_batch_norm(frozen).train()
        model.zero_grad()
        outputs = model(x)
        outputs = outputs if isinstance(outputs, dict) else {"out": outputs}
        sum(output.square().mean() for output in outputs.values()).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
                assert parameter.grad.any(), name
    model.eval()
    with torch.no_grad():
        first, second = model(x), model(x)
    for name in outputs:
        assert torch.equal(*(result[name] if isinstance(result, dict) else result for result in (first, second)))


def test_frozen_norms() -> None:
    model = V3PLUS(backbone="mobilenet_v2", num_classes=2)
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    assert model.freeze_batch_norm() is model
    model.train()
    assert model.training and not any(norm.training for norm in norms.values())
    assert all(parameter.requires_grad is False for norm in norms.values() for parameter in norm.parameters())
    assert model.get_parameter("classifier.logits.weight").requires_grad
    model(image(1, 3, 33, 33)).sum().backward()  # one image, which statistics of a batch could not be taken of
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())
    model.freeze_batch_norm(False)
    assert all(norm.training and norm.weight.requires_grad for norm in norms.values())
    model(image(2, 3, 33, 33))
    assert not torch.equal(model.get_buffer("backbone.0.1.running_mean"), before["backbone.0.1.running_mean"])


def test_parameter_groups() -> None:
    model = V3PLUS(backbone="mobilenet_v2", num_classes=2)
    groups = deeplab.parameter_groups(
        model,
        0.1,
        multipliers={"backbone": 0.1, "classifier": 10, "classifier.logits": 20},
        bias=2,
        weight_decay=1e-4,
        decay_depthwise=False,
    )
    members = [parameter for group in groups for parameter in group["params"]]
    assert len(members) == len({id(p) for p in members}) == len(list(model.parameters()))
    facts = {group["name"]: (round(group["lr"], 6), group["weight_decay"], len(group["params"])) for group in groups}
    # 52 layers of MobileNetV2 but the last, each with a norm; pyramid of 3, 1 of the decoder's projection, 2 separable
    assert facts == {
        "backbone weight": (0.01, 1e-4, 34),
        "backbone norm": (0.01, 0.0, 102),
        "backbone depthwise": (0.01, 0.0, 17),
        "classifier weight": (1.0, 1e-4, 6),
        "classifier norm": (1.0, 0.0, 16),
        "classifier depthwise": (1.0, 0.0, 2),
        "classifier.logits weight": (2.0, 1e-4, 1),
        "classifier.logits bias": (4.0, 0.0, 1),
    }
    torch.optim.SGD(groups, momentum=0.9)
    model.freeze_batch_norm()
    names = [group["name"] for group in deeplab.parameter_groups(model, 0.1)]
    assert names == ["weight", "depthwise", "bias"]


def test_norms_of_the_families() -> None:
    """eps and 1 - decay of TensorFlow: bodies of Xception, MobileNet and ResNet, and what they have in common."""
    bodies = {"xception65": (1e-3, 3e-4), "mobilenet_v2": (1e-3, 3e-3), "resnet101_beta": (1e-5, 0.05)}
    for backbone, expected in bodies.items():
        model = on_meta(V3PLUS, backbone=backbone)
        for part, settings in (("backbone", expected), ("classifier", (1e-5, 3e-4))):
            norms = [m for m in model.get_submodule(part).modules() if isinstance(m, nn.BatchNorm2d)]
            assert {(norm.eps, norm.momentum) for norm in norms} == {settings}


@pytest.mark.parametrize(
    "settings",
    [{"backbone": "mobilenet_v2"}, {"backbone": "mobilenet_v2", "layout": "torch"}, {"backbone": "xception41"}],
)
def test_fused(settings: Any) -> None:
    """`fuse` changes nothing but rounding, and what it makes follows the output stride."""
    model = randomised(V3PLUS(num_classes=3, **settings))
    fused = fuse(model)
    x = image(1, 3, 48, 33)
    with torch.no_grad():
        for output_stride in (16, 8):
            model.set_output_stride(output_stride)
            fused.set_output_stride(output_stride)
            assert distance(fused(x), model(x)) < 1e-3  # 100 layers of up to 5000 products: 100 · √5000 · 2⁻²⁴ = 4e-4


def test_compiles_whole() -> None:
    model = randomised(V3PLUS(backbone="mobilenet_v2", num_classes=3))
    x = image(1, 3, 33, 40)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), expected)


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        (V3, {"backbone": "resnet18"}, "backbone must be 'resnet50'.*, got 'resnet18'"),
        (V3, {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        (V3, {"output_stride": 4}, "output_stride must be 8, 16, 32, got 4"),
        (V3, {"output_stride": 64}, "output_stride must be 8, 16, 32, got 64"),
        (V3, {"cascade": 5, "output_stride": 128}, "output_stride must be 8, 16, 32, 64, got 128"),
        (V3, {"cascade": 8}, "cascade must be 4 to 7, got 8"),
        (V3, {"cascade": 7, "atrous_rates": (6,)}, r"cascade=7 has no pyramid, got atrous_rates=\(6,\)"),
        (V3, {"cascade": 7, "backbone": "mobilenet_v2"}, "cascade=7 for 'mobilenet_v2'"),
        (V3, {"layout": "keras"}, "layout must be 'torch', 'tf' or 'caffe', got 'keras'"),
        (V3, {"layout": "caffe", "backbone": "xception65"}, "'caffe' is one of ResNets, got it for 'xception65'"),
        (V3, {"multi_grid": (1, 2)}, r"multi_grid must have 3 dilations, got \(1, 2\)"),
        (V3, {"multi_grid": (1, 2, 4), "backbone": "mobilenet_v2"}, "multi_grid must be None for 'mobilenet_v2'"),
        (V3, {"atrous_rates": (6, 0)}, "atrous_rates must be at least 1, got 0"),
        (V3, {"image_pooling": (513,)}, r"image_pooling must be .*, got \(513,\)"),
        (V3PLUS, {"decoder_channels": 0}, "decoder_channels must be at least 1, got 0"),
        (V3PLUS, {"output_stride": 12}, "output_stride must be 8, 16, 32, got 12"),
    ],
)
def test_settings_out_of_range(factory: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(factory, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr must be > 0, got 0.0"),
        ({"lr": 0.1, "bias": -1.0}, "must be ≥ 0, got -1.0 for bias"),
        ({"lr": 0.1, "multipliers": {"head": 10}}, "has no head"),
    ],
)
def test_groups_out_of_range(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deeplab.parameter_groups(on_meta(V3, backbone="mobilenet_v2"), **settings)


@pytest.mark.parametrize("shape", [(3, 65, 65), (1, 1, 65, 65)])
def test_input_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"input must be \[B, 3, H, W\], got"):
        on_meta(V3, backbone="mobilenet_v2")(torch.zeros(shape, device="meta"))
