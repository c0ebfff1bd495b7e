"""Inputs of separable convolutions, and what they have to equal: `F.conv2d`s in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from helpers import DOUBLE, noise
from torch import Tensor

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6}
TENSORS = (
    *("input", "depthwise_weight", "pointwise_weight"),
    *("depthwise_scale", "depthwise_shift", "scale", "shift", "residual"),
)


class Geometry(NamedTuple):
    kernel: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def out_size(self, size: Sequence[int]) -> tuple[int, int]:
        left, right, top, bottom = self.padding
        rows, columns = size[0] + top + bottom, size[1] + left + right
        spans = [step * (self.kernel - 1) + 1 for step in self.dilation]
        return (rows - spans[0]) // self.stride[0] + 1, (columns - spans[1]) // self.stride[1] + 1


def same(kernel: int, dilation: int = 1, stride: int = 1) -> Geometry:
    side = dilation * (kernel - 1) // 2
    return Geometry(kernel, (stride, stride), (side, side, side, side), (dilation, dilation))


GEOMETRIES = {
    "k1": same(1),
    "k1-stride2-padded": Geometry(1, (2, 2), (1, 2, 0, 1)),
    "k3": same(3),
    "k3-stride2": same(3, 1, 2),
    "k3-stride2-tensorflow": Geometry(3, (2, 2), (0, 1, 0, 1)),
    "k3-rate2": same(3, 2),
    "k3-rate36": same(3, 36),  # wider than the image: the centre alone is live
    "k3-rate9-stride2": same(3, 9, 2),
    "k3-uneven": Geometry(3, (1, 2), (4, 1, 0, 3), (3, 2)),
    "k3-valid": Geometry(3),
    "k5-rate2": same(5, 2),
    "k5-uneven": Geometry(5, (2, 1), (3, 0, 1, 6), (1, 2)),
    "k7": same(7),
    "k7-stride2": same(7, 1, 2),
    "border alone": Geometry(3, (1, 1), (0, 0, 9, 9)),  # some rows see nothing but zeros
}


def make_case(
    geometry: Geometry, size: Sequence[int] = (7, 9), batch: int = 2, channels: int = 5, out_channels: int = 6
) -> dict[str, Tensor]:
    """Every tensor of a call, in double."""
    shapes = {
        "input": (batch, channels, *size),
        "depthwise_weight": (channels, 1, geometry.kernel, geometry.kernel),
        "pointwise_weight": (out_channels, channels),
        "depthwise_scale": (channels,),
        "depthwise_shift": (channels,),
        "scale": (out_channels,),
        "shift": (out_channels,),
        "residual": (batch, out_channels, *geometry.out_size(size)),
    }
    return {name: noise(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}


def prepare(
    case: dict[str, Tensor], dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> dict[str, Tensor]:
    """The tensors as an operator takes them; vectors keep float where the images are halves."""
    vectors = torch.promote_types(dtype, torch.float32)
    return {
        name: tensor.to(device, vectors if tensor.dim() == 1 else dtype).contiguous(
            memory_format=layout if name in ("input", "residual") else torch.contiguous_format
        )
        for name, tensor in case.items()
    }


def compose(
    input: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    *,
    geometry: Geometry,
    pre_activation: str = "none",
    depthwise_scale: Tensor | None = None,
    depthwise_shift: Tensor | None = None,
    depthwise_activation: str = "none",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """The convolutions as anyone would write them, in the precision of what is given."""
    x = F.pad(ACTIVATIONS[pre_activation](input), list(geometry.padding))
    _, stride, _, dilation = geometry
    v = F.conv2d(x, depthwise_weight, None, stride, 0, dilation, groups=x.shape[1])
    v = v if depthwise_scale is None else v * depthwise_scale[:, None, None]
    v = v if depthwise_shift is None else v + depthwise_shift[:, None, None]
    weight = pointwise_weight.reshape(*pointwise_weight.shape[:2], 1, 1)
    y = F.conv2d(ACTIVATIONS[depthwise_activation](v), weight)
    y = y if scale is None else y * scale[:, None, None]
    y = y if shift is None else y + shift[:, None, None]
    return ACTIVATIONS[activation](y if residual is None else y + residual)


def in_double(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: x.cpu().to(DOUBLE) if isinstance(x, Tensor) else x for name, x in arguments.items()}


def exact(arguments: dict[str, Any], geometry: Geometry) -> Tensor:
    """The composition in double, of the numbers as the operator was given them."""
    return compose(**in_double(arguments), geometry=geometry)


def error_bound(arguments: dict[str, Any], geometry: Geometry) -> Tensor:
    """How far an element may be from the exact one.

    A sum of n products computed in a precision of unit u, in any order, is wrong by at most about n u times the sum of
    magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). The two convolutions and the
    affine maps are n = k² + C + 6 operations in the precision of sums; activations enlarge no error. A half type is
    rounded to twice more: between the convolutions, where a tensor core multiplies halves, and at the end.
    """
    magnitudes = {name: x.abs() for name, x in in_double(arguments).items() if isinstance(x, Tensor)}
    dtype = arguments["input"].dtype
    operations = geometry.kernel**2 + arguments["input"].shape[1] + 6
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    half = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0.0
    smallest = torch.finfo(dtype).tiny  # of numbers below the normal ones, only the absolute error is bounded
    return (operations * unit + 2 * half) * compose(**magnitudes, geometry=geometry) + smallest


def assert_within(got: Tensor, expected: Tensor, bound: Tensor) -> None:
    assert got.shape == expected.shape
    excess = (got.cpu().double() - expected).abs() / bound
    assert not excess.isnan().any()
    assert excess.numel() == 0 or float(excess.max()) <= 1, f"{float(excess.max()):.2f} times the bound"
