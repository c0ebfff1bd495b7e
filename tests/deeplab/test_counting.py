"""The counter against what torchvision publishes of its models, closed forms, and what a Jacobian says of a field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densecrf_cuda import CRFRNN

models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
from deeplab.counting import count  # noqa: E402

# One of each kind of network, those without attention: grouped, separable, squeezed, concatenated, with aux heads.
CLASSIFIERS = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "regnet_y_400mf",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "vgg16",
    "wide_resnet50_2",
]
SEGMENTERS = ["deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv3_resnet101", "fcn_resnet50"]


def published(name: str) -> Any:
    return next(iter(models.get_model_weights(name)))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_of_torchvision(name: str) -> None:
    entry = published(name)
    # regnet computes its widths by tensors, which must have values
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = models.get_model(name)
    counts = count(model, entry.transforms.keywords["crop_size"])
    assert round(counts.multiply_adds / 1e9, 3) == entry.meta["_ops"]
    assert counts.parameters == counts.trainable == entry.meta["num_params"]
    assert sum(layer.parameters for layer in counts.layers) == counts.parameters
    assert counts.shapes == {"out": (1, 1000)}


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmentation_models_of_torchvision(name: str) -> None:
    entry = published(name)
    with torch.device("meta"):
        model = models.get_model(name, aux_loss=True, weights_backbone=None)
    counts = count(model, entry.transforms.keywords["resize_size"])
    assert round(counts.multiply_adds / 1e9, 3) == entry.meta["_ops"]
    assert counts.parameters == entry.meta["num_params"]
    assert counts.shapes == {"out": (1, 21, 520, 520), "aux": (1, 21, 520, 520)}


def test_closed_forms() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2, padding=1, bias=False),
        nn.ConvTranspose2d(6, 5, 2, stride=2),
        nn.Flatten(),
        nn.Linear(5 * 14 * 10, 3),
    )
    counts = count(model, (7, 5), channels=4, batch=2)
    assert [layer.multiply_adds for layer in counts.layers] == [
        2 * 6 * 35 * (2 * 9),
        2 * 6 * 35 * (5 * 4),
        0,
        2 * 3 * 700,
    ]
    assert [layer.parameters for layer in counts.layers] == [6 * 2 * 9, 6 * 5 * 4 + 5, 0, 3 * 700 + 3]
    assert counts["3"].shape == (2, 3)
    with pytest.raises(KeyError, match="no layer is called 'conv9'"):
        counts["conv9"]


def test_a_model_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(), nn.Conv2d(2, 2, 1))
    model[1].eval()
    model[3].weight = nn.Parameter(model[3].weight, requires_grad=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counts = count(model, 8)
    assert (counts.parameters, counts.trainable, counts.buffers) == (18, 14, 5)
    assert [module.training for module in model] == [True, False, True, True]
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks
    assert {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])} == set(before)


def test_shared_parameters_are_counted_once() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    counts = count(nn.Sequential(conv, nn.ReLU(), conv), 10)
    assert counts.parameters == 84 == sum(layer.parameters for layer in counts.layers)
    assert counts.multiply_adds == 2 * 27 * 300


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": (3, -1)}, {"channels": 0}, {"batch": 0}])
def test_bad_sizes(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        count(nn.Conv2d(3, 1, 1), **settings)


class Function(nn.Module):
    """A function of its argument and some convolutions."""

    def __init__(self, function: Callable[..., Tensor], *convs: nn.Module) -> None:
        super().__init__()
        self.function, self.convs = function, nn.ModuleList(convs)

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image, *self.convs)


def conv(kernel: int, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(3, 3, kernel, **settings)


NETWORKS: dict[str, nn.Module] = {
    "strides, rates, padding": nn.Sequential(
        conv(7, stride=2, padding=3), nn.MaxPool2d(3, 2, 1), conv(3, dilation=4, padding=4), nn.AvgPool2d(2)
    ),
    "axes of their own": nn.Sequential(conv((3, 5), stride=(1, 2), padding=(1, 0), dilation=(2, 1))),
    "residual, larger field on one side": Function(lambda x, a, b: F.pad(a(x), (3, 0, 3, 0)) + b(x), conv(4), conv(1)),
    "branches": Function(
        lambda x, a, b: torch.cat([a(x), b(x)], 1), conv(3, dilation=3, padding=3), conv(5, padding=2)
    ),
    "strips": Function(lambda x, a: a(x)[:, :, 2::2, -40:], conv(3, padding=1)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_fields_against_gradients(name: str) -> None:
    """The pixels that change the value in the middle of a map are those of its field, to the pixel on each side."""
    network = NETWORKS[name].double()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1)  # nothing cancels
    image = torch.rand(1, 3, 61, 57, dtype=torch.float64, requires_grad=True)
    output = network(image)
    at = tuple(n // 2 for n in output.shape[2:])
    # a maximum has no gradient by those it passes over, so pixels are tried: by their number, not by size
    reached = torch.zeros(61, 57, dtype=torch.bool)
    for _ in range(20):
        image.data = torch.rand_like(image)
        (gradient,) = torch.autograd.grad(network(image)[0, :, at[0], at[1]].sum(), image)
        reached |= gradient[0].ne(0).any(0)
    field = count(network, (61, 57)).fields["out"]
    for axis, rows in zip(field, (reached.any(1), reached.any(0))):
        i = at[0] if axis is field.rows else at[1]
        first, last = rows.nonzero()[0].item(), rows.nonzero()[-1].item()
        assert (first, last) == (axis.first + i * axis.stride, axis.last + i * axis.stride)


def test_the_field_of_a_global_average_is_the_image() -> None:
    def pooled(x: Tensor, a: nn.Module) -> Tensor:
        return a(x) + F.interpolate(F.adaptive_avg_pool2d(x, 1), x.shape[2:], mode="bilinear")

    assert count(Function(pooled, conv(3, padding=1)), 33).fields["out"].size == (float("inf"),) * 2


def test_an_interpolation_reaches_one_value_further() -> None:
    def enlarged(x: Tensor, a: nn.Module) -> Tensor:
        return F.interpolate(a(x), x.shape[2:], mode="bilinear", align_corners=False)

    field = count(Function(enlarged, conv(3, padding=1, stride=4)), 64).fields["out"]
    assert field.size == (7, 7)  # two neighbours of stride 4, of 3 pixels each
    assert field.stride == (1, 1)
    assert field.rows.first + field.rows.last == -1 - 1 - 2 * (3 / 2 - 1)  # (i + ½) / 4 − ½ of centres at 4 i


def test_the_crf_sees_everything_and_counts_for_nothing() -> None:
    def refined(x: Tensor, a: nn.Module, crf: nn.Module) -> Tensor:
        return crf(a(x), x)

    counts = count(Function(refined, conv(1), CRFRNN(3)), 24)
    assert counts.fields["out"].size == (float("inf"),) * 2
    assert counts.multiply_adds == 9 * 24 * 24
    assert counts.shapes["out"] == (1, 3, 24, 24)
