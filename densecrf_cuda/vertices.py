"""The vertices of a picture whose lattice is built part by part: equal keys are one vertex."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Vertices", "join_vertices"]

FIELD_BITS, FIELDS_PER_WORD = 21, 3  # of keys, see `reference.rows`


@dataclass
class Vertices:
    """The vertices of a picture."""

    count: int
    neighbours: Tensor  # [d + 1, 2, M] int32: one step back and forth along each axis, M where missing
    ids: list[Tensor]  # by strip: which vertex of the picture each of its own is, int32
    partials: list[int]  # by strip


def join_vertices(keys: list[Tensor], partials: list[int], d: int) -> Vertices:
    """Number the vertices of all strips together, in the order of their keys, and find their neighbours.

    Args:
        keys: by strip, [M, words]; emptied, so that they need not exist twice.
        partials: by strip.
        d: dimensions of the lattice.
    """
    sizes = [strip.shape[0] for strip in keys]
    columns = [torch.cat([strip[:, w] for strip in keys]) for w in range(keys[0].shape[1])]
    keys.clear()
    index = _KeyIndex(columns)
    own = index.distinct(columns)
    columns.clear()
    count = own[0].numel()
    neighbours = torch.full((d + 1, 2, count), count, dtype=torch.int32, device=own[0].device)
    ids = torch.arange(count, dtype=torch.int32, device=own[0].device)
    for axis in range(d + 1):
        place, found = index.find(_step(own, axis, d))
        found &= _has_neighbour(own, axis, d)
        place = place[found]
        neighbours[axis, 1, found] = place.to(torch.int32)
        neighbours[axis, 0, place] = ids[found]  # the step back is the same pair of vertices
    return Vertices(count, neighbours, list(index.take_numbers().to(torch.int32).split(sizes)), partials)


class _KeyIndex:
    """Numbers of the distinct rows of a table of one or more columns, in lexicographic order."""

    def __init__(self, columns: Sequence[Tensor]) -> None:
        self._tables: list[Tensor] = []
        number: Tensor | None = None
        for column in columns:
            values, code = torch.unique(column, return_inverse=True)
            self._tables.append(values)
            if number is not None:
                values, code = torch.unique(code.add_(number, alpha=values.numel()), return_inverse=True)
                self._tables.append(values)
            number = code
        assert number is not None
        self._number: Tensor = number

    def distinct(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """Each distinct row once, in order."""
        count = self._tables[-1].numel()
        first = self._number.new_empty(count)
        first[self._number] = torch.arange(self._number.numel(), device=first.device)  # any of equal rows will do
        return [column[first] for column in columns]

    def find(self, columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Number of each row, and whether there is such a row."""
        number, found, tables = None, None, iter(self._tables)
        for column in columns:
            values = next(tables)
            code, known = _look_up(values, column)
            if number is not None:
                code, also = _look_up(next(tables), code.add_(number, alpha=values.numel()))
                known &= also
            number, found = code, known if found is None else found & known
        assert number is not None and found is not None
        return number, found

    def take_numbers(self) -> Tensor:
        """The number of each row that the table was made of."""
        return self._number


def _look_up(values: Tensor, sought: Tensor) -> tuple[Tensor, Tensor]:
    place = torch.searchsorted(values, sought).clamp_(max=values.numel() - 1)
    return place, values[place] == sought


def _step(keys: Sequence[Tensor], axis: int, d: int) -> list[Tensor]:
    """Keys one step forth along an axis: all coordinates +1, that of the axis -d."""
    moved = []
    for w, key in enumerate(keys):
        fields = range(w * FIELDS_PER_WORD, min(d, (w + 1) * FIELDS_PER_WORD))
        moved.append(key + sum((-d if i == axis else 1) << FIELD_BITS * (i % FIELDS_PER_WORD) for i in fields))
    return moved


def _has_neighbour(keys: Sequence[Tensor], axis: int, d: int) -> Tensor:
    """Whether a step forth stays in the range of keys: beyond it would carry into the next coordinate."""
    inside = torch.ones_like(keys[0], dtype=torch.bool)
    for i in range(d):
        coordinate = (keys[i // FIELDS_PER_WORD] >> FIELD_BITS * (i % FIELDS_PER_WORD)) & ((1 << FIELD_BITS) - 1)
        inside &= coordinate >= d if i == axis else coordinate < (1 << FIELD_BITS) - 1
    return inside
