"""Inputs and comparisons that the tests of the operators share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from densecrf_cuda import reference
from densecrf_cuda._status import describe
from densecrf_cuda._tiles import num_tiles, tile_order
from densecrf_cuda.reference import LatticeTensors

ops = torch.ops.densecrf_cuda
DOUBLE = torch.float64


class Case(NamedTuple):
    """What a lattice is built from, without the images."""

    grid: tuple[int, ...]
    coordinates: bool
    bandwidth: list[float]

    @property
    def points(self) -> int:
        return math.prod(self.grid)

    @property
    def channels(self) -> int:
        return len(self.bandwidth) - (len(self.grid) if self.coordinates else 0)


# Whole bandwidths beside whole coordinates and grey levels put points exactly on the faces of simplices.
CASES = {
    "d1": Case((300,), True, [1.7]),
    "d2-ties": Case((20, 35), True, [3.0, 3.0]),
    "d3-grey-ties": Case((17, 33), True, [4.0, 4.0, 10.0]),
    "d5": Case((17, 33), True, [5.0, 7.0, 13.0, 11.0, 17.0]),
    "d4-volume": Case((3, 5, 17), True, [2.0, 2.0, 1.5, 20.0]),
    "d8": Case((5, 40), False, [60.0] * 8),
    "d16": Case((90,), False, [80.0] * 16),
}


def levels(batch: int, channels: int, points: int, seed: int = 0) -> Tensor:
    """A guide of a few grey levels in patches, [B, G, N] uint8: exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randint(6, (batch, channels, math.ceil(points / 3)), generator=generator)
    return (40 * rough).repeat_interleave(3, 2)[..., :points].to(torch.uint8)


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = DOUBLE) -> Tensor:
    """Normal numbers, drawn in double: the same in every dtype but for rounding."""
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def build(
    case: Case, guide: Tensor | None = None, batch: int = 1, dtype: torch.dtype = torch.float32, spare: int = 3
) -> LatticeTensors:
    """The compiled lattice of a case, with room for a few vertices more than there can be."""
    guide = levels(batch, case.channels, case.points) if guide is None else guide
    capacity = guide.shape[0] * case.points * (len(case.bandwidth) + 1) + spare
    bandwidth = torch.tensor(case.bandwidth, dtype=dtype, device=guide.device)
    return LatticeTensors(*ops.lattice_build(guide, bandwidth, case.grid, case.coordinates, capacity))


def used_parts(lattice: Sequence[Tensor]) -> dict[str, Tensor]:
    """The tensors of a lattice on the CPU, cut to what is defined."""
    tensors = LatticeTensors(*(tensor.cpu() for tensor in lattice))
    vertices, partials = int(tensors.num_vertices), int(tensors.tile_offsets[-1])
    return tensors._replace(
        tile_vertices=tensors.tile_vertices[:partials],
        vertex_offsets=tensors.vertex_offsets[: vertices + 1],
        vertex_partials=tensors.vertex_partials[:partials],
        neighbours=tensors.neighbours[:, :vertices],
    )._asdict()


def assert_same_lattice(got: Sequence[Tensor], expected: Sequence[Tensor], grid: tuple[int, ...] | None = None) -> None:
    """Equal in every integer and in every bit of the weights: the arithmetic and its order are the same.

    The plan of the splat, which only some devices make, is held against its definition where the grid is named.
    """
    ours, theirs = used_parts(got), used_parts(expected)
    plans = [parts.pop("splat_plan") for parts in (ours, theirs)]
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    for plan in plans:
        assert plan.dtype == torch.int16
        assert plan.shape in ((2, 0), (2, ours["weights"].numel()))
        if grid is not None and plan.numel():
            assert_splat_plan(ours, plan, grid)
    if all(plan.numel() for plan in plans):
        assert torch.equal(plans[0][0], plans[1][0])


def assert_splat_plan(parts: dict[str, Tensor], plan: Tensor, grid: tuple[int, ...]) -> None:
    """Row 0 lists the entries of each tile by vertex, row 1 says where those of each vertex start."""
    batch, _, corners = parts["local_ids"].shape
    tiles, (_, tile) = num_tiles(grid), tile_order(grid)
    sizes = (torch.bincount(tile, minlength=tiles) * corners).tolist()
    lists = parts["local_ids"].reshape(-1).long().split(sizes * batch)
    order, starts = (row.long().split(sizes * batch) for row in plan)
    for t, (local_ids, vertices) in enumerate(zip(lists, parts["tile_offsets"].diff().tolist())):
        assert torch.equal(order[t], local_ids.sort(stable=True).indices), t
        counts = torch.bincount(local_ids, minlength=vertices)
        assert torch.equal(starts[t][:vertices], counts.cumsum(0) - counts), t


