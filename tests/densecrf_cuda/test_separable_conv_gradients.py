"""Gradients of the separable convolution: finite differences, what they compute, keep and repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolutions import LAYOUTS, TENSORS, Geometry, compose, make_case, same
from helpers import DOUBLE, assert_as_exact_as_torch, for_threads, noise, ops
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from densecrf_cuda import atrous_separable_conv2d

ACTIVATIONS = {
    "linear": {},
    "relu": {"pre_activation": "relu", "depthwise_activation": "relu", "activation": "relu"},
    "relu6": {"pre_activation": "relu6", "depthwise_activation": "relu6", "activation": "relu6"},
    "mixed": {"pre_activation": "relu", "depthwise_activation": "relu6"},
}
SMALL = {
    "k3": same(3),
    "k3-stride2-uneven": Geometry(3, (2, 1), (2, 0, 0, 1), (1, 2)),
    "k3-wider than the image": same(3, 5),
    "k1": same(1),
}


def small_case(geometry: Geometry, device: torch.device, layout: torch.memory_format) -> dict[str, Tensor]:
    case = make_case(geometry, (4, 3), 2, 2, 3)
    return {
        name: x.to(device).contiguous(memory_format=layout if x.dim() == 4 else torch.contiguous_format)
        .requires_grad_() for name, x in case.items()
    }  # fmt: skip


def function(geometry: Geometry, activations: dict[str, str], names: tuple[str, ...]) -> Callable[..., Tensor]:
    """The operator of the tensors of these names."""
    _, stride, padding, dilation = geometry
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation} | activations

    def run(*tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors))
        convolutions = (given.pop("input"), given.pop("depthwise_weight"), given.pop("pointwise_weight"))
        return atrous_separable_conv2d(*convolutions, **given, **settings)

    return run


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activations", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("geometry", SMALL.values(), ids=SMALL)
def test_gradients(
    rung: str, device: torch.device, geometry: Geometry, activations: dict[str, str], layout: str
) -> None:
    case = small_case(geometry, device, LAYOUTS[layout])
    assert gradcheck(function(geometry, activations, TENSORS), tuple(case.values()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activations", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_gradients_of_gradients(
    rung: str, device: torch.device, activations: dict[str, str], layout: str
) -> None:  # fmt: skip
    geometry = Geometry(3, (2, 1), (2, 0, 0, 1), (1, 2))
    case = make_case(geometry, (3, 3), 1, 2, 2)
    tensors = [
        x.to(device).contiguous(memory_format=LAYOUTS[layout]) if x.dim() == 4 else x.to(device) for x in case.values()
    ]
    run = function(geometry, activations, TENSORS)
    assert gradgradcheck(run, tuple(x.requires_grad_() for x in tensors))


@pytest.mark.parametrize("names", [TENSORS[:3], (*TENSORS[:3], "scale"), (*TENSORS[:3], "depthwise_shift", "shift")])
def test_gradients_without_the_other_options(rung: str, device: torch.device, names: tuple[str, ...]) -> None:
    case = small_case(same(3, 2), device, torch.contiguous_format)
    assert gradcheck(function(same(3, 2), {"activation": "relu"}, names), tuple(case[name] for name in names))


def test_gradients_of_a_pointwise_weight_with_four_axes(rung: str, device: torch.device) -> None:
    x, depthwise, pointwise = list(small_case(same(3), device, torch.contiguous_format).values())[:3]
    four = pointwise.detach()[..., None, None].requires_grad_()
    assert gradcheck(lambda weight: atrous_separable_conv2d(x.detach(), depthwise.detach(), weight), (four,))


PARTS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "depthwise": (
        lambda x, w, s, t: ops._depthwise_conv2d(x, w, [2, 1], [2, 0, 0, 1], [1, 2], "relu", s, t, "relu6"),
        ((2, 2, 4, 3), (2, 1, 3, 3), (2,), (2,)),
    ),
    "input gradient": (
        lambda g, w: ops._depthwise_conv2d_input_gradient(g, w, [4, 3], [2, 1], [2, 0, 0, 1], [1, 2]),
        ((2, 2, 2, 1), (2, 1, 3, 3)),
    ),
    "weight gradient": (
        lambda g, x: ops._depthwise_conv2d_weight_gradient(g, x, [3, 3], [2, 1], [2, 0, 0, 1], [1, 2], "relu6"),
        ((2, 2, 2, 1), (2, 2, 4, 3)),
    ),
    "moments": (
        lambda x, w: ops._depthwise_conv2d_moments(x, w, [2, 1], [2, 0, 0, 1], [1, 2], "relu"),
        ((2, 2, 4, 3), (2, 1, 3, 3)),
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_gradients_of_the_parts(rung: str, device: torch.device, part: str) -> None:
    run, shapes = PARTS[part]
    tensors = tuple(noise(*shape, seed=i).to(device).requires_grad_() for i, shape in enumerate(shapes))
    assert gradcheck(run, tensors)
    assert gradgradcheck(run, tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rate", [1, 2, 12])
def test_float_gradients_are_as_exact_as_those_of_torch(
    rung: str, device: torch.device, rate: int, layout: str
) -> None:  # fmt: skip
    geometry, size = same(3, rate), (6, 5) if rung == "cuda-emulated" else (17, 15)
    case = make_case(geometry, size, 2, 24, 20)
    grad = noise(2, 20, *size, seed=9)

    def gradients(run: Callable[..., Tensor], dtype: torch.dtype, where: torch.device) -> list[Tensor]:
        tensors = [x.to(where, dtype).requires_grad_() for x in case.values()]
        y = run(*tensors)
        return list(torch.autograd.grad(y, tensors, grad.to(y).contiguous(memory_format=LAYOUTS[layout])))

    def composed(*tensors: Tensor) -> Tensor:
        return compose(*tensors[:3], geometry=geometry, **ACTIVATIONS["relu"], **dict(zip(TENSORS[3:], tensors[3:])))

    got = gradients(function(geometry, ACTIVATIONS["relu"], TENSORS), torch.float32, device)
    cpu = torch.device("cpu")
    for ours, theirs, exact in zip(got, gradients(composed, torch.float32, cpu), gradients(composed, DOUBLE, cpu)):
        # both may round the same sums in another order: two units of the largest element beside torch's own error
        assert_as_exact_as_torch(ours, theirs, exact, units=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_gradients(rung: str, device: torch.device, dtype: torch.dtype) -> None:
    """Gradients of halves round a handful of intermediate images and products, each by half a unit of its size."""
    geometry = same(3, 2)
    case = make_case(geometry, (6, 5), 1, 8, 8)
    vectors = {1: torch.float32}
    tensors = [x.to(device, vectors.get(x.dim(), dtype)).requires_grad_() for x in case.values()]
    doubles = [x.detach().cpu().to(DOUBLE).requires_grad_() for x in tensors]
    grad = noise(1, 8, 6, 5, seed=9).to(dtype)
    got = torch.autograd.grad(function(geometry, {}, TENSORS)(*tensors), tensors, grad.to(device))
    composed = compose(*doubles[:3], geometry=geometry, **dict(zip(TENSORS[3:], doubles[3:])))
    exact = torch.autograd.grad(composed, doubles, grad.double())
    for name, ours, expected in zip(TENSORS, got, exact):
        assert ours.dtype == (torch.float32 if expected.dim() == 1 else dtype), name
        error = (ours.cpu().double() - expected).abs().max() / expected.abs().max()
        assert error <= 8 * torch.finfo(dtype).eps / 2, name


class Calls(TorchDispatchMode):
    """Names of the package's operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call.namespace in ("densecrf_cuda", "aten"):
            self.names.append(call._opname)
        return call(*args, **(kwargs or {}))


