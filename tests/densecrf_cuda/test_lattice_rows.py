"""The ends of the filter by themselves and the keys of vertices: against the reference, the filter, and each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CASES, DOUBLE, SMALL, build, levels, noise, on_cpu, ops, relative

from densecrf_cuda import reference
from densecrf_cuda.reference import LatticeTensors
from densecrf_cuda.reference.filter import blur, make_plan
from densecrf_cuda.strips import Cuts, Source, StripTerm, survey
from densecrf_cuda.vertices import join_vertices


def lattice_of(name: str, device: torch.device, batch: int = 1, dtype: torch.dtype = DOUBLE) -> LatticeTensors:
    case = CASES[name]
    return build(case, levels(batch, case.channels, case.points).to(device), dtype=dtype)


@pytest.mark.parametrize("channels", [1, 3, 40])
@pytest.mark.parametrize("name", ["d1", "d5", "d16"])
def test_equal_the_reference(name: str, channels: int, device: torch.device) -> None:
    case, batch = CASES[name], 2
    lattice = lattice_of(name, device, batch)
    values = noise(batch, case.points, channels).to(device)
    scale = noise(batch, case.points, seed=2).exp().to(device)
    for own in (None, scale, scale[:1]):
        other = None if own is None else own.cpu()
        rows = ops._lattice_splat(values, own, lattice, case.grid)
        expected = reference._lattice_splat(values.cpu(), other, on_cpu(lattice), case.grid)
        assert relative(rows, expected) <= 1e-10
        got = ops._lattice_slice(rows, own, lattice, case.grid)
        assert relative(got, reference._lattice_slice(rows.cpu(), other, on_cpu(lattice), case.grid)) <= 1e-10
    bandwidth = torch.tensor(case.bandwidth, dtype=DOUBLE, device=device)
    problem = (levels(batch, case.channels, case.points).to(device), bandwidth)
    keys = ops._lattice_keys(*problem, lattice, case.grid, case.coordinates)
    expected = reference._lattice_keys(*on_cpu(problem), on_cpu(lattice), case.grid, case.coordinates)
    assert torch.equal(keys.cpu(), expected)
    number = int(lattice.num_vertices)
    image = torch.repeat_interleave(torch.arange(batch), lattice.image_offsets.cpu().diff())
    assert len(torch.cat([image[:, None], expected[:number]], 1).unique(dim=0)) == number


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_splat_blur_and_slice_are_the_filter(dtype: torch.dtype, device: torch.device) -> None:
    case = CASES["d5"]
    lattice = lattice_of("d5", device, dtype=torch.float32)
    values = noise(1, case.points, 3).to(device, dtype)
    rows = ops._lattice_splat(values, None, lattice, case.grid)
    number = int(lattice.num_vertices)
    assert rows.dtype == dtype and not rows[number:].any()
    plan = make_plan(LatticeTensors(*on_cpu(lattice)), case.grid)
    rows[:number] = blur(plan, rows[:number].cpu().float(), False).to(device, dtype)
    got = ops._lattice_slice(rows, None, lattice, case.grid)
    expected = ops.lattice_filter(values, None, None, None, lattice, case.grid, False)
    assert got.dtype == dtype
    # The rows are stored in the dtype of the values, which the filter does only for its result.
    assert relative(got, expected) <= (5e-3 if dtype == torch.float16 else 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_strips_have_the_vertices_of_the_picture(name: str, device: torch.device) -> None:
    case = CASES[name]
    whole = lattice_of(name, device)
    guide = levels(1, case.channels, case.points)[0].to(device)
    source = Source(guide, torch.tensor(case.bandwidth, dtype=DOUBLE, device=device), case.coordinates)
    cuts = Cuts.of_about(case.grid, 1)
    keys, partials = survey(source, cuts)
    vertices = join_vertices(keys, partials, source.dimension)
    number = int(whole.num_vertices)
    assert vertices.count == number
    for axis, expected in zip(vertices.neighbours, whole.neighbours[:, :number]):
        assert [int((side < number).sum()) for side in axis] == [int((side >= 0).sum()) for side in expected.T]
    values = noise(1, case.points, 3).to(device)
    term = StripTerm(source, vertices, cuts, "none", values.new_tensor(1.0), keeps=False)
    rows, filtered = values.new_zeros(number, 3), torch.zeros_like(values[0])
    for strip, ends in enumerate(cuts.strips()):
        term.add_splat(rows, values[0, slice(*ends)], strip, term.visit(strip, *ends), group=2)
    term.blur(rows)
    for strip, ends in enumerate(cuts.strips()):
        term.subtract_energy(filtered[slice(*ends)], rows, strip, term.visit(strip, *ends), group=2)
    expected = ops.lattice_filter(values, None, None, None, whole, case.grid, False)[0]
    assert relative(filtered, expected.cpu()) <= 1e-10  # an energy of -1 · y, subtracted


def test_no_neighbours_beyond_the_range_of_keys() -> None:
    # A step beyond the last coordinate would carry into the next one's bits, where these vertices stand.
    limit, field = 2**20, 2**21
    keys = torch.tensor([[2 * limit - 1 + field * limit], [0 + field * (limit + 2)], [limit + field * limit]])
    vertices = join_vertices([keys], [3], 2)
    assert (vertices.neighbours == 3).all()


def test_empty_values(device: torch.device) -> None:
    lattice = lattice_of("d5", device)
    capacity, grid = lattice.neighbours.shape[1], CASES["d5"].grid
    assert ops._lattice_splat(torch.zeros(1, 561, 0, device=device).double(), None, lattice, grid).shape == (
        capacity,
        0,
    )
    rows = torch.zeros(capacity, 0, device=device).double()
    assert ops._lattice_slice(rows, None, lattice, grid).shape == (1, 561, 0)


def test_opcheck(device: torch.device) -> None:
    lattice = build(SMALL, levels(2, 1, 20).to(device))
    scale = torch.ones(2, 20, device=device)
    rows = ops._lattice_splat(torch.ones(2, 20, 3, device=device), scale, lattice, SMALL.grid)
    torch.library.opcheck(ops._lattice_splat, (torch.ones(2, 20, 3, device=device), scale, lattice, SMALL.grid))
    torch.library.opcheck(ops._lattice_slice, (rows, scale, lattice, SMALL.grid))
    problem = levels(2, 1, 20).to(device), torch.tensor(SMALL.bandwidth, device=device)
    torch.library.opcheck(ops._lattice_keys, (*problem, lattice, SMALL.grid, True))


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("_lattice_splat", {0: torch.ones(1, 20, 3)}, ValueError, "values|batch of the lattice"),
        ("_lattice_splat", {0: torch.ones(2, 19, 3)}, ValueError, r"values must be \[B, (N|20), C\]"),
        ("_lattice_splat", {0: torch.ones(2, 20, 3).double()}, TypeError, "values must have the dtype of the lattice"),
        ("_lattice_splat", {1: torch.ones(2, 19)}, ValueError, r"splat_scale must be \[B, N\]"),
        ("_lattice_slice", {0: torch.ones(7, 3)}, ValueError, "rows must be "),
        ("_lattice_slice", {0: torch.ones(163)}, ValueError, "rows must be "),
        ("_lattice_slice", {1: torch.ones(3, 20)}, ValueError, "batch of the slice_scale"),
        ("_lattice_keys", {0: torch.ones(1, 1, 20)}, ValueError, "guide and bandwidth must be those of the lattice"),
        ("_lattice_keys", {1: torch.ones(3).double()}, TypeError, "bandwidth must have the dtype of the lattice"),
        ("_lattice_keys", {4: False}, ValueError, "bandwidth must have one entry per feature dimension"),
    ],
)
def test_bad_operands(
    name: str, changes: dict[int, Any], error: type[Exception], message: str, device: torch.device
) -> None:
    lattice = list(build(SMALL, levels(2, 1, 20).to(device)))
    arguments: list[Any] = {
        "_lattice_splat": [torch.ones(2, 20, 3), None, lattice, SMALL.grid],
        "_lattice_slice": [torch.ones(lattice[7].shape[1], 3), None, lattice, SMALL.grid],
        "_lattice_keys": [levels(2, 1, 20), torch.tensor(SMALL.bandwidth), lattice, SMALL.grid, True],
    }[name]
    for place, wrong in changes.items():
        arguments[place] = wrong
    arguments = [part.to(device) if isinstance(part, torch.Tensor) else part for part in arguments]
    with pytest.raises(error, match=message):
        getattr(ops, name)(*arguments)
