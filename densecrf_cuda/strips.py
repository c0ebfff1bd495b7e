"""A picture in strips over one lattice: tables of points exist for a strip at a time, vertices are those of them all.

A strip is some whole rows of tiles, with a lattice of its own; where two strips have a vertex in common, its key says
so. Splat adds the rows of a strip's vertices to those of the picture, slice reads them back; the blur is the picture's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ._status import describe
from ._tiles import rows_and_cols, tile_shape
from .footprint import BLUR_LABELS, BLUR_VERTICES
from .ops import LatticeTensors, lattice_build
from .reference.filter import norm_of_row_sums
from .vertices import Vertices

__all__ = ["Cuts", "Source", "StripTables", "StripTerm", "blur", "survey"]

_ops = torch.ops.densecrf_cuda


class Cuts(NamedTuple):
    """Where a picture is cut: each strip has `step` points, a whole number of tiles, but for the last one."""

    grid: tuple[int, ...]
    step: int

    @classmethod
    def of_about(cls, grid: tuple[int, ...], points: int) -> Cuts:
        """Strips of at most so many points, but of one row of tiles at least.

        Example:
            >>> Cuts.of_about((100, 500), 20_000)  # 32 rows of 500
            Cuts(grid=(100, 500), step=16000)
        """
        rows, cols = rows_and_cols(grid)
        tile_rows, tile_cols = tile_shape(grid)
        least = tile_rows * cols if rows > 1 else tile_cols
        return cls(grid, max(1, points // least) * least)

    def strips(self) -> Iterator[tuple[int, int]]:
        """The first point of each strip, and the one after its last."""
        points = math.prod(self.grid)
        return iter([(begin, min(begin + self.step, points)) for begin in range(0, points, self.step)])

    def grid_of(self, begin: int, end: int) -> tuple[int, int]:
        """The grid of a strip by itself."""
        rows, cols = rows_and_cols(self.grid)
        return ((end - begin) // cols, cols) if rows > 1 else (1, end - begin)


@dataclass
class Source:
    """What the features of one picture are made of."""

    guide: Tensor  # [G, N]
    bandwidth: Tensor  # [d], in the dtype of the lattice
    coordinates: bool

    @property
    def dimension(self) -> int:
        """Number of features."""
        return self.bandwidth.shape[0]

    def read(self, cuts: Cuts, begin: int, end: int) -> Tensor:
        """Coordinates and channels of a strip, [1, d, n], as if the picture had not been cut."""
        out = self.bandwidth.new_empty(1, self.dimension, end - begin)
        channels = self.guide.shape[0]
        out[0, self.dimension - channels :] = self.guide[:, begin:end]
        if self.coordinates:
            point = torch.arange(begin, end, device=self.bandwidth.device)
            for i, size in enumerate(reversed(cuts.grid)):
                out[0, i] = point % size
                point.div_(size, rounding_mode="floor")
        return out


class StripTables(NamedTuple):
    """The lattice of a strip, with room for no more vertices than it has."""

    tensors: LatticeTensors
    grid: tuple[int, int]
    partials: int

    def without_spare(self, blank: Tensor) -> StripTables:
        """The same in memory of its own, without what the build left unused; `blank` is long enough for neighbours."""
        tensors = self.tensors
        return self._replace(
            tensors=tensors._replace(
                neighbours=blank[: tensors.neighbours.numel()].view_as(tensors.neighbours),
                tile_vertices=tensors.tile_vertices.clone(),
                vertex_offsets=tensors.vertex_offsets.clone(),
                vertex_partials=tensors.vertex_partials.clone(),
            )
        )


def build_strip(source: Source, cuts: Cuts, begin: int, end: int, read: Tensor | None = None) -> StripTables:
    """The lattice of the points from `begin` to `end`; waits for the device, to know how many vertices there are.

    Raises:
        ValueError: features that no lattice can be built from.
    """
    features = source.read(cuts, begin, end) if read is None else read
    grid, entries = cuts.grid_of(begin, end), (end - begin) * (source.dimension + 1)
    try:
        tensors = lattice_build(features, source.bandwidth, grid, False, entries)
        number = int(tensors.num_vertices)
        if number < 0:
            raise ValueError(describe(-number, points=end - begin, bandwidths=source.bandwidth))
    except ValueError as error:
        raise ValueError(f"{error} (counted from point {begin} of the picture)") from None
    partials = int(tensors.tile_offsets[-1])
    # Splat and slice do not read the neighbours of a strip's own vertices: the first of them stand for their shape.
    blank = tensors.neighbours.view(-1)[: (source.dimension + 1) * number * 2].view(-1, number, 2)
    tensors = tensors._replace(
        tile_vertices=tensors.tile_vertices[:partials],
        vertex_offsets=tensors.vertex_offsets[: number + 1],
        vertex_partials=tensors.vertex_partials[:partials],
        neighbours=blank,
    )
    return StripTables(tensors, grid, partials)


def survey(source: Source, cuts: Cuts) -> tuple[list[Tensor], list[int]]:
    """Keys of the vertices of every strip, [M, words] each, and how many partials it has."""
    keys, partials = [], []
    for begin, end in cuts.strips():
        strip_keys, strip_partials = _survey_strip(source, cuts, begin, end)
        keys.append(strip_keys)
        partials.append(strip_partials)
    return keys, partials


def _survey_strip(source: Source, cuts: Cuts, begin: int, end: int) -> tuple[Tensor, int]:
    features = source.read(cuts, begin, end)
    tables = build_strip(source, cuts, begin, end, features)
    return _ops._lattice_keys(features, source.bandwidth, tables.tensors, tables.grid, False), tables.partials


def blur(rows: Tensor, neighbours: Tensor) -> None:
    """Blur along axis 0, then 1, to d: V_v + (V_(v-) + V_(v+)) / 2, a missing neighbour counting as zero.

    Args:
        rows: [M, C], in place.
        neighbours: [d + 1, 2, M], M where missing.
    """
    count = rows.shape[0]
    for first in range(0, rows.shape[1], BLUR_LABELS):
        columns = rows[:, first : first + BLUR_LABELS]
        front = torch.cat([columns, columns.new_zeros(1, columns.shape[1])])
        back = torch.empty_like(front)
        back[count] = 0
        for back_ids, forth_ids in neighbours:
            for begin in range(0, count, BLUR_VERTICES):
                part = slice(begin, min(begin + BLUR_VERTICES, count))
                sides = front.index_select(0, back_ids[part]).add_(front.index_select(0, forth_ids[part]))
                torch.add(front[part], sides, alpha=0.5, out=back[part])
            front, back = back, front
        columns.copy_(front[:count])


@dataclass
class StripTerm:
    """A pairwise term of one picture in strips.

    Where `keeps` is set, the tables of a strip are made once; else whenever the strip is visited.
    """

    source: Source
    vertices: Vertices
    cuts: Cuts
    normalization: str
    compat: Tensor
    keeps: bool
    norm_rows: Tensor | None = None  # [M, 1], blurred
    kept: list[tuple[StripTables, Tensor | None]] = field(default_factory=list)

    def prepare(self) -> None:
        """Row sums of the filter; and the tables of all strips where they are kept."""
        norm_rows = None if self.normalization == "none" else self.compat.new_zeros(self.vertices.count, 1)
        if norm_rows is None and not self.keeps:
            return
        most = max(ids.numel() for ids in self.vertices.ids)
        blank = self.vertices.neighbours.new_empty((self.source.dimension + 1) * most * 2 if self.keeps else 0)
        for strip, (begin, end) in enumerate(self.cuts.strips()):
            self._prepare_strip(strip, begin, end, norm_rows, blank)
        if norm_rows is not None:
            self.blur(norm_rows)
            self.norm_rows = norm_rows
            self.kept = [(tables, self._norm(strip, tables)) for strip, (tables, _) in enumerate(self.kept)]

    def _prepare_strip(self, strip: int, begin: int, end: int, norm_rows: Tensor | None, blank: Tensor) -> None:
        tables = build_strip(self.source, self.cuts, begin, end)
        if self.keeps:
            self.kept.append((tables.without_spare(blank), None))
        if norm_rows is not None:
            self._add(norm_rows, strip, tables, norm_rows.new_ones(1, end - begin, 1), None)

    def visit(self, strip: int, begin: int, end: int) -> tuple[StripTables, Tensor | None]:
        """Tables of a strip, and its norm [1, n]."""
        if self.keeps:
            return self.kept[strip]
        tables = build_strip(self.source, self.cuts, begin, end)
        return tables, self._norm(strip, tables)

    def subtract_energy(
        self, logits: Tensor, rows: Tensor, strip: int, visit: tuple[StripTables, Tensor | None], group: int
    ) -> None:
        """Logits [n, C] of a strip less compat(filter(Q)), in place; rows [M, C] are blurred."""
        tables, norm = visit
        scale = norm if self.normalization in ("after", "symmetric", "homogeneous") else None
        ids = self.vertices.ids[strip]
        for first in range(0, rows.shape[1], group):
            part = slice(first, first + group)
            own = rows[:, part].index_select(0, ids)
            subtract_part(logits, self.compat, _ops._lattice_slice(own, scale, tables.tensors, tables.grid)[0], part)

    def add_splat(
        self, rows: Tensor, q: Tensor, strip: int, visit: tuple[StripTables, Tensor | None], group: int
    ) -> None:
        """Rows [M, C] plus the splat of Q [n, C] of a strip, in place."""
        tables, norm = visit
        scale = norm if self.normalization in ("before", "symmetric") else None
        for first in range(0, rows.shape[1], group):
            part = slice(first, first + group)
            self._add(rows[:, part], strip, tables, q[None, :, part], scale)

    def blur(self, rows: Tensor) -> None:
        """Blur the rows of the picture's vertices, in place."""
        blur(rows, self.vertices.neighbours)

    def _add(self, rows: Tensor, strip: int, tables: StripTables, values: Tensor, scale: Tensor | None) -> None:
        own = _ops._lattice_splat(values, scale, tables.tensors, tables.grid)
        rows.index_add_(0, self.vertices.ids[strip], own)

    def _norm(self, strip: int, tables: StripTables) -> Tensor | None:
        if self.norm_rows is None:
            return None
        own = self.norm_rows.index_select(0, self.vertices.ids[strip])
        row_sums = _ops._lattice_slice(own, None, tables.tensors, tables.grid)[..., 0]
        return norm_of_row_sums(row_sums, self.normalization)


def subtract_part(logits: Tensor, compat: Tensor, filtered: Tensor, part: slice) -> None:
    """Logits [n, C] less the energy of the filtered labels of `part` alone, [n, c]: in place, see `subtract_energy`."""
    if compat.dim() == 2:
        logits.addmm_(filtered, compat[:, part].mT, alpha=-1)
    else:
        factor = compat if compat.dim() == 0 else compat[part]
        logits[:, part].addcmul_(filtered, factor, value=1 if compat.dim() == 0 else -1)
