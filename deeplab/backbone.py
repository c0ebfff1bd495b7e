"""What every backbone has: named feature maps, and an output stride that can be changed at any time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from densecrf_cuda.settings import whole_number

__all__ = ["Backbone", "check_multi_grid", "check_output_stride"]


class Backbone(nn.Module):
    """A network without its classifier, `forward` of which gives feature maps by name.

    Attributes:
        channels: of the maps that there are: "out", the last one; "low", of which a decoder adds details; "aux", which
            an auxiliary classifier reads.
        taps: the names of the maps that `forward` returns, in [B, channels[name], H', W'].
        output_stride: of "out": its sides are those of the input divided by it, rounded up.
    """

    channels: dict[str, int]
    output_stride: int

    def __init__(self, taps: tuple[str, ...] = ("out",)) -> None:
        super().__init__()
        self.taps = taps

    def set_output_stride(self, output_stride: int) -> None:
        """Give "out" another stride: the same kernels with other strides and dilations, no parameter changes.

        Args:
            output_stride: 8, 16 or 32.

        Raises:
            ValueError: another stride.
        """
        raise NotImplementedError

    def tapped(self, **maps: Tensor) -> dict[str, Tensor]:
        """Those of the maps that are asked for; the others can be freed while the network goes on."""
        return {name: maps[name] for name in maps if name in self.taps}


def check_output_stride(output_stride: int, largest: int = 32) -> int:
    """A power of two from 8 to the largest that the strides of a network reach."""
    output_stride = whole_number("output_stride", output_stride, 1)
    allowed = [2**power for power in range(3, largest.bit_length())]
    if output_stride not in allowed:
        raise ValueError(f"output_stride must be {', '.join(map(str, allowed))}, got {output_stride}")
    return output_stride


def check_multi_grid(multi_grid: Sequence[int] | None) -> tuple[int, int, int]:
    """The dilations of three units or convolutions relative to their block; (1, 1, 1) for None."""
    grid = (1, 1, 1) if multi_grid is None else tuple(whole_number("multi_grid", rate, 1) for rate in multi_grid)
    if len(grid) != 3:
        raise ValueError(f"multi_grid must have 3 dilations, got {grid}")
    return grid
