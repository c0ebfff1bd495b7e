"""`fuse` on networks as others write them: the same results, and what it must leave alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import DOUBLE, noise
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from densecrf_cuda import AtrousSeparableConv2d, fuse

# Some thousand roundings of 2^-53 in numbers below 100, in another order.
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def depthwise(channels: int = 4, **options: Any) -> nn.Conv2d:
    kernel = options.pop("kernel_size", 3)
    return nn.Conv2d(channels, channels, kernel, **({"padding": kernel // 2, "groups": channels} | options))


def norm_act(conv: nn.Module, channels: int = 4, activation: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(channels), activation or nn.ReLU6(inplace=True))


def block(*between: nn.Module, out_channels: int = 4) -> nn.Sequential:
    return nn.Sequential(depthwise(bias=False), *between, nn.Conv2d(4, out_channels, 1), nn.BatchNorm2d(out_channels))


class Residual(nn.Module):
    """A block of MobileNetV2: expanded, convolved, projected, and added to what it began with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            norm_act(nn.Conv2d(4, 8, 1), 8), norm_act(depthwise(8), 8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Parts(nn.Module):
    """Six attributes, called in turn."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv_dw, self.bn_dw, self.act_dw = depthwise(dilation=2, padding=2), nn.BatchNorm2d(4), activation()
        self.conv_pw, self.bn_pw, self.act_pw = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), activation()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act_dw(self.bn_dw(self.conv_dw(x)))
        x = self.conv_pw(x)
        return self.act_pw(self.bn_pw(x))


class Padded(nn.Module):
    """Pads by a function that reads the settings of the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.pointwise = depthwise(padding=0), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        reach = self.conv1.dilation[0] * (self.conv1.kernel_size[0] - 1)
        x = F.pad(x, (reach // 2, reach - reach // 2) * 2)
        return self.pointwise(self.bn(self.conv1(x)))


class Branches(nn.Module):
    """Atrous convolutions side by side, from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(block(nn.BatchNorm2d(4), nn.ReLU()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Unrolled(nn.Module):
    """Calls members of a list by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([depthwise(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "in a row": (lambda: block(nn.BatchNorm2d(4), nn.ReLU()), 1),
    "without norm": (lambda: block(), 1),
    "with Identity": (lambda: block(nn.Identity(), nn.BatchNorm2d(4), nn.Identity()), 1),
    "of two kinds": (lambda: nn.Sequential(norm_act(depthwise()), nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU())), 1),
    "one after another": (lambda: nn.Sequential(block(), nn.ReLU(inplace=True), block(), Parts()), 3),
    "pre-activation": (lambda: nn.Sequential(nn.ReLU(), depthwise(), nn.Conv2d(4, 6, 1)), 1),
    "pre-activation in place": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(True), *block()), 1),
    "residual": (lambda: nn.Sequential(Residual(), Residual()), 2),
    "parts": (lambda: nn.Sequential(Parts(), Parts()), 2),
    "padded": (Padded, 1),
    "branches": (Branches, 3),
    "unrolled": (Unrolled, 1),
    "no middle activation": (lambda: Parts(nn.Identity), 1),
    "after another activation": (lambda: nn.Sequential(*block(nn.BatchNorm2d(4)), nn.SiLU()), 1),
}


def prepare(network: nn.Module) -> nn.Module:
    """In double, every number other than what it is made with."""
    for index, (name, tensor) in enumerate(network.double().state_dict().items()):
        if tensor.is_floating_point():
            values = noise(*tensor.shape, seed=index)
            tensor.copy_(values.abs() + 0.5 if "var" in name else values)
    return network


def image(seed: int = 3) -> Tensor:
    return noise(2, 4, 7, 6, seed=seed)


def count(network: nn.Module) -> int:
    return sum(isinstance(module, AtrousSeparableConv2d) for module in network.modules())


def assert_same(network: nn.Module, fused: nn.Module) -> None:
    """In evaluation, then in three steps of training, then in evaluation again."""
    for module in (network, fused):
        module.eval()
    torch.testing.assert_close(fused(image()), network(image()), **EXACT)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.01) for module in (network, fused)]
    for step in range(3):
        results = []
        for module, optimizer in zip((network, fused), optimizers):
            optimizer.zero_grad()
            x = image(step).requires_grad_()
            y = module.train()(x)
            y.square().mean().backward()
            optimizer.step()
            results.append((y, x.grad))
        torch.testing.assert_close(results[1], results[0], **EXACT)
    for module in (network, fused):
        module.eval()
    torch.testing.assert_close(fused(image()), network(image()), **EXACT)


