"""Bytes that an inference has in use at its peak, beside its inputs and its result: the formulas of docs/memory.md.

Letters as there: N points of one picture, C labels, e bytes of a number; per kernel d dimensions, M vertices, P
partials (vertices summed over the tiles in which they occur); n points of a strip, K vertices summed over strips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .lattice import usual_capacity

__all__ = ["KernelSizes", "Sizes", "strip_bytes"]

ROWS_AT_A_TIME = 1 << 16
"""Points whose softmax is taken at a time where the picture itself is not cut."""

BLUR_VERTICES, BLUR_LABELS = 1 << 14, 8
"""Vertices whose neighbours are gathered at a time, and labels that are blurred at a time, where there are strips."""

FUSED_LABELS, FUSED_TERMS = 32, 4  # of csrc/cuda/mean_field.h


class KernelSizes(NamedTuple):
    """What is known of one kernel of one picture; the last three describe its strips."""

    d: int
    vertices: int
    partials: int
    has_norm: bool = True
    joined: int = 0  # K
    strip_vertices: int = 0  # of the strip that has most
    strip_partials: int = 0

    @property
    def corners(self) -> int:
        """Corners of a simplex."""
        return self.d + 1

    @property
    def words(self) -> int:
        """Words of a key."""
        return -(-self.d // 3)


class Sizes(NamedTuple):
    """One picture and what is wanted of it."""

    points: int
    labels: int
    itemsize: int = 4  # e, of the computation
    keeps_q: bool = False  # damping or tolerance
    result_holds_q: bool = True  # it has the type of the computation, and is no labels
    converts: bool = False  # the unary is of another type
    copies_result: bool = False  # into that of a batch
    cuda: bool = False

    def row(self, labels: int) -> int:
        """Bytes of a row of so many labels, padded."""
        if self.cuda:
            return self.itemsize * (labels if labels == 1 else -(-labels // 4) * 4)
        unit = 32 // self.itemsize
        small = 1 << (labels - 1).bit_length()
        return self.itemsize * (small if small < unit else -(-labels // unit) * unit)

    # --- the lattice of n points ---

    def tables(self, points: int, kernel: KernelSizes, vertices: int, partials: int, capacity: int) -> int:
        """Tables of a lattice as the build leaves them, without a norm."""
        entries = points * kernel.corners
        tables = (self.itemsize + 2) * entries + 2 * points
        if self.cuda:
            return tables + 16 * entries + 8 * capacity * (kernel.corners + 1)
        return tables + 8 * vertices * (kernel.corners + 1) + 12 * partials  # the rest is not touched

    def building(self, points: int, kernel: KernelSizes, vertices: int, partials: int, capacity: int) -> int:
        """What a build needs beside the tables."""
        entries = points * kernel.corners
        if not self.cuda:
            return 8 * partials + (64 + 16 * kernel.words) * vertices
        slots = max(64, 1 << (entries + entries // 4 - 1).bit_length())
        return 8 * slots + (8 * kernel.words + 8) * entries + 8 * capacity

    def filtering(self, points: int, kernel: KernelSizes, labels: int, sizes: tuple[int, int, int]) -> int:
        """Rows while some labels pass through a lattice of so many vertices, partials and reserved vertices."""
        vertices, partials, capacity = sizes
        if not self.cuda:
            return self.row(min(labels, 128)) * (partials + 2 * vertices)
        back = max(capacity, points * kernel.corners)
        front = back if (kernel.d + 2) // 2 % 2 else capacity
        return self.row(min(labels, 128 // self.itemsize)) * (back + front)

    def norming(self, points: int) -> int:
        """From row sums to a norm, in double."""
        return (2 * self.itemsize + 16) * points

    # --- plans ---

    def whole(self, kernels: Sequence[KernelSizes]) -> int:
        """The fused inference: nothing is cut."""
        e, points, labels = self.itemsize, self.points, self.labels
        building, tables = self._lattices(kernels)
        row = self.row(labels)
        numbers = (2 * self.itemsize * points * labels) if self.converts else 0
        if self.cuda:
            numbers += e * points * labels * self.keeps_q
            if labels > FUSED_LABELS or e > 4 or len(kernels) > FUSED_TERMS:
                numbers += 3 * e * points * labels
        else:
            numbers += points * row * (1 + self.keeps_q) + 2 * e * points * sum(k.has_norm for k in kernels)
        rows = sum(self.filtering(points, k, labels, self._known(k)) for k in kernels)
        return max(building, tables + numbers + rows) + self._copy()

    def by_labels(self, kernels: Sequence[KernelSizes], group: int) -> int:
        """Groups of labels pass through the lattices of the whole picture."""
        e, points, labels = self.itemsize, self.points, self.labels
        building, tables = self._lattices(kernels)
        numbers = e * points * labels * (1 if self.result_holds_q else 2)
        rows = max((self.filtering(points, k, group, self._known(k)) for k in kernels), default=0)
        softmax = 3 * e * labels * min(points, ROWS_AT_A_TIME)
        return max(building, tables + numbers + max(e * points * group + rows, softmax))

    def by_strips(self, kernels: Sequence[KernelSizes], group: int, strip: int, keeps_tables: bool) -> int:
        """Points in strips, vertices all at once."""
        e, labels, strip = self.itemsize, self.labels, min(strip, self.points)
        vertices = sum(8 * k.corners * k.vertices + 4 * k.joined + e * k.vertices * k.has_norm for k in kernels)
        kept = e * self.points * labels * (self.keeps_q and not self.result_holds_q)
        tables = 0
        for k in kernels if keeps_tables else ():
            tables += (self.itemsize + 2) * self.points * k.corners + 2 * self.points + 12 * k.partials + 8 * k.joined
            tables += e * self.points * k.has_norm + 8 * k.corners * k.strip_vertices
            tables += 4 * self.points * k.corners if self.cuda else 0
        rows = 2 * e * labels * sum(k.vertices for k in kernels)
        visiting = max(strip_bytes(self, kernels, group, strip, keeps_tables, part) for part in ("making", "using"))
        blurring = max(
            (2 * e * min(BLUR_LABELS, labels) * (k.vertices + min(k.vertices, BLUR_VERTICES)) for k in kernels),
            default=0,
        )
        making = strip_bytes(self, kernels, 1, strip, False, "making")
        steady = vertices + kept + tables + max(rows + visiting, rows // 2 + blurring)
        return max(self.counting(kernels, strip), vertices + tables + making, steady)

    def counting(self, kernels: Sequence[KernelSizes], strip: int) -> int:
        """Finding the vertices of a picture, which comes before every plan but for ample bounds."""
        peak = before = 0
        for k in kernels:
            joining = max(
                16 * k.words * k.joined,
                (8 * k.words + 56) * k.joined,
                8 * k.joined + k.vertices * (8 * (2 * k.words - 1) + 16 * k.words + 40 + 8 * k.corners),
            )
            making = strip_bytes(self, [k], 1, min(strip, self.points), False, "making") + 8 * k.words * k.joined
            peak = max(peak, before + max(joining, making))
            before += 8 * k.corners * k.vertices + 4 * k.joined
        return peak

    def _lattices(self, kernels: Sequence[KernelSizes]) -> tuple[int, int]:
        """Peak while lattices and norms of the whole picture are made, and what they take then."""
        peak = tables = 0
        for k in kernels:
            known = self._known(k)
            tables += self.tables(self.points, k, *known)
            making = self.building(self.points, k, *known)
            if k.has_norm:
                making = max(making, self.norming(self.points) + self.filtering(self.points, k, 1, known))
            peak = max(peak, tables + making)
            tables += self.itemsize * self.points * k.has_norm
        return peak, tables

    def _known(self, kernel: KernelSizes) -> tuple[int, int, int]:
        return kernel.vertices, kernel.partials, usual_capacity(self.points, kernel.d)

    def _copy(self) -> int:
        return self.itemsize * self.points * self.labels if self.copies_result else 0


def strip_bytes(
    sizes: Sizes, kernels: Sequence[KernelSizes], group: int, strip: int, keeps_tables: bool, part: str
) -> int:
    """What one strip takes while its tables are made, or while they are used."""
    e, labels, group = sizes.itemsize, sizes.labels, min(group, sizes.labels)
    known = [(k, k.strip_vertices, k.strip_partials, strip * k.corners) for k in kernels]
    tables = making = rows = 0
    for k, *own in known:
        if not keeps_tables:
            tables += sizes.tables(strip, k, *own)
            building = e * k.d * strip + sizes.building(strip, k, *own) + 8 * k.words * k.strip_vertices
            making = max(making, tables + max(building, sizes.norming(strip) * k.has_norm))
            tables += e * strip * k.has_norm
        vertices, partials, _ = own
        sliced = e * strip * group + (e * group + sizes.row(group)) * vertices
        splat = sizes.filtering(strip, k, group, (vertices, partials, vertices)) + e * group * vertices
        rows = max(rows, sliced, e * strip * labels * (2 if sizes.keeps_q else 1) + splat)
    return making if part == "making" else tables + e * strip * labels + max(rows, e * strip * labels)
