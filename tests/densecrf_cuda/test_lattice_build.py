"""`lattice_build`: the reference bit for bit, whatever the dtype, the layout, the threads and the processor."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import (
    CASES,
    DOUBLE,
    Case,
    assert_same_lattice,
    build,
    expect_fault,
    for_threads,
    levels,
    noise,
    ops,
    used_parts,
)
from torch import Tensor

from densecrf_cuda import _C, reference

DTYPES = [torch.float32, torch.float64]
GUIDE_DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def build_reference(case: Case, guide: Tensor, dtype: torch.dtype) -> list[Tensor]:
    capacity = guide.shape[0] * case.points * (len(case.bandwidth) + 1)
    bandwidth = torch.tensor(case.bandwidth, dtype=dtype)
    return list(reference.lattice_build(guide.cpu(), bandwidth, case.grid, case.coordinates, capacity))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, dtype: torch.dtype, batch: int, device: torch.device) -> None:
    case = CASES[name]
    guide = levels(batch, case.channels, case.points)
    got = build(case, guide.to(device), dtype=dtype)
    assert_same_lattice(got, build_reference(case, guide, dtype), case.grid)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [*range(1, 13), 16, 24, 48])
def test_every_dimension(d: int, dtype: torch.dtype, device: torch.device) -> None:
    case = Case((70,), False, [1.0] * d)
    guide = 2 * noise(1, d, 70, seed=d, dtype=dtype)
    assert_same_lattice(build(case, guide.to(device), dtype=dtype), build_reference(case, guide, dtype), case.grid)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("guide_dtype", GUIDE_DTYPES)
def test_guides_of_every_dtype(guide_dtype: torch.dtype, dtype: torch.dtype, device: torch.device) -> None:
    case = CASES["d5"]
    whole = levels(2, case.channels, case.points)
    assert_same_lattice(
        build(case, whole.to(device, guide_dtype), dtype=dtype), build_reference(case, whole, dtype), case.grid
    )
    if guide_dtype.is_floating_point:
        broken = (255 * noise(2, case.channels, case.points).sigmoid()).to(guide_dtype)
        got = build(case, broken.to(device), dtype=dtype)
        assert_same_lattice(got, build_reference(case, broken, dtype), case.grid)


@pytest.mark.parametrize("grid", [(1,), (1, 1), (1, 700), (700, 1), (16, 16), (15, 31), (2, 1, 3, 50), (33, 17, 2)])
def test_grids(grid: tuple[int, ...], device: torch.device) -> None:
    case = Case(grid, True, [2.5] * len(grid) + [30.0])
    guide = levels(2, 1, case.points)
    assert_same_lattice(build(case, guide.to(device)), build_reference(case, guide, torch.float32), case.grid)


@pytest.mark.parametrize(("batch", "grid"), [(0, (4, 5)), (2, (0, 5)), (1, (0,))])
def test_nothing_to_build(batch: int, grid: tuple[int, ...], device: torch.device) -> None:
    case = Case(grid, True, [2.0] * len(grid) + [30.0])
    lattice = build(case, torch.zeros(batch, 1, case.points, device=device))
    assert int(lattice.num_vertices) == 0
    assert lattice.image_offsets.tolist() == [0] * (batch + 1)
    assert lattice.weights.shape == (batch, case.points, len(grid) + 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layout_of_the_guide_does_not_matter(dtype: torch.dtype, device: torch.device) -> None:
    case = CASES["d5"]
    guide = levels(2, case.channels, case.points).to(device)
    expected = build(case, guide, dtype=dtype)
    interleaved = guide.transpose(1, 2).contiguous().transpose(1, 2)  # [B, N, G] in memory, as image files are
    wider = torch.stack([guide, 255 - guide], 2)[:, :, 0]
    assert not interleaved.is_contiguous() and not wider.is_contiguous()
    for strided in (interleaved, wider, interleaved.float(), guide.to(DOUBLE).flip(2).flip(2)):
        assert_same_lattice(build(case, strided, dtype=dtype), expected)
    # one grey channel, repeated without memory of its own
    grey = guide[:, :1].expand(-1, 3, -1)
    assert_same_lattice(build(case, grey, dtype=dtype), build(case, grey.contiguous(), dtype=dtype))


def test_inputs_are_not_modified(device: torch.device) -> None:
    case = CASES["d5"]
    guide = levels(1, 3, case.points).float().to(device)
    before = guide.clone()
    build(case, guide)
    assert torch.equal(guide, before)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_number_of_threads_does_not_matter(dtype: torch.dtype, batch: int, restore_threads: None) -> None:
    case = Case((61, 90), True, [5.0, 5.0, 13.0, 13.0, 13.0])
    guide = levels(batch, 3, case.points)
    first, *others = for_threads(lambda: list(used_parts(build(case, guide, dtype=dtype)).values()))
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("name", ["d2-ties", "d5", "d8"])
def test_images_of_a_batch_do_not_meet(name: str, device: torch.device) -> None:
    case = CASES[name]
    guide = levels(3, case.channels, case.points).to(device)
    together = used_parts(build(case, guide))
    first, first_partial, tiles = 0, 0, together["tile_offsets"].numel() // 3
    for b in range(3):
        alone = used_parts(build(case, guide[b : b + 1]))
        last, partials = first + int(alone["num_vertices"]), int(alone["tile_offsets"][-1])
        for key in ("weights", "local_ids", "point_order"):
            assert torch.equal(together[key][b : b + 1], alone[key]), key
        entries = alone["splat_plan"].shape[1]
        assert torch.equal(together["splat_plan"][0, b * entries : (b + 1) * entries], alone["splat_plan"][0])
        mine = slice(first_partial, first_partial + partials)
        assert torch.equal(together["tile_vertices"][mine], alone["tile_vertices"] + first)
        assert torch.equal(
            together["tile_offsets"][b * tiles : (b + 1) * tiles + 1] - first_partial, alone["tile_offsets"]
        )
        assert torch.equal(together["vertex_offsets"][first : last + 1] - first_partial, alone["vertex_offsets"])
        assert torch.equal(together["vertex_partials"][mine] - first_partial, alone["vertex_partials"])
        neighbours = alone["neighbours"]
        shifted = torch.where(neighbours < 0, neighbours, neighbours + first)
        assert torch.equal(together["neighbours"][:, first:last], shifted)
        assert together["image_offsets"][b : b + 2].tolist() == [first, last]
        first, first_partial = last, first_partial + partials


def test_capacity_is_a_limit(rung: str, device: torch.device) -> None:
    case = CASES["d5"]
    guide, bandwidth = levels(2, 3, case.points).to(device), torch.tensor(case.bandwidth, device=device)
    expected = build(case, guide)
    vertices = int(expected.num_vertices)
    exact = ops.lattice_build(guide, bandwidth, case.grid, True, vertices)
    assert_same_lattice(exact, expected, case.grid)
    message = f"the lattice has {vertices} vertices, more than its capacity"
    expect_fault(rung, message, lambda: ops.lattice_build(guide, bandwidth, case.grid, True, vertices - 1))
    if rung == "cpu":
        with pytest.raises(ValueError, match=f"{message} {vertices - 1}"):
            ops.lattice_build(guide, bandwidth, case.grid, True, vertices - 1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("d", "dtype"), [(1, DOUBLE), (2, DOUBLE), (3, DOUBLE), (4, DOUBLE), (7, DOUBLE), (3, torch.float32)]
)
def test_keys_just_inside_the_range_are_exact(
    d: int, dtype: torch.dtype, sign: int, rung: str, device: torch.device
) -> None:
    """The largest key of the reference just below the limit, point by point towards it, until it is refused."""
    generator = torch.Generator().manual_seed(d)
    direction = sign * (0.5 + torch.rand(1, d, 1, dtype=DOUBLE, generator=generator))
    largest = reference.geometry.elevate(direction).abs().max()
    accepted = refused = 0
    for step in range(-3 * (d + 1), d + 2):  # key coordinates in steps of one, from well below to above
        guide = (direction * ((2**20 + step) / largest)).to(dtype).expand(1, d, 9) + torch.zeros(9, dtype=dtype)
        guide[..., :4] = 0  # points at both ends of the range share a lattice
        case = Case((9,), False, [1.0] * d)
        try:
            expected = build_reference(case, guide, dtype)
        except ValueError:
            refused += 1
            message = r"key coordinates must stay below 2\^20 .* use a larger bandwidth"
            expect_fault(rung, message, lambda: build(case, guide.to(device), dtype=dtype))  # noqa: B023 (called now)
        else:
            accepted += 1
            assert_same_lattice(build(case, guide.to(device), dtype=dtype), expected, case.grid)
    assert accepted and refused


def guide_of(value: float) -> Tensor:
    guide = torch.zeros(2, 1, 20)
    guide[1, 0, 7] = value
    return guide


@pytest.mark.parametrize(
    ("value", "bandwidth", "message"),
    [
        (255, [3.0, 3.0, 1e-6], "2\\^20 .* dimension 2 .* at point 7 of image 1: use a larger bandwidth"),
        (3e38, [3.0, 3.0, 1.0], "2\\^20 .* dimension 2 .* at point 7 of image 1: use a larger bandwidth"),
        (math.nan, [3.0, 3.0, 1.0], "features must be finite, got .* in dimension 2 of point 7 of image 1"),
        (math.inf, [3.0, 3.0, 1.0], "features must be finite, got .* in dimension 2 of point 7 of image 1"),
        (-math.inf, [3.0, 3.0, 1e-6], "features must be finite, got .* in dimension 2 of point 7 of image 1"),
        (255, [3.0, 0.0, 1.0], "bandwidths must be positive and finite, got .* in dimension 1"),
        (math.nan, [3.0, 3.0, -2.0], "bandwidths must be positive and finite, got .* in dimension 2"),
        (255, [math.nan, 3.0, 1e-6], "bandwidths must be positive and finite, got .* in dimension 0"),
        (255, [3.0, 3.0, math.inf], "bandwidths must be positive and finite, got .* in dimension 2"),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_only_the_data_can_show(
    value: float, bandwidth: list[float], message: str, dtype: torch.dtype, rung: str, device: torch.device
) -> None:
    """Where nothing waits for the build, what is filtered with such a lattice is NaN."""
    arguments = (guide_of(value).to(device), torch.tensor(bandwidth, dtype=dtype, device=device), (4, 5), True)
    for capacity in (200, 10):  # which is too small, but not the first of the faults
        lattice = expect_fault(rung, message, lambda: ops.lattice_build(*arguments, capacity))  # noqa: B023
        if lattice is not None:
            ones = torch.ones(2, 20, 3, dtype=dtype, device=device)
            assert ops.lattice_filter(ones, None, None, None, lattice, (4, 5), False).isnan().all()


def test_error_of_the_key_range_names_bandwidth_and_value() -> None:
    with pytest.raises(ValueError, match=r"dimension 2 is 255 / bandwidth 1e-06 = 2.55e\+08 at point 7 of image 1"):
        ops.lattice_build(guide_of(255), torch.tensor([3.0, 3.0, 1e-6]), (4, 5), True, 200)


def test_neighbours_across_the_limit_are_missing(device: torch.device) -> None:
    # Vertices at the very ends of the range: a key that wrapped around would make them neighbours of each other.
    edge = (2**20 - 4) / (math.sqrt(2 / 3) * 2 / math.sqrt(2))  # d = 1: e_0 = 1.1547 f
    case = Case((2,), False, [1.0])
    guide = torch.tensor([[[edge, -edge]]], dtype=DOUBLE)
    lattice = build(case, guide.to(device), dtype=DOUBLE)
    assert_same_lattice(lattice, build_reference(case, guide, DOUBLE), case.grid)
    assert int(lattice.num_vertices) == 4


def test_opcheck(device: torch.device) -> None:
    # Points so far from each other that every vertex is used and no part of the tensors is left undefined.
    guide = 50 * noise(2, 2, 12, dtype=torch.float32).to(device)
    bandwidth = torch.tensor([0.1, 0.1], device=device)
    lattice = ops.lattice_build(guide, bandwidth, (3, 4), False, 72)
    assert int(lattice[9]) == 72
    torch.library.opcheck(ops.lattice_build, (guide, bandwidth, (3, 4), False, 72))


INSTRUCTION_SETS = """
import sys, torch, densecrf_cuda
torch.set_num_threads(1)
ops, arguments = torch.ops.densecrf_cuda, torch.load(sys.argv[1])
results = []
for guide, bandwidth, values, unary in arguments:
    lattice = ops.lattice_build(guide, bandwidth, (17, 33), True, 6 * 561)
    partials, vertices = lattice[3][-1], lattice[9]
    lattice[4][partials:] = 0; lattice[5][vertices + 1:] = 0; lattice[6][partials:] = 0; lattice[7][:, vertices:] = 0
    filtered = [ops.lattice_filter(v, None, None, None, lattice, (17, 33), False) for v in values]
    norm = ops.lattice_filter(torch.ones_like(values[0][..., :1]), None, None, None, lattice, (17, 33), False)
    q = ops.mean_field(unary, lattice, [norm[..., 0].rsqrt()], ["symmetric"], [torch.tensor(3.0)], (17, 33), 5, 0.0,
                       -1.0, "log_probabilities", "fp32")[0]
    results.append((list(lattice), filtered, q))