# --- what it finds ---


@pytest.mark.parametrize("name", NETWORKS)
def test_same_results(name: str) -> None:
    make, convolutions = NETWORKS[name]
    network = prepare(make())
    fused = fuse(network)
    assert count(network) == 0 and count(fused) == convolutions
    assert_same(network, fused)


def test_in_place_and_copied() -> None:
    network = prepare(Parts())
    parameters, modules = dict(network.named_parameters()), list(network.modules())
    copied = fuse(network)
    assert list(network.modules()) == modules and not {*copied.parameters()} & {*network.parameters()}
    assert fuse(network, inplace=True) is network
    assert [*network.parameters()] == [*parameters.values()]
    assert [name for name, _ in network.named_parameters()] == [
        *("conv_dw.depthwise.weight", "conv_dw.depthwise.bias", "conv_dw.depthwise_bn.weight"),
        *("conv_dw.depthwise_bn.bias", "conv_dw.pointwise.weight", "conv_dw.pointwise.bias"),
        *("conv_dw.bn.weight", "conv_dw.bn.bias"),
    ]
    assert [type(network.get_submodule(name)) for name in ("bn_dw", "conv_pw", "act_pw")] == [nn.Identity] * 3


def test_settings() -> None:
    fused = fuse(nn.Sequential(nn.ReLU6(), depthwise(dilation=3, padding=3, stride=2), nn.ReLU(), nn.Conv2d(4, 6, 1)))
    conv = fused[1]
    assert (conv.pre_activation, conv.depthwise_activation, conv.activation) == ("relu6", "relu", "none")
    assert (conv.stride, conv.dilation, conv.padding) == ((2, 2), (3, 3), (3, 3, 3, 3))


def test_twice_is_once() -> None:
    fused = fuse(prepare(Residual()))
    again = fuse(fused)
    assert count(again) == 1
    assert_same(fused, again)


def test_modes_and_frozen_norms_are_kept() -> None:
    network = prepare(Parts())
    network.bn_dw.eval()
    network.conv_dw.requires_grad_(False)
    fused = fuse(network)
    assert fused.conv_dw.training and fused.conv_dw.bn.training and not fused.conv_dw.depthwise_bn.training
    assert not fused.conv_dw.depthwise.weight.requires_grad and fused.conv_dw.pointwise.weight.requires_grad
    torch.testing.assert_close(fused(image()), network(image()), **EXACT)
    assert not fuse(prepare(Parts()).eval()).conv_dw.training


def test_frozen_batch_norm() -> None:
    misc = pytest.importorskip("torchvision.ops.misc")
    network = prepare(block(misc.FrozenBatchNorm2d(4), nn.ReLU()))
    fused = fuse(network)
    assert count(fused) == 1
    assert_same(network, fused)


def test_sync_batch_norm_before_and_after() -> None:
    network = prepare(Residual())
    for fused in (
        fuse(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))),
        nn.SyncBatchNorm.convert_sync_batchnorm(fuse(network)),
    ):
        assert count(fused) == 1 and not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        assert_same(copy.deepcopy(network), fused)


@pytest.mark.parametrize("name, convolutions", [("mobilenet_v2", 17), ("mobilenet_v3_large", 3), ("mnasnet0_5", 17)])
def test_torchvision(name: str, convolutions: int) -> None:
    """MobileNetV3 has 15 blocks, of which 8 have squeeze-and-excitation and 4 others a hard swish."""
    models = pytest.importorskip("torchvision.models")
    network = getattr(models, name)(num_classes=3).double().eval()
    fused = fuse(network)
    assert count(fused) == convolutions
    x = noise(1, 3, 64, 64)
    torch.testing.assert_close(fused(x), network(x), **EXACT)


