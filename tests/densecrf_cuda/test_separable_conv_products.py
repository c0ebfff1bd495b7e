"""Shapes whose pointwise convolution is a library's product: few pixels with large weights, on the CPU."""

from __future__ import annotations

import pytest
import torch
from convolutions import LAYOUTS, TENSORS, assert_within, error_bound, exact, make_case, prepare, same
from torch import Tensor

from densecrf_cuda import atrous_separable_conv2d

GEOMETRY = same(3, 2)
SETTINGS = {"pre_activation": "relu", "depthwise_activation": "relu6", "activation": "relu"}


def prepared(dtype: torch.dtype, layout: str, device: torch.device) -> dict[str, Tensor]:
    """Weights of 2¹⁸ numbers for one image of 1 × 3 pixels, below what either layout asks for."""
    case = make_case(GEOMETRY, (1, 3), 1, 512, 512)
    return prepare(case, dtype, LAYOUTS[layout], device)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_composition(dtype: torch.dtype, layout: str, device: torch.device) -> None:
    tensors = prepared(dtype, layout, device)
    arguments = {name: tensors[name] for name in TENSORS} | SETTINGS
    got = atrous_separable_conv2d(**arguments, padding=GEOMETRY.padding, dilation=2)
    assert_within(got, exact(arguments, GEOMETRY), error_bound(arguments, GEOMETRY))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_into_a_slice(layout: str, device: torch.device) -> None:
    tensors = prepared(torch.float32, layout, device)
    arguments = {name: tensors[name] for name in TENSORS} | SETTINGS
    expected = atrous_separable_conv2d(**arguments, padding=GEOMETRY.padding, dilation=2)
    whole = torch.full((1, 1024, 1, 3), 7.0, device=device).contiguous(memory_format=LAYOUTS[layout])
    atrous_separable_conv2d(**arguments, padding=GEOMETRY.padding, dilation=2, out=whole[:, 256:768])
    assert torch.equal(whole[:, 256:768], expected)
    assert (whole[:, :256] == 7).all() and (whole[:, 768:] == 7).all()
