"""The reference of the separable convolution: against `F.conv2d`, and its parts against the compiled ones."""

from __future__ import annotations

import pytest
import torch
from convolutions import GEOMETRIES, LAYOUTS, Geometry, assert_within, error_bound, exact, make_case, prepare
from helpers import noise, ops

from densecrf_cuda import reference

EVERYTHING = {"pre_activation": "relu", "depthwise_activation": "relu6", "activation": "relu"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_composition(geometry: Geometry, layout: str) -> None:
    _, stride, padding, dilation = geometry
    for dtype in (torch.float32, torch.bfloat16):
        arguments = prepare(make_case(geometry), dtype, LAYOUTS[layout], torch.device("cpu")) | EVERYTHING
        settings = {"stride": stride, "padding": padding, "dilation": dilation}
        got = reference.atrous_separable_conv2d(**arguments, **settings)
        assert got.dtype == dtype and got.is_contiguous(memory_format=LAYOUTS[layout])
        assert_within(got, exact(arguments, geometry), error_bound(arguments, geometry))


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_parts(geometry: Geometry) -> None:
    case = make_case(geometry)
    x, weight, scale, shift = (
        case[name] for name in ("input", "depthwise_weight", "depthwise_scale", "depthwise_shift")
    )
    grad = noise(2, 5, *geometry.out_size(x.shape[2:]), seed=9)
    kernel, settings = [geometry.kernel] * 2, [list(part) for part in geometry[1:]]
    for name, arguments in {
        "_depthwise_conv2d": (x, weight, *settings, "relu6", scale, shift, "relu"),
        "_depthwise_conv2d_input_gradient": (grad, weight, x.shape[2:], *settings),
        "_depthwise_conv2d_weight_gradient": (grad, x, kernel, *settings, "relu"),
        "_depthwise_conv2d_moments": (x, weight, *settings, "relu"),
    }.items():
        got, expected = (getattr(module, name)(*arguments) for module in (ops, reference))
        torch.testing.assert_close(got, expected, msg=lambda m, name=name: f"{name}: {m}")
