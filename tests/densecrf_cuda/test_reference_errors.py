"""Bad input to the reference operators: the rule and the value are named. Empty input: empty results."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from densecrf_cuda import reference

GRID = (4, 5)


def guide_of(value: float = 0.0, channels: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    guide = torch.zeros(2, channels, 20, dtype=dtype)
    guide[1, 0, 7] = value
    return guide


def build_arguments(**changes: Any) -> dict[str, Any]:
    bandwidth = torch.tensor([3.0, 3.0, 10.0])
    return {"guide": guide_of(), "bandwidth": bandwidth, "grid": GRID, "coordinates": True, "capacity": 160} | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"guide": guide_of(math.nan)}, ValueError, "features must be finite, got nan in dimension 2 of point 7"),
        ({"guide": guide_of(-math.inf)}, ValueError, "features must be finite, got -inf"),
        ({"guide": guide_of(dtype=torch.int32)}, TypeError, "guide .* got torch.int32"),
        ({"guide": torch.zeros(1, 20)}, ValueError, r"guide must be \[B, G, N\], got shape \(1, 20\)"),
        ({"guide": torch.zeros(1, 1, 21)}, ValueError, "grid .* 20, got 21"),
        ({"guide": torch.zeros(1, 2, 20)}, ValueError, r"bandwidth must be \[4\]"),
        ({"guide": torch.zeros(1, 0, 20), "coordinates": False}, ValueError, "1 to 48 feature dimensions, got 0"),
        ({"guide": torch.zeros(1, 63, 20)}, ValueError, "1 to 48 feature dimensions, got 65"),
        ({"grid": ()}, ValueError, "grid"),
        ({"grid": (-4, -5)}, ValueError, "grid .* negative"),
        ({"bandwidth": torch.tensor([3.0, 0.0, 1.0])}, ValueError, "bandwidths must be positive .* 0 in dimension 1"),
        ({"bandwidth": torch.tensor([3.0, 1.0, -2.0])}, ValueError, "got -2 in dimension 2"),
        ({"bandwidth": torch.tensor([math.nan, 1.0, 2.0])}, ValueError, "got nan in dimension 0"),
        ({"bandwidth": torch.tensor([3, 1, 2])}, TypeError, "bandwidth .* got torch.int64"),
        ({"capacity": 5}, ValueError, "vertices, more than its capacity 5"),
        ({"capacity": -1}, ValueError, "capacity must not be negative, got -1"),
        (
            {"guide": guide_of(255), "bandwidth": torch.tensor([3.0, 3.0, 1e-6])},
            ValueError,
            r"dimension 2 is 255 / bandwidth 1e-06 = 2.55e\+08 at point 7 of image 1: use a larger",
        ),
        ({"guide": guide_of(3e38), "bandwidth": torch.tensor([3.0, 3.0, 1.0])}, ValueError, "/ bandwidth 1 = "),
    ],
)
def test_lattice_build(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        reference.lattice_build(**build_arguments(**changes))


def test_largest_keys_are_accepted_and_the_next_refused() -> None:
    # d = 1: e_0 = f sqrt(2/3) 2 / sqrt(2) = 1.1547 f; keys are even, so 2**20 - 2 is the largest to be stored.
    for key, accepted in ((2**20 - 4, True), (2**20, False)):
        guide = torch.tensor([[[key / (math.sqrt(2 / 3) * 2 / math.sqrt(2))]]], dtype=torch.float64)
        arguments = (guide, torch.ones(1, dtype=torch.float64), (1,), False, 2)
        if accepted:
            assert int(reference.lattice_build(*arguments).num_vertices) == 2
        else:
            with pytest.raises(ValueError, match=r"2\^20"):
                reference.lattice_build(*arguments)


@pytest.fixture(scope="module")
def lattice() -> list[Tensor]:
    return list(reference.lattice_build(**build_arguments()))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"values": torch.zeros(2, 20, 3).long()}, TypeError, "values .* got torch.int64"),
        (
            {"values": torch.zeros(2, 20, 3).double()},
            TypeError,
            "values must have the dtype of the lattice, torch.float32.* got torch.float64",
        ),
        ({"values": torch.zeros(2, 21, 3)}, ValueError, r"values must be \[B, 20, C\] with B = 2, got \(2, 21, 3\)"),
        ({"values": torch.zeros(3, 20, 3)}, ValueError, "values must be .* B = 2"),
        ({"features": torch.zeros(2, 2, 20)}, ValueError, r"features must be \[2, 3, 20\]"),
        ({"splat_scale": torch.zeros(2, 19)}, ValueError, "splat_scale must be"),
        ({"slice_scale": torch.zeros(20)}, ValueError, "slice_scale must be"),
        ({"grid": (4, 6)}, ValueError, "grid must have as many points"),
    ],
)
def test_lattice_filter(lattice: list[Tensor], changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"values": torch.zeros(2, 20, 3), "features": None, "splat_scale": None}
    arguments |= {"slice_scale": None, "lattice": lattice, "grid": GRID, "reverse": False}
    with pytest.raises(error, match=message):
        reference.lattice_filter(**(arguments | changes))


def unary_with(value: float, labels: int | slice = 1) -> Tensor:
    unary = torch.zeros(2, 3, 20)
    unary[1, labels, 4] = value
    return unary


def mean_field_arguments(lattice: list[Tensor], **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"unary": torch.zeros(2, 3, 20), "lattices": lattice, "norms": [torch.ones(2, 20)]}
    arguments |= {"normalizations": ["symmetric"], "compats": [torch.tensor(2.0)], "grid": GRID, "iterations": 2}
    return arguments | {"damping": 0.0, "tol": -1.0, "output": "probabilities", "precision": "fp32"} | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"unary": unary_with(math.nan)}, ValueError, "unary must not be NaN, .* label 1 of point 4 of image 1"),
        ({"unary": unary_with(-math.inf)}, ValueError, "unary must not be -inf"),
        ({"unary": unary_with(math.inf, slice(None))}, ValueError, "every label of point 4 of image 1"),
        ({"unary": torch.zeros(2, 3, 20).int()}, TypeError, "unary .* got torch.int32"),
        (
            {"unary": torch.zeros(2, 3, 20).double()},
            TypeError,
            "a unary of torch.float64 needs lattices of torch.float64, got one of torch.float32",
        ),
        ({"unary": torch.zeros(2, 3, 5)}, ValueError, r"unary must be \[B, C, 20\]"),
        ({"unary": torch.zeros(5, 3, 20)}, ValueError, "batch of every lattice .* 5, got 2"),
        ({"lattices": []}, ValueError, "lattices must hold 11 tensors"),
        ({"norms": []}, ValueError, "one entry for each of 1 kernels"),
        ({"norms": [torch.ones(20)]}, ValueError, "norm must be"),
        ({"normalizations": ["mean"]}, ValueError, "normalization must be one of .* got 'mean'"),
        ({"compats": [torch.ones(4)]}, ValueError, r"compat must be .* got shape \(4,\)"),
        ({"compats": [torch.ones(3, 4)]}, ValueError, "compat must be"),
        ({"iterations": -1}, ValueError, "iterations must not be negative, got -1"),
        ({"damping": 1.0}, ValueError, "damping must be in .* got 1.0"),
        ({"damping": -0.1}, ValueError, "damping"),
        ({"output": "map"}, ValueError, "output must be one of .* got 'map'"),
        ({"precision": "half"}, ValueError, "precision must be one of fp32, fp16, got 'half'"),
    ],
)
def test_mean_field(lattice: list[Tensor], changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        reference.mean_field(**mean_field_arguments(lattice, **changes))


@pytest.mark.parametrize(("batch", "grid"), [(0, (4, 5)), (2, (0, 5)), (1, (0,))])
def test_empty_lattice(batch: int, grid: tuple[int, ...]) -> None:
    points, d = math.prod(grid), len(grid) + 1
    lattice = reference.lattice_build(torch.zeros(batch, 1, points), torch.ones(d), grid, True, 7)
    assert int(lattice.num_vertices) == 0
    assert lattice.image_offsets.tolist() == [0] * (batch + 1)
    values = torch.zeros(batch, points, 3)
    assert reference.lattice_filter(values, None, None, None, lattice, grid, False).shape == values.shape
    unary = torch.zeros(batch, 3, points)
    arguments = mean_field_arguments(list(lattice), unary=unary, norms=[torch.ones(batch, points)], grid=grid)
    assert reference.mean_field(**arguments)[0].shape == unary.shape
    assert reference.mean_field(**(arguments | {"output": "labels"}))[0].shape == (batch, points)


def test_no_channels(lattice: list[Tensor]) -> None:
    values = torch.zeros(2, 20, 0)
    assert reference.lattice_filter(values, None, None, None, lattice, GRID, False).shape == values.shape
    arguments = mean_field_arguments(lattice, unary=torch.zeros(2, 0, 20))
    assert reference.mean_field(**arguments)[0].shape == (2, 0, 20)
    with pytest.raises(ValueError, match="labels need at least one label"):
        reference.mean_field(**(arguments | {"output": "labels"}))
