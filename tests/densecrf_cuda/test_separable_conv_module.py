"""`AtrousSeparableConv2d` against torch's modules one after another: results, gradients, statistics, and the module."""

from __future__ import annotations

import copy
import functools
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import DOUBLE, noise, relative
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from densecrf_cuda import AtrousSeparableConv2d

ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6}

# Some 100 roundings of 2^-53 in numbers below 20, in another order than torch's; a variance cancels a few digits more,
# and its reciprocal root and the gradients through it multiply what is left by less than 1000.
EXACT = {"rtol": 1e-11, "atol": 1e-11}

OPTIONS: dict[str, dict[str, Any]] = {
    "deeplab": {"dilation": 2, "depthwise_activation": "relu", "activation": "relu"},
    "xception": {"pre_activation": "relu", "depthwise_activation": "none", "activation": "none", "stride": 2},
    "mobilenet": {"depthwise_activation": "relu6", "activation": "none", "kernel_size": 5, "stride": (2, 1)},
    "no norms": {"depthwise_norm": False, "norm": False, "padding": 0},
    "norm in the middle": {"norm": False, "dilation": (1, 3)},
    "norm at the end": {"depthwise_norm": False, "depthwise_bias": False, "dilation": 12},
    "biases before norms": {"bias": True, "depthwise_bias": True, "padding": (0, 2)},
    "asymmetric": {"padding": (0, 1, 1, 2), "stride": 2, "pre_activation": "relu6"},
    "statistics not tracked": {
        "depthwise_norm": functools.partial(nn.BatchNorm2d, track_running_stats=False),
        "norm": functools.partial(nn.BatchNorm2d, track_running_stats=False),
    },
    "no weights in the norms": {
        "depthwise_norm": functools.partial(nn.BatchNorm2d, affine=False, eps=0.1),
        "norm": functools.partial(nn.BatchNorm2d, affine=False),
    },
    "cumulative statistics": {
        "depthwise_norm": functools.partial(nn.BatchNorm2d, momentum=None),
        "norm": functools.partial(nn.BatchNorm2d, momentum=None),
        "depthwise_bias": True,
    },
    "other norms": {
        "depthwise_norm": functools.partial(nn.GroupNorm, 2),
        "norm": functools.partial(nn.InstanceNorm2d, affine=True),
        "padding": (0, 1, 1, 2),
    },
}


def make(seed: int = 0, dtype: torch.dtype = DOUBLE, **options: Any) -> AtrousSeparableConv2d:
    """A module of 4 and 6 channels, whose every number differs from what a fresh one has."""
    conv = AtrousSeparableConv2d(4, 6, **options, dtype=dtype)
    for index, (name, tensor) in enumerate(conv.state_dict().items()):
        if tensor.is_floating_point():
            values = noise(*tensor.shape, seed=100 * seed + index, dtype=dtype)
            tensor.copy_(values.abs() + 0.5 if "var" in name else values)
    return conv


def sequential(conv: AtrousSeparableConv2d) -> nn.Sequential:
    """Copies of the parts, as torch runs them."""
    parts = [
        ACTIVATIONS[conv.pre_activation](),
        nn.ZeroPad2d(conv.extra_padding),
        conv.depthwise,
        conv.depthwise_bn,
        ACTIVATIONS[conv.depthwise_activation](),
        conv.pointwise,
        conv.bn,
        ACTIVATIONS[conv.activation](),
    ]
    return nn.Sequential(*(part for part in copy.deepcopy(parts) if part is not None))