def on_cpu(lattice: Iterable[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """A lattice for the reference: on the CPU and, where asked for, the same weights in another precision."""
    return [tensor.cpu().to(dtype) if dtype and tensor.is_floating_point() else tensor.cpu() for tensor in lattice]


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the largest expected number."""
    if expected.numel() == 0:
        return 0.0
    return float((got.cpu().double() - expected.double()).abs().max() / expected.double().abs().max())


def assert_as_exact_as_torch(got: Tensor, torch_result: Tensor, exact: Tensor, units: int = 1) -> None:
    """At most twice the float32 error of plain PyTorch.

    Beside it a unit in the last place of the largest number (or several): PyTorch may hit the exact result by chance.
    """
    assert relative(got, exact) <= 2 * relative(torch_result, exact) + units * 2**-23


def filter_reference(
    values: Tensor,
    lattice: Sequence[Tensor],
    grid: Sequence[int],
    scales: tuple[Tensor | None, Tensor | None] = (None, None),
    reverse: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The reference filter on the CPU, in the precision of the lattice or another one."""
    dtype = dtype or lattice[0].dtype
    splat, slice_ = (None if scale is None else scale.cpu().to(dtype) for scale in scales)
    return reference.lattice_filter(values.cpu().to(dtype), None, splat, slice_, on_cpu(lattice, dtype), grid, reverse)


SMALL = Case((4, 5), True, [2.0, 2.0, 13.0])


class Term(NamedTuple):
    lattice: LatticeTensors
    norm: Tensor
    normalization: str
    compat: Tensor


def compatibility(form: str, classes: int, strength: float = 3.0) -> Tensor:
    """Parameters that smooth, different from label to label."""
    if form == "potts":
        return torch.tensor(strength, dtype=DOUBLE)
    diagonal = -strength * torch.linspace(0.5, 1.5, classes, dtype=DOUBLE)
    return diagonal if form == "diagonal" else torch.diag(diagonal) + noise(classes, classes) / classes


def make_term(
    case: Case,
    guide: Tensor,
    compat: Tensor,
    normalization: str = "symmetric",
    dtype: torch.dtype = torch.float32,
) -> Term:
    lattice = build(case, guide, dtype=dtype)
    ones = lattice.weights.new_ones(guide.shape[0], case.points, 1)
    row_sums = ops.lattice_filter(ones, None, None, None, lattice, case.grid, False)[..., 0]
    norm = {"none": row_sums.new_empty(0), "symmetric": row_sums.rsqrt()}.get(normalization, 1 / row_sums)
    if normalization == "none":
        compat = compat / 30  # a row of the kernel sums to about 30, not to 1
    return Term(lattice, norm, normalization, compat.to(guide.device, dtype))


def infer_with_status(
    unary: Tensor, terms: list[Term], case: Case = CASES["d5"], iterations: int = 5, **settings: Any
) -> tuple[Tensor, Tensor]:
    options = {"damping": 0.0, "tol": -1.0, "output": "probabilities", "precision": "fp32"} | settings
    lattices = [tensor for term in terms for tensor in term.lattice]
    _, norms, names, compats = zip(*terms) if terms else ((), (), (), ())
    return ops.mean_field(unary, lattices, norms, names, compats, case.grid, iterations, *options.values())


def infer(unary: Tensor, terms: list[Term], case: Case = CASES["d5"], iterations: int = 5, **settings: Any) -> Tensor:
    return infer_with_status(unary, terms, case, iterations, **settings)[0]


def expect_fault(rung: str, pattern: str, run: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor] | None:
    """What only the data can show: an error of the CPU, elsewhere a fault word beside outputs of NaN (labels: -1).

    Args:
        rung: "cpu", or the name of one that waits for no result.
        pattern: of the message, as far as the word carries it.
        run: calls an operator that returns a lattice, or a result, others and a status.

    Returns:
        The outputs, where there are any.
    """
    if rung == "cpu":
        with pytest.raises(ValueError, match=pattern):
            run()
        return None
    outputs = run()
    if len(outputs) == len(LatticeTensors._fields):
        lattice = LatticeTensors(*outputs)
        words, points = -lattice.num_vertices[None], lattice.weights.shape[1]
    else:
        result, words, points = outputs[0], outputs[-1], outputs[0].shape[-1]
        poison = result.isnan() if result.is_floating_point() else result == -1
        assert torch.equal(poison.flatten(1).all(1), words != 0)
    found = [describe(word, points=points, image=b) for b, word in enumerate(words.tolist()) if word != 0]
    assert any(re.search(pattern, message) for message in found), (pattern, found)
    return outputs


def layouts(tensor: Tensor) -> dict[str, Tensor]:
    """The same numbers in other strides; the last two axes are the ones that are laid out in several ways."""
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), torch.nan).to(tensor)
    wide[..., 1::2] = tensor
    sparse = torch.full((*tensor.shape[:-2], 3 * tensor.shape[-2], tensor.shape[-1]), torch.nan).to(tensor)
    sparse[..., ::3, :] = tensor
    offset = torch.full((tensor.numel() + 1,), torch.nan).to(tensor)
    offset[1:] = tensor.reshape(-1)
    return {
        "last axis first": tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
        "first axis last": tensor.movedim(0, -1).contiguous().movedim(-1, 0),
        "every other of the last axis": wide[..., 1::2],
        "every third of the axis before": sparse[..., ::3, :],
        "unaligned": offset[1:].reshape(tensor.shape),
    }


def for_threads(run: Callable[[], Sequence[Tensor]], counts: Sequence[int] = (1, 2, 3)) -> list[list[Tensor]]:
    """Results for each number of threads, and once more for the last; use with the fixture `restore_threads`."""
    results = []
    for count in (*counts, counts[-1]):
        torch.set_num_threads(count)
        results.append([tensor.clone() for tensor in run()])
    return results
