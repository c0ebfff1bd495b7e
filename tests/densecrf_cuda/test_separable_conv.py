"""The separable convolution against the composition of `F.conv2d`s that it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolutions import (
    DTYPES,
    GEOMETRIES,
    LAYOUTS,
    Geometry,
    assert_within,
    error_bound,
    exact,
    make_case,
    prepare,
    same,
)
from helpers import DOUBLE, for_threads, layouts, noise, ops
from torch import Tensor

from densecrf_cuda import atrous_separable_conv2d

OPTIONS: dict[str, Any] = {
    "plain": ((), {}),
    "pre relu": ((), {"pre_activation": "relu"}),
    "pre relu6": ((), {"pre_activation": "relu6"}),
    "depthwise scale": (("depthwise_scale",), {}),
    "depthwise shift": (("depthwise_shift",), {}),
    "depthwise relu": ((), {"depthwise_activation": "relu"}),
    "scale": (("scale",), {}),
    "shift": (("shift",), {"activation": "relu6"}),
    "residual": (("residual",), {}),
    "relu": (("scale", "residual"), {"activation": "relu"}),
    "everything": (
        ("depthwise_scale", "depthwise_shift", "scale", "shift", "residual"),
        {"pre_activation": "relu", "depthwise_activation": "relu6", "activation": "relu6"},
    ),
}
EVERYTHING = OPTIONS["everything"]
CONVOLUTIONS = ("input", "depthwise_weight", "pointwise_weight")


def choose(tensors: dict[str, Tensor], option: tuple[tuple[str, ...], dict[str, str]]) -> dict[str, Any]:
    names, settings = option
    return {name: tensors[name] for name in (*CONVOLUTIONS, *names)} | settings


def call(arguments: dict[str, Any], geometry: Geometry, **settings: Any) -> Tensor:
    convolutions = [arguments[name] for name in CONVOLUTIONS]
    rest = {name: value for name, value in arguments.items() if name not in CONVOLUTIONS}
    _, stride, padding, dilation = geometry
    return atrous_separable_conv2d(
        *convolutions, stride=stride, padding=padding, dilation=dilation, **rest, **settings
    )  # fmt: skip


def assert_composition(arguments: dict[str, Any], geometry: Geometry) -> None:
    got, given = call(arguments, geometry), arguments["input"]
    assert got.dtype == given.dtype
    layout = torch._prims_common.suggest_memory_format(given)
    assert got.is_contiguous(memory_format=layout)
    assert_within(got, exact(arguments, geometry), error_bound(arguments, geometry))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_composition(
    rung: str, device: torch.device, geometry: Geometry, dtype: torch.dtype, layout: str
) -> None:  # fmt: skip
    tensors = prepare(make_case(geometry), dtype, LAYOUTS[layout], device)
    assert_composition(choose(tensors, EVERYTHING), geometry)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_options(rung: str, device: torch.device, option: Any, layout: str) -> None:
    geometry = Geometry(3, (2, 1), (1, 1, 1, 1), (1, 2))
    for dtype in (torch.float32, torch.bfloat16):
        tensors = prepare(make_case(geometry), dtype, LAYOUTS[layout], device)
        assert_composition(choose(tensors, option), geometry)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (1, 13), (13, 1), (2, 2), (5, 33)], ids=str)
def test_sizes(rung: str, device: torch.device, size: tuple[int, int], layout: str) -> None:
    for geometry in (same(3), same(3, 2, 2), Geometry(5, (2, 2), (4, 4, 4, 4))):
        tensors = prepare(make_case(geometry, size, batch=3), torch.float32, LAYOUTS[layout], device)
        assert_composition(choose(tensors, EVERYTHING), geometry)


# Blocks of pixels, channels and vectors, and what is left over of each; 728 and 304 are the network's own.
CHANNELS = [(1, 1), (1, 40), (40, 1), (16, 32), (33, 65), (304, 48), (24, 728)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_channels(rung: str, device: torch.device, channels: tuple[int, int], layout: str) -> None:
    size = (3, 5) if rung == "cuda-emulated" else (19, 21)
    for dtype in (torch.float32, torch.float16):
        tensors = prepare(make_case(same(3, 2), size, 1, *channels), dtype, LAYOUTS[layout], device)
        assert_composition(choose(tensors, EVERYTHING), same(3, 2))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(728, 728, 13, 2), (512, 64, 33, 12), (64, 48, 129, 1)], ids=str)
def test_layers_of_the_network(shape: tuple[int, ...], layout: str) -> None:
    channels, out_channels, side, rate = shape
    case = make_case(same(3, rate), (side, side), 1, channels, out_channels)
    tensors = prepare(case, torch.float32, LAYOUTS[layout], torch.device("cpu"))
    assert_composition(choose(tensors, OPTIONS["relu"]), same(3, rate))


def test_settings_are_those_of_conv2d(rung: str, device: torch.device) -> None:
    case = {name: x.to(device) for name, x in make_case(same(3), (9, 8)).items()}
    x, depthwise, pointwise = (case[name] for name in CONVOLUTIONS)

    def conv2d(**settings: Any) -> Tensor:
        return F.conv2d(F.conv2d(x, depthwise, groups=x.shape[1], **settings), pointwise[..., None, None])

    for settings in (
        {"stride": 2, "padding": 1},
        {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 3)},
        {"padding": "same", "dilation": (3, 1)},
    ):
        got = atrous_separable_conv2d(x, depthwise, pointwise, **settings)
        torch.testing.assert_close(got, conv2d(**settings))
    torch.testing.assert_close(atrous_separable_conv2d(x, depthwise, pointwise), conv2d(padding="same"))
    # "same" is what a stride of 1 would take, whatever the stride
    got = atrous_separable_conv2d(x, depthwise, pointwise, stride=2, dilation=2)
    torch.testing.assert_close(got, conv2d(padding=2, stride=2, dilation=2))
    # a pointwise weight in the shape that Conv2d keeps it in
    four = atrous_separable_conv2d(x, depthwise, pointwise[..., None, None])
    assert torch.equal(four, atrous_separable_conv2d(x, depthwise, pointwise))


def test_strides_of_every_kind(rung: str, device: torch.device) -> None:
    geometry = same(3, 2)
    tensors = prepare(make_case(geometry), torch.float32, torch.contiguous_format, device)
    expected = call(choose(tensors, EVERYTHING), geometry)
    for name in tensors:
        given = tensors[name]
        views = layouts(given) if given.dim() > 1 else {"sparse": given.repeat_interleave(2)[::2]}
        if given.dim() == 4:
            wide = torch.full((given.shape[0], 2 * given.shape[1], *given.shape[2:]), torch.nan).to(given)
            views["slice of channels"] = wide[:, 1 : 1 + given.shape[1]].copy_(given)
            last = wide.contiguous(memory_format=torch.channels_last)
            views["slice of last channels"] = last[:, 1 : 1 + given.shape[1]]
        for view, tensor in views.items():
            before = tensor.clone()
            got = call(choose(tensors | {name: tensor}, EVERYTHING), geometry)
            torch.testing.assert_close(got, expected, msg=lambda m, name=name, view=view: f"{name}, {view}: {m}")
            assert torch.equal(tensor, before)


def test_vectors_of_other_types(rung: str, device: torch.device) -> None:
    geometry = same(3)
    tensors = prepare(make_case(geometry), torch.float32, torch.contiguous_format, device)
    for dtype in (torch.float64, torch.float16):
        vectors = {name: x.to(dtype) for name, x in tensors.items() if x.dim() == 1}
        assert_composition(choose(tensors | vectors, EVERYTHING), geometry)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batch(rung: str, device: torch.device, layout: str) -> None:
    tensors = prepare(make_case(same(3), batch=0), torch.float32, LAYOUTS[layout], device)
    assert_composition(choose(tensors, EVERYTHING), same(3))
    none = call(choose(tensors, OPTIONS["plain"]) | {"pointwise_weight": torch.empty(0, 5, device=device)}, same(3))
    assert none.shape == (0, 0, 7, 9)


def test_nan_and_infinity_stay_where_they_are_seen(rung: str, device: torch.device) -> None:
    x = torch.zeros(1, 2, 7, 7, device=device)
    x[0, 0, 3, 3] = torch.nan
    x[0, 1, 0, 0] = torch.inf
    ones = torch.ones(2, 1, 3, 3, device=device), torch.eye(2, device=device)
    for activation in ("none", "relu", "relu6"):
        every = {"pre_activation": activation, "depthwise_activation": activation, "activation": activation}
        got = atrous_separable_conv2d(x, *ones, dilation=2, **every).cpu()
        # 0 · infinity is NaN, and so is what a pointwise weight of 0 makes of the other channel
        expected = F.conv2d(
            F.conv2d(x.cpu(), ones[0].cpu(), padding=2, dilation=2, groups=2), ones[1].cpu()[..., None, None]
        )
        if activation != "relu6":
            assert torch.equal(got.isnan(), expected.isnan())
        assert got[0, 0, 1::2, 1::2].isnan().all()
        assert not got[0, :, 2, 3].isnan().any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_is_a_slice_of_a_wider_tensor(rung: str, device: torch.device, dtype: torch.dtype, layout: str) -> None:
    tensors = prepare(make_case(same(3, 2)), dtype, LAYOUTS[layout], device)
    arguments = choose(tensors, EVERYTHING)
    expected = call(arguments, same(3, 2))
    for buffer_layout in LAYOUTS.values():
        buffer = torch.full((2, 13, 7, 9), 7.0, dtype=dtype, device=device).contiguous(memory_format=buffer_layout)
        out = buffer[:, 4:10]
        assert call(arguments, same(3, 2), out=out) is out
        assert torch.equal(out, expected)
        assert (buffer[:, :4] == 7).all() and (buffer[:, 10:] == 7).all()


def test_out_of_any_strides(rung: str, device: torch.device) -> None:
    tensors = prepare(make_case(same(3)), torch.float32, torch.contiguous_format, device)
    arguments = choose(tensors, OPTIONS["plain"])
    expected = call(arguments, same(3))
    for view, out in layouts(torch.zeros_like(expected)).items():
        call(arguments, same(3), out=out)
        assert torch.equal(out, expected), view


def test_out_may_lie_beside_the_input(rung: str, device: torch.device) -> None:
    for layout in LAYOUTS.values():
        buffer = noise(2, 12, 7, 9, dtype=torch.float32).to(device).contiguous(memory_format=layout)
        x, out = buffer[:, :5], buffer[:, 5:11]
        tensors = prepare(make_case(same(3)), torch.float32, layout, device) | {"input": x}
        expected = call(choose(tensors, OPTIONS["plain"]), same(3))
        call(choose(tensors, OPTIONS["plain"]), same(3), out=out)
        torch.testing.assert_close(out, expected)


def test_branches_of_a_pyramid_without_a_concatenation(rung: str, device: torch.device) -> None:
    x = noise(1, 4, 9, 9, dtype=torch.float32).to(device, memory_format=torch.channels_last)
    rates = (1, 6, 12)
    weights = [
        (noise(4, 1, 3, 3, seed=rate).float().to(device), noise(8, 4, seed=rate).float().to(device)) for rate in rates
    ]
    buffer = torch.empty(1, 24, 9, 9, device=device, memory_format=torch.channels_last)
    for i, (rate, (depthwise, pointwise)) in enumerate(zip(rates, weights)):
        atrous_separable_conv2d(
            x, depthwise, pointwise, dilation=rate, activation="relu", out=buffer[:, 8 * i : 8 * i + 8]
        )
    parts = [
        F.relu(F.conv2d(F.conv2d(x, depthwise, padding=rate, dilation=rate, groups=4), pointwise[..., None, None]))
        for rate, (depthwise, pointwise) in zip(rates, weights)
    ]
    torch.testing.assert_close(buffer, torch.cat(parts, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_for_any_number_of_threads(restore_threads: None, layout: str) -> None:
    tensors = prepare(make_case(same(3, 6), (33, 33), 2, 96, 40), torch.float32, LAYOUTS[layout], torch.device("cpu"))
    arguments, settings = choose(tensors, EVERYTHING), ([1, 1], [6, 6, 6, 6], [6, 6])
    x, weight = arguments["input"], arguments["depthwise_weight"]
    grad = noise(*x.shape, dtype=torch.float32).contiguous(memory_format=LAYOUTS[layout])

    def run() -> list[Tensor]:
        return [
            call(arguments, same(3, 6)),
            ops._depthwise_conv2d(x, weight, *settings, "relu", None, None, "none"),
            ops._depthwise_conv2d_input_gradient(grad, weight, x.shape[2:], *settings),
            ops._depthwise_conv2d_weight_gradient(grad, x, [3, 3], *settings, "relu"),
            *ops._depthwise_conv2d_moments(x, weight, *settings, "relu"),
        ]

    first, *others = for_threads(run)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other))


def test_parts_in_half_precision(rung: str, device: torch.device) -> None:
    """Each part rounds once, from sums in float: at most half a unit of the result, and the error of those sums."""
    x, weight = noise(2, 3, 6, 5, dtype=torch.bfloat16).to(device), noise(3, 1, 3, 3, dtype=torch.bfloat16).to(device)
    settings = ([1, 1], [2, 2, 2, 2], [2, 2])
    grad = noise(2, 3, 6, 5, seed=3, dtype=torch.bfloat16).to(device)

    def parts(x: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
        return [
            ops._depthwise_conv2d(x, weight, *settings, "relu", None, None, "none"),
            ops._depthwise_conv2d_input_gradient(grad, weight, [6, 5], *settings),
            ops._depthwise_conv2d_weight_gradient(grad, x, [3, 3], *settings, "relu"),
            *ops._depthwise_conv2d_moments(x, weight, *settings, "relu"),
        ]

    for half, double in zip(parts(x, weight, grad), parts(x.double(), weight.double(), grad.double())):
        rounded = half.dtype == torch.bfloat16
        assert rounded or half.dtype == torch.float32
        # the 60 terms of a weight's gradient cancel at most by 2^6 here
        rtol = torch.finfo(torch.bfloat16).eps / 2 if rounded else 2**-18
        torch.testing.assert_close(half.double(), double, rtol=rtol, atol=2**-16)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_moments(rung: str, device: torch.device, geometry: Geometry) -> None:
    case = make_case(geometry)
    x, weight = case["input"] + 100, case["depthwise_weight"]  # a mean that the variance must not be lost beside
    u = F.conv2d(F.pad(x, list(geometry.padding)), weight, None, geometry.stride, 0, geometry.dilation, groups=5)
    for layout in LAYOUTS.values():
        given = x.to(device).contiguous(memory_format=layout)
        mean, variance = ops._depthwise_conv2d_moments(given, weight.to(device), *geometry[1:], "none")
        assert mean.dtype == variance.dtype == DOUBLE
        torch.testing.assert_close(mean.cpu(), u.mean((0, 2, 3)))
        torch.testing.assert_close(variance.cpu(), u.var((0, 2, 3), correction=0))
