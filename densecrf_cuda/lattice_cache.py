"""Lattices of grids alone, kept: a `Gaussian` whose bandwidth is not trained has the same lattice for every image."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._library import has_splat_plan
from ._waiting import is_capturing, may_wait
from .bandwidths import filled
from .lattice import Lattice
from .ops import LatticeTensors

__all__ = ["SpatialLattice", "clear_lattice_cache", "hold", "spatial_lattice"]

MAX_ENTRIES = 8
MAX_BYTES = 256 << 20


class SpatialLattice(NamedTuple):
    """A lattice of the coordinates of a grid, with room for no more vertices than it has. Nobody writes to it."""

    tensors: LatticeTensors
    norm: Tensor  # [1, N]; [0] where there is no normalization
    stream: torch.cuda.Stream | None  # that it was made on, all of it done

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (*self.tensors, self.norm))

    def record_use(self, stream: torch.cuda.Stream) -> None:
        """Keep its memory from being given away while the stream reads it."""
        if stream != self.stream:
            for tensor in (*self.tensors, self.norm):
                tensor.record_stream(stream)


class _Key(NamedTuple):
    grid: tuple[int, ...]
    widths: tuple[float, ...]
    normalization: str
    dtype: torch.dtype
    device: torch.device
    has_splat_plan: bool
    variant: str

    @property
    def least_bytes(self) -> int:
        """Bytes of what does not depend on the number of vertices."""
        points = math.prod(self.grid)
        an_entry = self.dtype.itemsize + (2 + 4 + 8) + (4 if self.has_splat_plan else 0)
        return points * (len(self.grid) + 1) * an_entry


_entries: OrderedDict[_Key, SpatialLattice] = OrderedDict()  # the one used last comes last
_lock = threading.Lock()
_held = threading.local()


def spatial_lattice(
    grid: tuple[int, ...],
    widths: tuple[float, ...],
    normalization: str,
    dtype: torch.dtype,
    like: Tensor,
    *,
    variant: str = "",
    build: Callable[[], Lattice] | None = None,
) -> SpatialLattice | None:
    """The lattice of a grid and its norm on the device of `like`, from the cache or for it; None where it must not be.

    A `variant` is another lattice that follows from the same grid and widths, and `build` makes it.

    That is while torch.compile, a tracer or a fake tensor is at work; while a CUDA graph is captured, unless somebody
    holds what the graph will read (`hold`) and the cache has it; where a lattice that is missing would have to be
    waited for although `no_sync` forbids it; and for a grid whose lattice is too large to be kept.

    Raises:
        ValueError: a bandwidth that is too small for the grid.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or type(like) not in (Tensor, nn.Parameter)
    ):
        return None
    holder: list[SpatialLattice] | None = getattr(_held, "entries", None)
    key = _Key(grid, widths, normalization, dtype, like.device, has_splat_plan(like.device), variant)
    if key.device.type not in ("cpu", "cuda") or key.least_bytes > MAX_BYTES:
        return None
    if is_capturing(key.device) and holder is None:
        return None
    with _lock:
        entry = _entries.get(key)
        if entry is not None:
            _entries.move_to_end(key)
    if entry is None:
        if not may_wait(key.device):
            return None
        entry = _make(key, build)
        _keep(key, entry)
    if holder is not None:
        holder.append(entry)
    elif entry.stream is not None:
        entry.record_use(torch.cuda.current_stream(key.device))
    return entry


def clear_lattice_cache() -> None:
    """Forget the lattices that are kept for `Gaussian` kernels, and give back their memory.

    At most eight lattices and 256 MiB are kept, on all devices together.

    Example:
        >>> clear_lattice_cache()
    """
    with _lock:
        _entries.clear()


@contextmanager
def hold() -> Iterator[list[SpatialLattice]]:
    """Collects what this thread takes from the cache: a CUDA graph reads it for as long as it lives."""
    outer = getattr(_held, "entries", None)
    _held.entries = []
    try:
        yield _held.entries
    finally:
        _held.entries = outer


def _make(key: _Key, build: Callable[[], Lattice] | None) -> SpatialLattice:
    # Whoever comes first: not in a mode of inference that would keep autograd from saving the tensors later.
    with torch.inference_mode(False), torch.no_grad():
        if build is None:
            guide = torch.empty((1, 0, math.prod(key.grid)), dtype=key.dtype, device=key.device)
            lattice = Lattice.on_grid(guide, filled(key.widths, key.dtype, key.device), key.grid, True, watch=False)
        else:
            lattice = build()
        norm = lattice.norm(key.normalization)
        vertices = lattice.num_vertices
        tensors = lattice.tensors._replace(
            vertex_offsets=lattice.tensors.vertex_offsets[: vertices + 1].clone(),
            neighbours=lattice.tensors.neighbours[:, :vertices].contiguous(),
        )
        stream = None
        if key.device.type == "cuda":
            # Complete before anybody sees it: then any stream may read it, one that captures a graph too.
            stream = torch.cuda.current_stream(key.device)
            stream.synchronize()
        return SpatialLattice(tensors, norm, stream)


def _keep(key: _Key, entry: SpatialLattice) -> None:
    if any(type(tensor) is not Tensor for tensor in (*entry.tensors, entry.norm)):
        return
    with _lock:
        _entries[key] = entry
        _entries.move_to_end(key)
        while len(_entries) > MAX_ENTRIES or sum(kept.nbytes for kept in _entries.values()) > MAX_BYTES:
            if len(_entries) == 1:  # a little too large once its vertices are counted, or every call would make it
                break
            _entries.popitem(last=False)
