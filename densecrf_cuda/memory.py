"""Which plan of an inference fits a bound of memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .footprint import KernelSizes, Sizes, strip_bytes

__all__ = ["MemoryPlan", "bound_for", "choose_plan", "fits_in_any_case", "parse_max_memory", "plans_of", "strip_points"]

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
UNITS |= {"tb": 10**12, "tib": 1 << 40}

MARGIN = 15
"""Percent by which measured peaks may exceed the formula."""

MOST_STRIP_POINTS = 1 << 19
"""Points of a strip: larger ones are no faster."""

GROUPS = (128, 64, 32, 16, 8, 4, 2, 1)


class MemoryPlan(NamedTuple):
    """A way to run an inference, and the memory that it takes beside its inputs and its result.

    Attributes:
        kind: "whole" (everything at once, fastest), "labels" (a group of labels at a time passes through the lattice)
            or "strips" (points exist for a strip of the picture at a time).
        nbytes: at the peak, by the formula of docs/memory.md.
        labels: that are filtered at a time.
        points: of a strip; those of the picture where it is not cut.
        keeps_tables: whether the tables of all strips are kept; otherwise they are made anew in each iteration.
    """

    kind: str
    nbytes: int
    labels: int
    points: int
    keeps_tables: bool = True

    @property
    def max_memory(self) -> int:
        """The least bound under which the plan is run: what allocators add to the formula fits as well."""
        return bound_for(self.nbytes)


def bound_for(nbytes: int) -> int:
    """The least bound that leaves a margin to so many bytes."""
    return nbytes + -(-nbytes * MARGIN // 100)


def parse_max_memory(bound: int | str | None) -> int | None:
    """Bytes, from a number or from text like "2GiB", "500 MB".

    Raises:
        ValueError: not positive, or text that is no size.
        TypeError: neither a whole number nor text.

    Example:
        >>> parse_max_memory("1.5GiB")
        1610612736
    """
    if bound is None:
        return None
    if isinstance(bound, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", bound.lower())
        if match is None or match[2] not in UNITS:
            raise ValueError(f"max_memory must be a size like 500000000, '500MB' or '2GiB', got {bound!r}")
        number = int(float(match[1]) * UNITS[match[2]])
    elif isinstance(bound, bool) or not isinstance(bound, int):
        raise TypeError(f"max_memory must be a whole number of bytes or text like '2GiB', got {bound!r}")
    else:
        number = bound
    if number <= 0:
        raise ValueError(f"max_memory must be positive, got {bound!r}")
    return number


def fits_in_any_case(sizes: Sizes, dimensions: Sequence[KernelSizes], batch: int, bound: int) -> bool:
    """Whether a batch fits uncut even if every point had a simplex of its own: then nothing needs to be counted."""
    entries = [sizes.points * k.corners for k in dimensions]
    most = [k._replace(vertices=count, partials=count) for k, count in zip(dimensions, entries)]
    return bound_for(batch * sizes._replace(copies_result=False).whole(most)) <= bound


def strip_points(sizes: Sizes, dimensions: Sequence[KernelSizes], bound: int | None) -> int:
    """Points of strips that take no more than about a quarter of the bound."""
    if bound is None:
        return MOST_STRIP_POINTS
    # Before anything is counted: a partial for each point, which is more than pictures have.
    guess = [k._replace(strip_vertices=512, strip_partials=1024) for k in dimensions]
    each = max(strip_bytes(sizes, guess, GROUPS[0], 1024, False, part) for part in ("making", "using")) / 1024
    return min(MOST_STRIP_POINTS, int(bound / 4 / each))


def plans_of(sizes: Sizes, kernels: Sequence[KernelSizes], strip: int) -> Iterator[MemoryPlan]:
    """All plans, the fastest first."""
    groups = sorted({min(group, sizes.labels) for group in GROUPS}, reverse=True)
    points, counting = sizes.points, sizes.counting(kernels, strip)
    uncut = not sizes.cuda or all(points * k.corners < 2**32 - 1 for k in kernels)  # else places have no number
    if uncut:
        yield MemoryPlan("whole", max(counting, sizes.whole(kernels)), sizes.labels, points)
        for group in [group for group in groups if group < sizes.labels]:
            yield MemoryPlan("labels", max(counting, sizes.by_labels(kernels, group)), group, points)
    for keeps in (True, False):
        for group in groups:
            yield MemoryPlan("strips", sizes.by_strips(kernels, group, strip, keeps), group, min(strip, points), keeps)


def choose_plan(plans: Sequence[MemoryPlan], bound: int) -> MemoryPlan | None:
    """The first that fits."""
    return next((plan for plan in plans if plan.max_memory <= bound), None)