@pytest.mark.filterwarnings("ignore")  # of timm
def test_timm() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("xception41", num_classes=3).double().eval()
    fused = fuse(network)
    assert count(fused) == sum(type(m) is nn.Conv2d and m.groups > 1 for m in network.modules())
    x = noise(1, 3, 64, 64)
    torch.testing.assert_close(fused(x), network(x), **EXACT)


# --- what it leaves alone ---


class Functional(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn_pw(self.conv_pw(F.relu(self.bn_dw(self.conv_dw(x)))))


class Twice(Parts):
    """The pointwise convolution goes on with its own result."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_pw(self.conv_pw(self.conv_dw(x)))


class Tapped(Parts):
    """What lies between the convolutions is read again."""

    def forward(self, x: Tensor) -> Tensor:
        u = self.bn_dw(self.conv_dw(x))
        return self.conv_pw(self.act_dw(u)) + u


class Iterated(nn.Module):
    """Collects what every member of a sequence returns."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = block(nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for layer in self.layers:
            x = layer(x)
            results.append(x)
        return torch.cat(results, 1)


class Reaching(nn.Module):
    """Calls an inner module past the one that holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.block[0](x)


class ReadingWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) * self.block[1].weight.sum()


class AskingForWeights(Parts):
    """Reads of a convolution what `AtrousSeparableConv2d` does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / self.conv_pw.out_channels)


class Dropping(nn.Module):
    """Throws away what its convolution returns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = depthwise()

    def forward(self, x: Tensor) -> Tensor:
        self.conv(x)
        return x


class Asking(Parts):
    """Takes another way with what is no tensor."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor):
            return self.conv_pw(self.act_dw(self.conv_dw(self.bn_dw(x))))
        return super().forward(x)


class OfTwoModes(Parts):
    def forward(self, x: Tensor) -> Tensor:
        u = self.conv_dw(x)
        return self.conv_pw(2 * u if self.training else u)