def state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the order in which the parts run; names differ between the two forms."""
    return {f"{index} {name.split('.')[-1]}": t for index, (name, t) in enumerate(module.state_dict().items())}


def image(*shape: int, seed: int = 7, dtype: torch.dtype = DOUBLE) -> Tensor:
    return noise(*(shape or (2, 4, 9, 8)), seed=seed, dtype=dtype)


@pytest.fixture(params=OPTIONS)
def conv(request: pytest.FixtureRequest) -> AtrousSeparableConv2d:
    return make(**OPTIONS[request.param])


# --- results ---


def test_evaluation(conv: AtrousSeparableConv2d) -> None:
    conv.eval()
    torch.testing.assert_close(conv(image()), sequential(conv)(image()), **EXACT)


def test_training(conv: AtrousSeparableConv2d) -> None:
    """Three steps: results, gradients of everything, statistics, and then evaluation with them."""
    expected = sequential(conv)
    for step in range(3):
        x = image(seed=step).requires_grad_()
        y, want = (module(x) for module in (conv, expected))
        torch.testing.assert_close(y, want, **EXACT)
        g = noise(*y.shape, seed=step)
        grads, wanted = (
            torch.autograd.grad(out, [x, *module.parameters()], g) for out, module in ((y, conv), (want, expected))
        )
        for grad, wants in zip(grads, wanted):
            torch.testing.assert_close(grad, wants, **EXACT)
    torch.testing.assert_close(state(conv), state(expected), **EXACT)
    torch.testing.assert_close(conv.eval()(image()), expected.eval()(image()), **EXACT)


def test_every_device(device: torch.device) -> None:
    conv = make(dilation=2, pre_activation="relu").to(device)
    x = image(1, 4, 5, 6).to(device).requires_grad_()
    for training in (True, False):
        expected = sequential(conv.train(training))
        grads, wanted = (
            torch.autograd.grad(module(x).square().mean(), [x, *module.parameters()]) for module in (conv, expected)
        )
        for grad, wants in zip(grads, wanted):
            torch.testing.assert_close(grad, wants, **EXACT)


def test_training_keeps_no_map_between_the_convolutions() -> None:
    """Input, what the second norm is given, and the result: the only tensors of an image's size that are kept."""
    conv, kept = make(stride=2), []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        conv(image().requires_grad_())
    assert {shape for shape in kept if shape[2:] not in ((), (1, 1), (3, 3))} == {(2, 4, 9, 8), (2, 6, 5, 4)}


