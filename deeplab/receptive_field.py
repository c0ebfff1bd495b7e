"""Receptive fields: which pixels of the input a value of a map depends on, followed from operator to operator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Axis", "Field", "after"]


class Axis(NamedTuple):
    """Along one axis, value i depends on the input from first + i · stride to last + i · stride, ends included.

    Args:
        first: for i = 0, in pixels of the input; negative where it reaches into the padding; -inf: everything.
        last: for i = 0.
        stride: pixels of the input from a value to the next; a fraction where maps were enlarged.
    """

    first: Fraction | float = Fraction(0)
    last: Fraction | float = Fraction(0)
    stride: Fraction = Fraction(1)

    @property
    def size(self) -> Fraction | float:
        """How many pixels of the input a value depends on; inf: all of them, whatever the size of the image.

        Example:
            >>> Axis().window(7, stride=2, padding=3).window(3, stride=2, padding=1).size
            Fraction(11, 1)
        """
        return self.last - self.first + 1

    def window(self, kernel: int, *, stride: int = 1, padding: int = 0, dilation: int = 1) -> Axis:
        """After a convolution or a pooling with `padding` zeros before the first value."""
        return Axis(
            self.first - padding * self.stride,
            self.last + (dilation * (kernel - 1) - padding) * self.stride,
            self.stride * stride,
        )

    def union(self, other: Axis) -> Axis:
        """After an operator that takes value i of both, an addition for instance."""
        return Axis(min(self.first, other.first), max(self.last, other.last), max(self.stride, other.stride))

    def resized(self, before: int, after: int, taps: int, align_corners: bool) -> Axis:
        """After an interpolation from `before` to `after` values, each made of `taps` neighbours.

        Which ones depends on the position; they are taken to lie evenly around it, so that the size is exact and the
        ends are so on average.
        """
        if before == after:
            return self
        if align_corners:
            scale, offset = Fraction(before - 1, max(after - 1, 1)), Fraction(0)
        else:
            scale = Fraction(before, after)
            offset = (scale - 1) / 2
        reach = Fraction(taps - 1, 2) if before > 1 else Fraction(0)
        return Axis(
            self.first + (offset - reach) * self.stride,
            self.last + (offset + reach) * self.stride,
            self.stride * scale,
        )

    def sliced(self, begin: int, step: int) -> Axis:
        """After x[begin::step]; a negative begin is padding."""
        return Axis(self.first + begin * self.stride, self.last + begin * self.stride, self.stride * step)

    def whole(self) -> Axis:
        """After an operator that sees everything, such as a global average."""
        return Axis(-math.inf, math.inf, self.stride)


class Field(NamedTuple):
    """The receptive field of the values of a map, along both of its axes."""

    rows: Axis = Axis()
    columns: Axis = Axis()

    @property
    def size(self) -> tuple[Fraction | float, Fraction | float]:
        """Height and width in pixels of the input."""
        return self.rows.size, self.columns.size

    @property
    def stride(self) -> tuple[Fraction, Fraction]:
        """Pixels of the input from a value to the next, vertically and horizontally."""
        return self.rows.stride, self.columns.stride

    def union(self, other: Field) -> Field:
        """As that of `Axis`, along both."""
        return Field(self.rows.union(other.rows), self.columns.union(other.columns))

    def whole(self) -> Field:
        """As that of `Axis`, along both."""
        return Field(self.rows.whole(), self.columns.whole())


def after(operator: str, arguments: Mapping[str, Any], fields: Iterable[Field], output: Tensor) -> Field:
    """The field of what an operator returns.

    Args:
        operator: its name with namespace, "aten::convolution".
        arguments: by name, with the defaults filled in.
        fields: of those inputs that depend on the image, at least one.
        output: what it returned.
    """
    merged, *others = fields
    for other in others:
        merged = merged.union(other)
    name = operator.removeprefix("aten::")
    if name.startswith("densecrf_cuda::"):
        return _after_own(name.removeprefix("densecrf_cuda::"), arguments, merged)
    if output.dim() != 4:
        return merged.whole()  # nothing tells pixels from channels any more
    source = arguments.get("self", arguments.get("input"))
    if name == "convolution" and not arguments["transposed"]:
        return _after_window(merged, arguments["weight"].shape[2:], arguments)
    if name in ("max_pool2d_with_indices", "avg_pool2d"):
        return _after_window(merged, arguments["kernel_size"], arguments)
    if name.startswith("upsample_") and isinstance(source, Tensor):
        taps = 4 if "bicubic" in name else 2 if "bilinear" in name else 1
        align = arguments.get("align_corners", False)
        sizes = zip(merged, source.shape[2:], output.shape[2:])
        return Field(*(axis.resized(before, wanted, taps, align) for axis, before, wanted in sizes))
    if name == "constant_pad_nd":
        left, _, top, _ = [*arguments["pad"], 0, 0][:4]
        return Field(merged.rows.sliced(-top, 1), merged.columns.sliced(-left, 1))
    if name == "slice" and arguments["dim"] % 4 >= 2:
        axis = arguments["dim"] % 4 - 2
        begin, step = arguments["start"] or 0, arguments["step"]
        length = source.shape[2 + axis] if isinstance(source, Tensor) else 0
        cut = merged[axis].sliced(begin + length if begin < 0 else begin, step)
        return Field(cut, merged.columns) if axis == 0 else Field(merged.rows, cut)
    if isinstance(source, Tensor) and source.dim() == 4 and source.shape[2:] == output.shape[2:]:
        return merged  # value by value, or over channels
    return merged.whole() if isinstance(source, Tensor) else merged


def _after_own(name: str, arguments: Mapping[str, Any], field: Field) -> Field:
    if name not in ("atrous_separable_conv2d", "_depthwise_conv2d"):
        return field.whole()  # the CRF: every pixel beside every other
    left, _, top, _ = arguments["padding"]
    weight = arguments.get("depthwise_weight", arguments.get("weight"))
    kernel = weight.shape[2:] if isinstance(weight, Tensor) else (1, 1)
    return _after_window(field, kernel, {**arguments, "padding": (top, left)})


def _after_window(field: Field, kernel: Sequence[int], arguments: Mapping[str, Any]) -> Field:
    def pair(name: str, default: Sequence[int]) -> Sequence[int]:
        value = arguments.get(name)
        if isinstance(value, int):
            value = (value,)
        value = value or default
        return (*value, *value)[:2]

    kernel = (*kernel, *kernel)[:2]
    sizes = zip(field, kernel, pair("stride", kernel), pair("padding", (0,)), pair("dilation", (1,)))
    return Field(*(axis.window(k, stride=s, padding=p, dilation=d) for axis, k, s, p, d in sizes))
