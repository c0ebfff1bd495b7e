"""Bad operands of the raw operators that take a lattice: an error that names the operand, and never a crash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import DOUBLE, SMALL, Case, build, compatibility, levels, make_term, noise, ops
from torch import Tensor

from densecrf_cuda._tiles import num_tiles
from densecrf_cuda.reference import LatticeTensors

FIELDS = LatticeTensors._fields


@pytest.fixture(scope="module")
def lattice() -> LatticeTensors:
    return build(SMALL, levels(2, 1, 20))


def use_filter(lattice: Sequence[Tensor], **changes: Any) -> Tensor:
    arguments = {"values": torch.zeros(2, 20, 3), "features": None, "splat": None, "slice": None, "lattice": lattice}
    return ops.lattice_filter(*(arguments | {"grid": (4, 5), "reverse": False} | changes).values())


def use_feature_grad(lattice: Sequence[Tensor], **changes: Any) -> Tensor:
    arguments = {"values": torch.zeros(2, 20, 3), "grad": torch.zeros(2, 20, 3), "features": torch.zeros(2, 3, 20)}
    return ops._lattice_feature_grad(
        *(arguments | {"lattice": lattice, "grid": (4, 5), "reverse": False} | changes).values()
    )


def use_mean_field(lattice: Sequence[Tensor], **changes: Any) -> Tensor:
    arguments = {"unary": torch.zeros(2, 3, 20), "lattices": lattice, "norms": [torch.ones(2, 20)]}
    arguments |= {"normalizations": ["symmetric"], "compats": [torch.tensor(2.0)], "grid": (4, 5), "iterations": 2}
    return ops.mean_field(*(arguments | {"damping": 0.0, "tol": -1.0, "output": "probabilities"} | changes).values())


USES = [use_filter, use_feature_grad, use_mean_field]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("field", FIELDS)
def test_tensors_of_a_lattice(field: str, use: Any, lattice: LatticeTensors) -> None:
    tensor = getattr(lattice, field)
    other = torch.int32 if tensor.dtype == torch.int64 else torch.int64
    for name, wrong, error in (
        ("dtype", tensor.to(other), TypeError),
        ("shape", tensor.new_zeros((*tensor.shape[:-1], tensor.shape[-1] + 1) if tensor.dim() else (1,)), ValueError),
        ("rank", tensor[None], ValueError),
        ("empty", tensor.new_zeros((0,) * max(tensor.dim(), 1)), ValueError),
    ):
        with pytest.raises(error, match=r"lattice|grid|values|unary|features"):
            use(lattice._replace(**{field: wrong}))
            pytest.fail(f"{name} of {field} was accepted")
    if tensor.dim() > 1:
        with pytest.raises(ValueError, match=f"lattice tensor {field} must be contiguous"):
            use(lattice._replace(**{field: torch.stack([tensor, tensor], -1)[..., 0]}))


@pytest.mark.parametrize("use", USES)
def test_number_of_tensors_and_grid(use: Any, lattice: LatticeTensors) -> None:
    for count in (0, 1, 9):
        with pytest.raises(ValueError, match=f"10 .*tensors.* got {count}"):
            use(list(lattice)[:count])
    with pytest.raises(ValueError, match=r"10 .*tensors.* got 11"):
        use([*lattice, lattice.weights])
    for grid in ((4, 6), (2, 2, 6), (20, 0), ()):
        with pytest.raises(ValueError, match=r"grid|lattice tensor weights|N = "):
            use(lattice, grid=grid)


def test_grid_with_other_tiles() -> None:
    # The same number of points in another number of tiles: the tables do not fit, and would be read out of bounds.
    line = build(Case((1200, 1), False, [13.0]), levels(2, 1, 1200))
    assert num_tiles((1200, 1)) != num_tiles((30, 40))
    values, features = torch.zeros(2, 1200, 3), torch.zeros(2, 1, 1200)
    for use, arguments in (
        (use_filter, {"values": values}),
        (use_feature_grad, {"values": values, "grad": values, "features": features}),
        (use_mean_field, {"unary": torch.zeros(2, 3, 1200), "norms": [torch.ones(2, 1200)]}),
    ):
        with pytest.raises(ValueError, match=r"lattice tensor tile_offsets must be .* of shape"):
            use(line, grid=(30, 40), **arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"values": torch.zeros(2, 20, 3).long()}, TypeError, "values must have the dtype of the lattice.* got Long"),
        ({"values": torch.zeros(2, 20, 3).double()}, TypeError, "values must have the dtype .* got Double"),
        ({"values": torch.zeros(2, 21, 3)}, ValueError, r"values must be \[B, N, C\] with N = 20, got \[2, 21, 3\]"),
        ({"values": torch.zeros(20, 3)}, ValueError, r"values must be \[B, N, C\] .* got \[20, 3\]"),
        ({"values": torch.zeros(3, 20, 3)}, ValueError, "batch of the lattice must be 1 or 3, got 2"),
        ({"features": torch.zeros(2, 2, 20)}, ValueError, r"features must be \[2, 3, 20\], got \[2, 2, 20\]"),
        ({"splat": torch.zeros(2, 19)}, ValueError, r"splat_scale must be \[B, N\] with N = 20, got \[2, 19\]"),
        ({"slice": torch.zeros(20)}, ValueError, r"slice_scale must be \[B, N\] .* got \[20\]"),
        ({"slice": torch.zeros(3, 20)}, ValueError, "batch of the slice_scale must be 1 or 2, got 3"),
        ({"splat": torch.zeros(2, 20).double()}, TypeError, "splat_scale must have the dtype of the lattice"),
    ],
)
def test_lattice_filter(lattice: LatticeTensors, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use_filter(lattice, **changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"values": torch.zeros(2, 20, 4)}, ValueError, r"grad must have the shape of values, \[2, 20, 4\], got"),
        ({"grad": torch.zeros(1, 20, 3)}, ValueError, "grad must have the shape of values"),
        ({"grad": torch.zeros(2, 20, 3).double()}, TypeError, "grad must have the dtype of the lattice"),
        ({"features": torch.zeros(1, 3, 20)}, ValueError, r"features must be \[2, 3, 20\], got \[1, 3, 20\]"),
        ({"features": torch.zeros(2, 3, 20).double()}, TypeError, "features must have the dtype of the lattice"),
        ({"features": torch.zeros(2, 3, 20).int()}, TypeError, "features must have the dtype of the lattice"),
    ],
)
def test_feature_grad(lattice: LatticeTensors, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use_feature_grad(lattice, **changes)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_features_of_no_lattice(lattice: LatticeTensors, value: float) -> None:
    # Their ranks would be no permutation, and read out of bounds.
    with pytest.raises(ValueError, match="features must be those of the lattice: finite"):
        use_feature_grad(lattice, features=torch.full((2, 3, 20), value))


def unary_with(value: float, labels: int | slice = 1) -> Tensor:
    unary = torch.zeros(2, 3, 20)
    unary[1, labels, 4] = value
    return unary


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"unary": unary_with(math.nan)}, ValueError, "unary must not be NaN .* nan for label 1 at point 4 of image 1"),
        ({"unary": unary_with(-math.inf)}, ValueError, "unary must not be .* -inf for label 1 at point 4 of image 1"),
        ({"unary": unary_with(math.inf, slice(None))}, ValueError, "at least one label, .* at point 4 of image 1"),
        ({"unary": torch.zeros(2, 3, 20).int()}, TypeError, "unary must have a floating dtype, got Int"),
        ({"unary": torch.zeros(2, 3, 20).double()}, TypeError, "unary .* needs lattices of dtype Double, got Float"),
        ({"unary": torch.zeros(2, 3, 5)}, ValueError, r"unary must be \[B, C, N\] with N = 20, got \[2, 3, 5\]"),
        ({"unary": torch.zeros(3, 20)}, ValueError, r"unary must be \[B, C, N\] .* got \[3, 20\]"),
        ({"unary": torch.zeros(5, 3, 20)}, ValueError, "batch of a lattice must be 1 or .* 5, got 2"),
        ({"unary": torch.zeros(2, 0, 20), "output": "labels"}, ValueError, "unary must have at least one label"),
        ({"lattices": []}, ValueError, "every pairwise term needs 10 lattice tensors, .* got 0, 1, 1 and 1"),
        ({"norms": []}, ValueError, "got 10, 0, 1 and 1"),
        ({"normalizations": []}, ValueError, "got 10, 1, 0 and 1"),
        ({"compats": []}, ValueError, "got 10, 1, 1 and 0"),
        ({"norms": [torch.ones(20)]}, ValueError, r"norm must be \[2, 20\], got \[20\]"),
        ({"norms": [torch.ones(0)]}, ValueError, r"norm must be \[2, 20\], got \[0\]"),
        ({"normalizations": ["mean"]}, ValueError, "normalization must be none, before, .* got mean"),
        ({"normalizations": ["homogeneous"]}, ValueError, "normalization must be none, before, .* got homogeneous"),
        ({"compats": [torch.ones(4)]}, ValueError, r"compat must be a number, .* C = 3, got \[4\]"),
        ({"compats": [torch.ones(3, 4)]}, ValueError, r"compat must be a number, .* got \[3, 4\]"),
        ({"compats": [torch.tensor(math.nan)]}, ValueError, "compat must be finite, got nan"),
        ({"compats": [torch.tensor([1.0, math.inf, 0])]}, ValueError, "compat must be finite, got inf"),
        ({"iterations": -1}, ValueError, "iterations must not be negative, got -1"),
        ({"damping": 1.0}, ValueError, r"damping must be in \[0, 1\), got 1"),
        ({"damping": -0.1}, ValueError, r"damping must be in \[0, 1\), got -0.1"),
        ({"damping": math.nan}, ValueError, "damping must be in"),
        ({"tol": math.nan}, ValueError, "tol must be a number, got nan"),
        ({"output": "map"}, ValueError, "output must be probabilities, .* got map"),
    ],
)
def test_mean_field(lattice: LatticeTensors, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use_mean_field(lattice, **changes)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("output", ["probabilities", "log_probabilities", "labels"])
def test_overflow_in_the_mean_field(output: str, dtype: torch.dtype) -> None:
    term = make_term(SMALL, levels(1, 1, 20), compatibility("potts", 3), "none", dtype)
    term = term._replace(compat=torch.tensor(torch.finfo(dtype).max, dtype=dtype))
    settings = {"norms": [term.norm], "normalizations": ["none"], "compats": [term.compat], "output": output}
    message = f"energies overflow {'float' if dtype == torch.float32 else 'double'} in iteration .* compat or unary"
    with pytest.raises(ValueError, match=message):
        use_mean_field(term.lattice, unary=noise(1, 3, 20, dtype=dtype), **settings)