@pytest.mark.parametrize("frozen", [("depthwise_bn",), ("bn",), ("depthwise_bn", "bn")])
def test_frozen_norms_in_training(frozen: tuple[str, ...]) -> None:
    """`bn.eval()` freezes the statistics alone: weight and bias of the norm still get their gradients."""
    conv = make(depthwise_bias=True, bias=True)
    for name in frozen:
        getattr(conv, name).eval()
    expected, x = sequential(conv), image().requires_grad_()
    grads, wanted = (
        torch.autograd.grad(module(x).pow(2).sum(), [x, *module.parameters()]) for module in (conv, expected)
    )
    for grad, wants in zip(grads, wanted):
        torch.testing.assert_close(grad, wants, rtol=1e-11, atol=1e-9)  # a square of numbers below 100
    torch.testing.assert_close(state(conv), state(expected), **EXACT)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_against_finite_differences(training: bool) -> None:
    conv = make(dilation=2, depthwise_activation="relu6", depthwise_bias=True).train(training)
    names, parameters = zip(*conv.named_parameters())

    def run(x: Tensor, residual: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(conv, dict(zip(names, values)), (x,), {"residual": residual})

    operands = (image(2, 4, 2, 3).requires_grad_(), noise(2, 6, 2, 3).requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(run, operands)
    assert torch.autograd.gradgradcheck(run, operands, fast_mode=True)


def test_residual_comes_before_the_last_activation() -> None:
    x, residual = image(), noise(2, 6, 9, 8)
    for conv in (make().eval(), make(), make(depthwise_norm=functools.partial(nn.GroupNorm, 2))):
        expected = (sequential(conv)[:-1](x) + residual).relu()
        torch.testing.assert_close(conv(x, residual=residual), expected, **EXACT)


def test_out_is_a_slice_of_a_wider_tensor() -> None:
    x = image()
    group_norm = make(depthwise_norm=functools.partial(nn.GroupNorm, 2)).eval()
    for conv in (make().eval(), make(norm=functools.partial(nn.GroupNorm, 2)).eval(), group_norm):
        wide = torch.full((2, 10, 9, 8), 5.0, dtype=DOUBLE)
        with torch.no_grad():
            assert conv(x, out=wide[:, 2:8]).data_ptr() == wide[:, 2:8].data_ptr()
            torch.testing.assert_close(wide[:, 2:8], conv(x), rtol=0, atol=0)
        assert bool((wide[:, :2] == 5).all() and (wide[:, 8:] == 5).all())
        with pytest.raises(ValueError, match="out"):
            conv(x, out=wide[:, 2:8])
        with torch.no_grad(), pytest.raises(ValueError, match="out"):
            conv(x, out=wide)
        with torch.no_grad(), pytest.raises(TypeError, match="out"):
            conv(x, out=wide[:, 2:8].float())


@pytest.mark.parametrize("training", [True, False])
def test_channels_last(training: bool) -> None:
    conv = make(dilation=2).train(training)
    x = image().contiguous(memory_format=torch.channels_last)
    y = conv(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, sequential(conv)(x.contiguous()), **EXACT)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precision(dtype: torch.dtype, training: bool) -> None:
    """At most twice the error of torch's modules in the same type, and two units in the last place of the largest."""
    conv = make(dtype=dtype, dilation=2).train(training)
    x = image(dtype=dtype)
    exact = sequential(copy.deepcopy(conv).double())(x.double())
    errors = [relative(module(x).detach(), exact.detach()) for module in (sequential(conv), conv)]
    assert errors[1] <= 2 * errors[0] + 2 * torch.finfo(dtype).eps
    assert conv(x).dtype == dtype


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["deeplab", "other norms"])
def test_autocast(name: str, training: bool) -> None:
    conv = make(dtype=torch.float32, **OPTIONS[name]).train(training)
    x, exact = image(dtype=torch.float32), sequential(conv).double()(image(dtype=torch.float32).double())
    with torch.autocast("cpu", torch.bfloat16):
        want, y = sequential(conv)(x), conv(x)
    assert y.dtype == want.dtype
    errors = [relative(result.detach(), exact.detach()) for result in (want, y)]
    assert errors[1] <= 2 * errors[0] + 2 * torch.finfo(torch.bfloat16).eps
    y.float().sum().backward()
    assert conv.depthwise.weight.grad is not None and conv.depthwise.weight.grad.dtype == torch.float32


# --- norms ---


def test_one_value_per_channel_has_no_variance() -> None:
    for options in ({}, {"norm": False}, {"depthwise_norm": False}):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            make(**options)(image(1, 4, 1, 1))
        make(**options).eval()(image(1, 4, 1, 1))


def test_empty_batch_in_training() -> None:
    conv = make()
    expected = sequential(conv)
    torch.testing.assert_close(conv(image(0, 4, 5, 5)), expected(image(0, 4, 5, 5)))
    torch.testing.assert_close(state(conv), state(expected), **EXACT)


def test_sync_batch_norm_in_one_process() -> None:
    conv = make()
    expected, x = sequential(conv), image()
    conv = nn.SyncBatchNorm.convert_sync_batchnorm(conv)
    assert isinstance(conv.depthwise_bn, nn.SyncBatchNorm) and isinstance(conv.bn, nn.SyncBatchNorm)
    torch.testing.assert_close(conv(x), expected(x), **EXACT)
    torch.testing.assert_close(state(conv), state(expected), **EXACT)
    torch.testing.assert_close(conv.eval()(x), expected.eval()(x), **EXACT)


def test_sync_batch_norm_among_processes_computes_its_own_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the module knows the other processes: here it finds a mean of 1 and a variance of 4 among them all."""
    conv = nn.SyncBatchNorm.convert_sync_batchnorm(make(norm=False, depthwise_activation="none", activation="none"))
    norm = conv.depthwise_bn
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, u: (u - 1) / 2)
    x = image()
    torch.testing.assert_close(conv(x), conv.pointwise((conv.depthwise(x) - 1) / 2), **EXACT)
    u = (conv.depthwise(x) - norm.running_mean[:, None, None]) * (norm.running_var + norm.eps).rsqrt()[:, None, None]
    u = u * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(conv.eval()(x), conv.pointwise(u), **EXACT)


def test_folded() -> None:
    x = image()
    conv = make(depthwise_bias=True, bias=True, padding=(0, 1, 1, 2)).eval()
    folded = conv.folded()
    torch.testing.assert_close(folded(x), conv(x), **EXACT)
    torch.testing.assert_close(folded.train()(x), conv(x), **EXACT)
    assert {"depthwise_bn.scale", "depthwise_bn.shift", "bn.scale", "bn.shift"} <= folded.state_dict().keys()
    assert folded.depthwise.weight is conv.depthwise.weight
    before = folded(x)
    conv.bn.running_mean += 1
    torch.testing.assert_close(folded(x), before, rtol=0, atol=0)
    assert isinstance(make().train().folded().bn, nn.BatchNorm2d)
    handle = folded.depthwise_bn.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(folded(x), before, **EXACT)
    handle.remove()


# --- as a module ---


def test_state_dict() -> None:
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    keys = ["depthwise.weight", *(f"depthwise_bn.{n}" for n in norm), "pointwise.weight", *(f"bn.{n}" for n in norm)]
    conv, other = make(seed=1).eval(), make(seed=2).eval()
    assert list(conv.state_dict()) == keys
    assert list(make(depthwise_norm=False, norm=False).state_dict()) == [
        "depthwise.weight", "depthwise.bias", "pointwise.weight", "pointwise.bias",
    ]  # fmt: skip
    assert not torch.equal(conv(image()), other(image()))
    other.load_state_dict(conv.state_dict())
    assert torch.equal(conv(image()), other(image()))


def test_copies(conv: AtrousSeparableConv2d) -> None:
    conv.eval()
    file = io.BytesIO()
    torch.save(conv, file)
    file.seek(0)
    for other in (copy.deepcopy(conv), torch.load(file, weights_only=False)):
        assert torch.equal(other(image()), conv(image()))
        assert other.depthwise.weight is not conv.depthwise.weight


def test_settings_of_the_depthwise_convolution_are_read_at_every_call() -> None:
    """Backbones are dilated after they are made, by a function that is applied to every convolution."""
    conv = make(stride=2).eval()

    def dilate(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.stride, module.dilation, module.padding = (1, 1), (4, 4), (4, 4)

    conv.apply(dilate)
    assert (conv.stride, conv.dilation, conv.padding) == ((1, 1), (4, 4), (4, 4, 4, 4))
    torch.testing.assert_close(conv(image()), sequential(conv)(image()), **EXACT)


def hook(conv: AtrousSeparableConv2d) -> None:
    conv.depthwise.register_forward_hook(lambda module, inputs, output: 2 * output)
    conv.depthwise_bn.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    conv.bn.register_forward_hook(lambda module, inputs, output: output - 1)


CHANGES: dict[str, Callable[[AtrousSeparableConv2d], Any]] = {
    "hooks": hook,
    "pruning": lambda conv: prune.l1_unstructured(conv.depthwise, "weight", amount=0.5),
    "weight_norm": lambda conv: parametrizations.weight_norm(conv.pointwise),
    "spectral_norm": lambda conv: parametrizations.spectral_norm(conv.depthwise),
    "other convolution": lambda conv: setattr(conv, "depthwise", nn.Sequential(conv.depthwise, nn.Tanh())),
    "other norm": lambda conv: setattr(conv, "depthwise_bn", nn.InstanceNorm2d(4)),
    "no norm": lambda conv: (setattr(conv, "depthwise_bn", None), setattr(conv, "bn", None)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_parts(change: str, training: bool) -> None:
    conv = make().train(training)
    with torch.no_grad():  # what requires no gradient can be copied
        CHANGES[change](conv)
    expected = sequential(conv)
    torch.testing.assert_close(conv(image()), expected(image()), **EXACT)


def test_moved_to_another_type() -> None:
    conv = make().eval()
    torch.testing.assert_close(
        copy.deepcopy(conv).float()(image().float()).double(), conv(image()), rtol=1e-4, atol=1e-4
    )
    assert AtrousSeparableConv2d(4, 6, device="meta")(torch.empty(2, 4, 9, 8, device="meta")).shape == (2, 6, 9, 8)


@pytest.fixture
def forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("forget_compiled_code")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        OPTIONS["deeplab"],
        # torch compiles no cumulative average of its own, so only ours is tested
        {"depthwise_norm": functools.partial(nn.BatchNorm2d, momentum=None), "norm": False},
        OPTIONS["other norms"],
    ],
    ids=["deeplab", "cumulative statistics", "other norms"],
)
def test_compiled(options: dict[str, Any], training: bool) -> None:
    conv = make(**options).train(training)
    other = copy.deepcopy(conv)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for step in range(2):
        x = image(seed=step)
        y, want = compiled(x), conv(x)
        torch.testing.assert_close(y, want, **EXACT)
        grads, wanted = (
            torch.autograd.grad(r.pow(2).sum(), list(m.parameters())) for r, m in ((y, other), (want, conv))
        )
        for grad, wants in zip(grads, wanted):
            torch.testing.assert_close(grad, wants, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(other.state_dict(), conv.state_dict(), **EXACT)


# --- from_modules ---


def parts() -> list[Any]:
    depthwise = nn.Conv2d(4, 4, 3, 2, 3, 2, groups=4, dtype=DOUBLE)
    pointwise = nn.Conv2d(4, 6, 1, dtype=DOUBLE)
    return [depthwise, nn.BatchNorm2d(4, 0.1).double(), nn.ReLU6(), pointwise, nn.BatchNorm2d(6).double(), nn.ReLU()]


@pytest.mark.parametrize("missing", [(), (1,), (2,), (4, 5), (1, 2, 4, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_from_modules(training: bool, missing: tuple[int, ...]) -> None:
    modules = [None if index in missing else part for index, part in enumerate(parts())]
    conv = AtrousSeparableConv2d.from_modules(*modules).train(training)
    assert (conv.depthwise, conv.depthwise_bn, conv.pointwise, conv.bn) == tuple(modules[i] for i in (0, 1, 3, 4))
    expected = nn.Sequential(*(copy.deepcopy(part) for part in modules if part is not None))
    torch.testing.assert_close(conv(image()), expected(image()), **EXACT)


def test_from_modules_keeps_modes_and_strings() -> None:
    modules = parts()
    modules[1].eval()
    modules[3].padding = "same"
    modules[0] = nn.Conv2d(4, 4, 5, padding="same", dilation=2, groups=4, dtype=DOUBLE)
    conv = AtrousSeparableConv2d.from_modules(*modules[:2], "relu", *modules[3:], pre_activation=nn.ReLU(inplace=True))
    assert conv.training and not conv.depthwise_bn.training
    x = image()
    expected = nn.Sequential(nn.ReLU(), *modules[:2], nn.ReLU(), *copy.deepcopy(modules[3:]))
    torch.testing.assert_close(conv(x), expected(x), **EXACT)
    assert torch.equal(x, image()), "the input is left as it was"


@pytest.mark.parametrize(
    "index, module, error, message",
    [
        (0, nn.Conv2d(4, 4, 3, dtype=DOUBLE), ValueError, "groups.* 4, 4 and 1"),
        (0, nn.Conv2d(4, 8, 3, groups=4, dtype=DOUBLE), ValueError, "output channels"),
        (0, nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"), ValueError, "zeros.*'reflect'"),
        (0, nn.Conv2d(4, 4, (3, 5), groups=4), ValueError, r"kernel_size.*\(3, 5\)"),
        (0, nn.Conv2d(4, 4, 9, groups=4), ValueError, r"kernel_size.*\(9, 9\)"),
        (0, nn.Conv2d(4, 4, 3, stride=3, groups=4), ValueError, r"stride.*\(3, 3\)"),
        (0, nn.Conv2d(4, 4, 3, groups=4), ValueError, "one dtype.*float32 on cpu and torch.float64 on cpu"),
        (0, nn.Conv1d(4, 4, 3, groups=4), TypeError, "depthwise must be an nn.Conv2d"),
        (0, None, TypeError, "depthwise must be an nn.Conv2d, got None"),
        (1, nn.BatchNorm2d(5), ValueError, "depthwise_bn must have 4 channels.* 5"),
        (1, "batch", TypeError, "depthwise_bn must be a module"),
        (2, nn.SiLU(), ValueError, "depthwise_activation must be ReLU, .*SiLU"),
        (2, "gelu", ValueError, "depthwise_activation must be .*'gelu'"),
        (2, nn.Hardtanh(0, 5), ValueError, "depthwise_activation"),
        (2, 3, TypeError, "depthwise_activation"),
        (3, nn.Conv2d(4, 6, 3, dtype=DOUBLE), ValueError, r"pointwise kernel_size.*\(3, 3\)"),
        (3, nn.Conv2d(5, 6, 1, dtype=DOUBLE), ValueError, "4 input channels.* 5"),
        (3, nn.Conv2d(4, 6, 1, groups=2, dtype=DOUBLE), ValueError, "1 group, got 2"),
        (3, nn.Conv2d(4, 6, 1, stride=2, dtype=DOUBLE), ValueError, r"pointwise stride.*\(2, 2\)"),
        (3, nn.Conv2d(4, 6, 1, padding=1, dtype=DOUBLE), ValueError, r"no padding, got \(1, 1\)"),
        (4, nn.BatchNorm2d(4), ValueError, "bn must have 6 channels.* 4"),
    ],
)
def test_from_modules_refuses(index: int, module: Any, error: type[Exception], message: str) -> None:
    modules = parts()
    modules[index] = module
    with pytest.raises(error, match=message):
        AtrousSeparableConv2d.from_modules(*modules)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
        ({"out_channels": 2.5}, TypeError, "out_channels must be an integer, got 2.5"),
        ({"kernel_size": 4}, ValueError, r"1, 3, 5 or 7.*\(4, 4\)"),
        ({"stride": 3}, ValueError, r"stride must be 1 or 2, got \(3, 3\)"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ({"dilation": (1, 2, 3)}, ValueError, "dilation must be one number or two"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": (1, 2, 3)}, ValueError, "padding must be one number, two or four"),
        ({"padding": "valid"}, ValueError, "padding must be 'same' or numbers of pixels, got 'valid'"),
        ({"activation": "tanh"}, ValueError, "activation must be .*'tanh'"),
        ({"pre_activation": "RELU"}, ValueError, "pre_activation must be"),
        ({"norm": "batch"}, TypeError, "norm must be a bool or a function.*'batch'"),
        ({"depthwise_norm": lambda channels: channels}, TypeError, "depthwise_bn must be a module or None, got 4"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AtrousSeparableConv2d(**{"in_channels": 4, "out_channels": 6} | options)


@pytest.mark.parametrize("training", [True, False])
def test_bad_input(training: bool) -> None:
    conv = make().train(training)
    with pytest.raises(ValueError, match="channels"):
        conv(image(2, 5, 9, 8))
    with pytest.raises(ValueError):
        conv(image(4, 9, 8))
    with pytest.raises(TypeError):
        conv(image().float())
    with pytest.raises(ValueError):
        make(padding=0).train(training)(image(2, 4, 2, 9))


def test_nan_goes_in_and_comes_out() -> None:
    x = image()
    x[1, 2, 3, 3] = math.nan
    y = make().eval()(x)
    assert bool(y[1, :, 3, 3].isnan().all()) and not bool(y[0].isnan().any())
