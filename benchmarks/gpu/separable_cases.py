"""Separable convolutions of networks for pictures of 513 x 513 points, and the least time that a card takes for one."""

from __future__ import annotations

from typing import NamedTuple

KERNEL = 3


class Case(NamedTuple):
    """One convolution: how often the network has it, channels, height in and out (of squares), stride, dilation."""

    name: str
    count: int
    channels: int
    out_channels: int
    size: int
    out_size: int
    dilation: int = 1

    @property
    def stride(self) -> int:
        return 1 if self.size == self.out_size else 2

    def title(self) -> str:
        sizes = f"{self.channels}>{self.out_channels}, {self.size}>{self.out_size}, d{self.dilation}"
        return f"{self.name} ({sizes})" + (f" x {self.count}" if self.count > 1 else "")


def xception(output_stride: int) -> list[Case]:
    low, rate = (33, 1) if output_stride == 16 else (65, 2)
    rates = (6, 12, 18) if output_stride == 16 else (12, 24, 36)
    last_entry = [Case("entry3.sep3", 1, 728, 728, 65, 33)] if output_stride == 16 else []
    return [
        Case("entry1.sep1", 1, 64, 128, 257, 257),
        Case("entry1.sep2", 1, 128, 128, 257, 257),
        Case("entry1.sep3", 1, 128, 128, 257, 129),
        Case("entry2.sep1", 1, 128, 256, 129, 129),
        Case("entry2.sep2", 1, 256, 256, 129, 129),
        Case("entry2.sep3", 1, 256, 256, 129, 65),
        Case("entry3.sep1", 1, 256, 728, 65, 65),
        Case("entry3.sep2", 1 if last_entry else 2, 728, 728, 65, 65),
        *last_entry,
        Case("middle", 48, 728, 728, low, low, rate),
        Case("exit1.sep1", 1, 728, 728, low, low, rate),
        Case("exit1.sep2", 1, 728, 1024, low, low, rate),
        Case("exit1.sep3", 1, 1024, 1024, low, low, rate),
        Case("exit2.sep1", 1, 1024, 1536, low, low, 2 * rate),
        Case("exit2.sep2", 1, 1536, 1536, low, low, 2 * rate),
        Case("exit2.sep3", 1, 1536, 2048, low, low, 2 * rate),
        *(Case(f"aspp.r{rate}", 1, 2048, 256, low, low, rate) for rate in rates),
        Case("dec0", 1, 304, 256, 129, 129),
        Case("dec1", 1, 256, 256, 129, 129),
    ]


def mobilenet(output_stride: int) -> list[Case]:
    low, rate = (33, 1) if output_stride == 16 else (65, 2)
    rows = [
        (1, 32, 16, 257, 257, 1),
        (1, 96, 24, 257, 129, 1),
        (1, 144, 24, 129, 129, 1),
        (1, 144, 32, 129, 65, 1),
        (2, 192, 32, 65, 65, 1),
        (1, 192, 64, 65, low, 1),
        (3, 384, 64, low, low, rate),
        (1, 384, 96, low, low, rate),
        (2, 576, 96, low, low, rate),
        (1, 576, 160, low, low, rate),
        (2, 960, 160, low, low, 2 * rate),
        (1, 960, 320, low, low, 2 * rate),
    ]
    return [Case("mnv2", *row) for row in rows]


CASES = {f"{net.__name__} OS{stride}": net(stride) for net in (xception, mobilenet) for stride in (16, 8)}
SMALL = {"small": [Case("small", 1, 16, 8, 9, 9, 4), Case("small", 1, 24, 40, 8, 4)]}


class Rates(NamedTuple):
    """Bytes per second of memory; operations per second of the pointwise product and of the ordinary cores."""

    memory: float
    product: float
    ordinary: float


def least_seconds(case: Case, batch: int, item: int, rates: Rates) -> float:
    pixels, out_pixels = batch * case.size**2, batch * case.out_size**2
    moved = item * (pixels * case.channels + case.channels * case.out_channels + out_pixels * case.out_channels)
    depthwise = 2 * KERNEL**2 * out_pixels * case.channels
    product = 2 * out_pixels * case.channels * case.out_channels
    return max(moved / rates.memory, product / rates.product, depthwise / rates.ordinary)