torch.save(results, sys.argv[2])
"""


@pytest.mark.skipif(len(_C.instruction_sets) == 1, reason="compiled for one instruction set: nothing to compare")
def test_instruction_sets_agree(tmp_path: Path) -> None:
    case = CASES["d5"]
    arguments = []
    for dtype in DTYPES:
        values = [noise(1, case.points, channels, dtype=dtype) for channels in (1, 3, 21, 40)]
        unary = 3 * noise(1, 5, case.points, dtype=dtype)
        arguments.append((levels(1, 3, case.points), torch.tensor(case.bandwidth, dtype=dtype), values, unary))
    torch.save(arguments, tmp_path / "arguments")
    results = {}
    for name in _C.instruction_sets:  # where the processor lacks one, the best that it has below runs
        command = [sys.executable, "-c", INSTRUCTION_SETS, str(tmp_path / "arguments"), str(tmp_path / name)]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "DENSECRF_CPU_CAPABILITY": name}, check=True)
        results[name] = torch.load(tmp_path / name)
    baseline = results.pop("baseline")
    for other in results.values():
        for (lattice, filtered, q), (lattice_0, filtered_0, q_0), dtype in zip(other, baseline, DTYPES):
            assert all(map(torch.equal, lattice, lattice_0))
            # Rounding alone: sums of some tens of terms, fused or not; the mean field amplifies it a little.
            unit = torch.finfo(dtype).eps
            for got, expected in zip(filtered, filtered_0):
                torch.testing.assert_close(got, expected, rtol=100 * unit, atol=20 * unit * float(expected.abs().max()))
            torch.testing.assert_close(q, q_0, rtol=1000 * unit, atol=1000 * unit)