class Deciding(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else self.conv_pw(x)


class Listed(Parts):
    """Has a second way to its modules, which only its code knows."""

    def __init__(self) -> None:
        super().__init__()
        self.again = [self.conv_pw]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_pw(self.conv_dw(x))


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


def shared() -> nn.Module:
    conv = nn.Conv2d(4, 4, 1)
    return nn.Sequential(depthwise(), conv, nn.ReLU(), conv)


def hooked(part: int, hook: str = "register_forward_hook") -> nn.Module:
    network = block(nn.BatchNorm2d(4))
    getattr(network[part], hook)(lambda *_: None)
    return network


def hooked_inside() -> nn.Module:
    """Whoever watches the sequence inside sees what lies between the convolutions."""
    inside = nn.Sequential(depthwise(), nn.BatchNorm2d(4))
    inside.register_forward_hook(lambda module, inputs, output: 2 * output)
    return nn.Sequential(inside, nn.Conv2d(4, 4, 1))


def changed(change: Callable[[nn.Module], Any], part: int) -> nn.Module:
    network = block(nn.BatchNorm2d(4)).double()
    with torch.no_grad():  # what requires no gradient can be copied
        change(network[part])
    return network


ALONE: dict[str, Callable[[], nn.Module]] = {
    "a function between": Functional,
    "called twice": Twice,
    "read in between": Tapped,
    "iterated": Iterated,
    "called from outside": Reaching,
    "weights read from outside": ReadingWeights,
    "attributes read": AskingForWeights,
    "result thrown away": lambda: nn.Sequential(Dropping(), nn.Conv2d(4, 4, 1)),
    "a forward that asks": Asking,
    "a forward of two modes": OfTwoModes,
    "a forward that decides": Deciding,
    "in a list too": Listed,
    "in two places": shared,
    "hook of the first": lambda: hooked(0),
    "hook of the norm": lambda: hooked(1),
    "hook of the last": lambda: hooked(2, "register_forward_pre_hook"),
    "hook of the gradient": lambda: hooked(2, "register_full_backward_hook"),
    "hook of the state": lambda: hooked(2, "register_state_dict_pre_hook"),
    "hook of a part": hooked_inside,
    "parametrization": lambda: changed(parametrizations.weight_norm, 2),
    "pruning": lambda: changed(lambda conv: prune.l1_unstructured(conv, "weight", amount=0.5), 0),
    "subclass": lambda: nn.Sequential(OwnConv(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1)),
    "subclass after": lambda: nn.Sequential(depthwise(), OwnConv(4, 4, 1)),
    "other padding": lambda: nn.Sequential(depthwise(padding_mode="circular"), nn.Conv2d(4, 4, 1)),
    "large kernel": lambda: nn.Sequential(depthwise(kernel_size=9), nn.Conv2d(4, 4, 1)),
    "stride 3": lambda: nn.Sequential(depthwise(stride=3), nn.Conv2d(4, 4, 1)),
    "two maps of each channel": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 4, 1)),
    "groups of two": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 1)),
    "grouped pointwise": lambda: nn.Sequential(depthwise(), nn.Conv2d(4, 4, 1, groups=2)),
    "strided pointwise": lambda: nn.Sequential(depthwise(), nn.Conv2d(4, 4, 1, stride=2)),
    "padded pointwise": lambda: nn.Sequential(depthwise(), nn.Conv2d(4, 4, 1, padding=1)),
    "another norm": lambda: block(nn.GroupNorm(2, 4)),
    "another activation": lambda: block(nn.BatchNorm2d(4), nn.SiLU()),
    "a gate": lambda: block(nn.BatchNorm2d(4), Gate()),
    "pooling between": lambda: block(nn.AvgPool2d(2)),
    "two norms": lambda: block(nn.BatchNorm2d(4), nn.BatchNorm2d(4)),
    "activation before the norm": lambda: block(nn.ReLU(), nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("name", ALONE)
def test_left_alone(name: str) -> None:
    network = prepare(ALONE[name]())
    fused = fuse(network)
    assert count(fused) == 0
    assert [type(module) for module in fused.modules()] == [type(module) for module in network.modules()]
    assert_same(network, fused)


class Skip(nn.Module):
    """The activation in place changes what the skip connection adds."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(inplace), depthwise(), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = 1 * x
        return self.body(x) + x


@pytest.mark.parametrize("inplace", [True, False])
def test_an_activation_in_place_before_the_convolution_stays(inplace: bool) -> None:
    network = prepare(Skip(inplace))
    fused = fuse(network)
    assert count(fused) == 1 and type(fused.body[0]) is (nn.ReLU if inplace else nn.Identity)
    assert_same(network, fused)


def test_an_activation_that_ends_another_part_stays() -> None:
    """What a part of a network returns may be read by name."""
    network = prepare(nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), block()))
    fused = fuse(network)
    assert count(fused) == 1 and type(fused[0][1]) is nn.ReLU
    assert_same(network, fused)


def test_a_module_in_two_places_is_fused_inside() -> None:
    inside = Parts()
    network = prepare(nn.Sequential(inside, nn.Conv2d(4, 4, 1), inside))
    fused = fuse(network)
    assert count(fused) == 1 and fused[0] is fused[2]
    assert_same(network, fused)


def test_tracing_leaves_no_trace() -> None:
    """Forwards run once to be seen; what they store in attributes is as before."""

    class Storing(Parts):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x
            return super().forward(x)

    network = Storing()
    fuse(network, inplace=True)
    assert count(network) == 1 and not hasattr(network, "last")


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got 3"):
        fuse(3)  # type: ignore[arg-type]


def test_dtype_of_the_parts() -> None:
    network = nn.Sequential(depthwise(dtype=DOUBLE), nn.Conv2d(4, 4, 1))
    assert count(fuse(network)) == 0, "it fails without fusing, too"
