"""The least time that an inference can take, from the bytes it has to move and how fast a card moves them.

Three levels of memory, each with its own rate: the card's memory, the L2 cache, and the L1 caches with shared memory.
One iteration of mean field is three stages, and each takes as long as the slowest level needs:

    fused    slice of all kernels, update of Q, splat to the partial sums of each tile, in one pass over the points
    gather   partial sums to the rows of the vertices
    blur     two axes of the lattice at a time

Rows are padded to 16 bytes. Tables of the bilateral lattice are built once, those of the Gaussian kernel are kept.
Nothing is counted for launches, nor for instructions, which set a floor of their own at small sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from densecrf_cuda.ops import LatticeTensors

FLOAT = 4


class Rates(NamedTuple):
    """Bytes per second."""

    dram: float
    l2: float
    l1: float


class Sizes(NamedTuple):
    """What a lattice has: points, corners of a simplex, vertices, partial sums, and neighbours that exist."""

    points: int
    corners: int
    vertices: int
    partials: int
    neighbours: int

    @classmethod
    def of(cls, lattice: LatticeTensors) -> Sizes:
        batch, points, corners = lattice.weights.shape
        vertices = int(lattice.num_vertices)
        present = int((lattice.neighbours[:, :vertices] >= 0).sum())
        return cls(batch * points, corners, vertices, int(lattice.tile_offsets[-1]), present)

    @property
    def table_bytes(self) -> int:
        """Of everything that a build writes: weights, ids, order and plan of the points, lists, neighbours."""
        each_point = self.corners * (FLOAT + 2 + 4) + 2
        return self.points * each_point + 12 * self.partials + 8 * self.vertices * (1 + self.corners)


class Stage(NamedTuple):
    """Bytes that one stage moves on each level."""

    dram: float
    l2: float
    l1: float

    def seconds(self, rates: Rates) -> float:
        return max(mine / rate for mine, rate in zip(self, rates))


def row_bytes(channels: int, precision: str) -> int:
    return -(-channels * (2 if precision == "fp16" else FLOAT) // 16) * 16


def iteration(lattices: Sequence[Sizes], row: int, unary_row: int | None = None) -> dict[str, Stage]:
    """The stages of one iteration with rows of so many bytes; `unary_row` is also read at each point."""
    points = lattices[0].points * (row if unary_row is None else unary_row)
    tables = sum(s.points * s.corners * (FLOAT + 2) for s in lattices)
    partials, vertices = sum(s.partials for s in lattices), sum(s.vertices for s in lattices)
    fused = points + tables + 2 * partials * row
    gather = (partials + vertices) * row
    passes = sum(s.vertices * 2 * -(-s.corners // 2) for s in lattices) * row
    neighbours = sum(8 * s.vertices * s.corners for s in lattices)
    return {
        "fused": Stage(fused, fused, 2 * row * sum(s.points * s.corners for s in lattices)),
        "gather": Stage(gather, gather, gather),
        "blur": Stage(passes + neighbours, passes + neighbours + sum(s.neighbours for s in lattices) * row, 0),
    }


def iteration_seconds(lattices: Sequence[Sizes], row: int, rates: Rates) -> float:
    return sum(stage.seconds(rates) for stage in iteration(lattices, row).values())


def build_seconds(lattice: Sizes, rates: Rates) -> float:
    """Tables written, and the norm: a filter of one channel."""
    norm = iteration([lattice], FLOAT)
    return lattice.table_bytes / rates.dram + sum(stage.seconds(rates) for stage in norm.values())


def inference_seconds(
    lattices: Sequence[Sizes], channels: int, iterations: int, precision: str, rates: Rates, image_channels: int = 3
) -> float:
    """Unary and image read, result written, the last lattice built, and every iteration."""
    points = lattices[0].points
    compulsory = points * (2 * channels * FLOAT + image_channels) / rates.dram
    each = iteration_seconds(lattices, row_bytes(channels, precision), rates)
    return compulsory + build_seconds(lattices[-1], rates) + iterations * each


def training_seconds(lattices: Sequence[Sizes], channels: int, iterations: int, rates: Rates) -> float:
    """An inference that keeps Q of every iteration, and as many iterations back, which read it."""
    points, row = lattices[0].points, row_bytes(channels, "fp32")
    forward = inference_seconds(lattices, channels, iterations, "fp32", rates)
    history = 2 * iterations * points * channels * FLOAT / rates.dram
    gradients = 2 * points * channels * FLOAT / rates.dram
    return forward + history + gradients + iterations * iteration_seconds(lattices, row, rates)