NEEDED = {
    "input": {"_depthwise_conv2d_input_gradient"},
    "depthwise_weight": {"_depthwise_conv2d_weight_gradient"},
    "depthwise_scale": {"_depthwise_conv2d_weight_gradient"},
    "depthwise_shift": set(),
    "pointwise_weight": {"_depthwise_conv2d"},
    "scale": {"_depthwise_conv2d"},
    "shift": set(),
    "residual": set(),
}


@pytest.mark.parametrize("name", NEEDED)
def test_only_what_needs_a_gradient_is_computed(name: str) -> None:
    case = make_case(same(3), (4, 3), 2, 2, 3)
    case[name].requires_grad_()
    y = function(same(3), {}, TENSORS)(*case.values())
    with Calls() as calls:
        y.sum().backward()
    assert {call for call in calls.names if call.startswith("_depthwise")} == NEEDED[name]
    if name in ("shift", "residual"):
        assert not {"mm", "bmm"} & set(calls.names)
    assert case[name].grad is not None
    assert all(x.grad is None for other, x in case.items() if other != name)


def saved_by(run: Callable[[], Tensor]) -> tuple[Tensor, set[int]]:
    """The result, and the addresses of what autograd keeps for it."""
    kept: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return run(), kept


def test_input_and_output_are_kept_and_nothing_between(rung: str, device: torch.device) -> None:
    case = small_case(same(3), device, torch.contiguous_format)
    names = {name: x.data_ptr() for name, x in case.items()}
    every = {"pre_activation": "relu", "depthwise_activation": "relu6", "activation": "relu"}
    y, kept = saved_by(lambda: function(same(3), every, TENSORS)(*case.values()))
    assert kept == set(names.values()) - {names["residual"]} | {y.data_ptr()}
    # without a last activation the derivative does not ask for the result
    y, kept = saved_by(lambda: function(same(3), {}, TENSORS)(*case.values()))
    assert kept == set(names.values()) - {names["residual"]}
    # frozen convolutions with a trained shift keep no image but the result
    with torch.no_grad():
        frozen = {name: x.detach() for name, x in case.items()} | {"shift": case["shift"]}
    y, kept = saved_by(lambda: function(same(3), every, TENSORS)(*frozen.values()))
    assert names["input"] not in kept and y.data_ptr() in kept


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_bitwise_repeatable(restore_threads: None, rung: str, device: torch.device, layout: str) -> None:
    geometry, size = same(3, 2), (6, 5) if rung == "cuda-emulated" else (33, 31)
    case = make_case(geometry, size, 2, 24, 20)
    tensors = [x.float().to(device).contiguous(memory_format=LAYOUTS[layout]) if x.dim() == 4 else x.float().to(device)
               for x in case.values()]  # fmt: skip
    for x in tensors:
        x.requires_grad_()

    def run() -> list[Tensor]:
        return list(torch.autograd.grad(function(geometry, ACTIVATIONS["relu"], TENSORS)(*tensors).sum(), tensors))

    # the pointwise products are a library's, whose bits may depend on the number of threads
    first, *others = for_threads(run, (2, 2))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other))


def test_gradients_that_meet_at_kinks_are_those_of_torch(rung: str, device: torch.device) -> None:
    x = torch.tensor([-1.0, 0.0, 3.0, 6.0, 7.0], device=device).reshape(1, 1, 1, 5)
    ones = torch.ones(1, 1, 1, 1, device=device), torch.ones(1, 1, device=device)
    for activation, act in (("relu", F.relu), ("relu6", F.relu6)):
        for place in ("pre_activation", "depthwise_activation", "activation"):
            ours, theirs = (x.clone().requires_grad_() for _ in range(2))
            atrous_separable_conv2d(ours, *ones, **{place: activation}).sum().backward()
            act(theirs).sum().backward()
            assert torch.equal(ours.grad, theirs.grad), (activation, place)


def test_gradient_of_an_empty_batch(rung: str, device: torch.device) -> None:
    case = {name: x.to(device) for name, x in make_case(same(3), (4, 3), 0, 2, 3).items()}
    tensors = [x.requires_grad_() for x in case.values()]
    function(same(3), {}, TENSORS)(*tensors).sum().backward()
    for x in tensors:
        assert torch.equal(x.grad, torch.zeros_like(x))
