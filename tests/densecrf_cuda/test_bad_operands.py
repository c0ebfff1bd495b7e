"""Bad operands of the raw operators that take a lattice: an error that names the operand, and never a crash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import DOUBLE, SMALL, Case, build, compatibility, expect_fault, levels, make_term, noise, ops
from torch import Tensor

from densecrf_cuda import reference
from densecrf_cuda._tiles import num_tiles
from densecrf_cuda.reference import LatticeTensors

FIELDS = LatticeTensors._fields
TENSORS = len(FIELDS)


@pytest.fixture
def lattice(device: torch.device) -> LatticeTensors:
    return build(SMALL, levels(2, 1, 20).to(device))


def moved(operand: Any, device: torch.device | str) -> Any:
    """Tensors, and lists of tensors, on the device."""
    if isinstance(operand, Tensor):
        return operand.to(device)
    return [moved(part, device) for part in operand] if isinstance(operand, (list, tuple)) else operand


def arguments_of(name: str, lattice: Sequence[Tensor], /, **changes: Any) -> dict[str, Any]:
    """Operands of an operator by the names that errors use: good ones but for the changes."""
    grid, lattices = {"grid": (4, 5)}, {"lattices": list(lattice), "norms": [torch.ones(2, 20)]}
    terms = lattices | {"normalizations": ["symmetric"], "compats": [torch.tensor(2.0)]} | grid
    values, unary, history = torch.zeros(2, 20, 3), torch.zeros(2, 3, 20), torch.zeros(2, 2, 20, 3)
    arguments: dict[str, Any] = {
        "lattice_filter": {"values": values, "features": None, "splat_scale": None, "slice_scale": None}
        | {"lattice": list(lattice), **grid, "reverse": False},
        "_lattice_feature_grad": {"values": values, "grad": values, "features": unary}
        | {"lattice": list(lattice), **grid, "reverse": False},
        "mean_field": {"unary": unary, **terms, "iterations": 2, "damping": 0.0, "tol": -1.0}
        | {"output": "probabilities", "precision": "fp32"},
        "_mean_field_unrolled": {"unary": unary, "features": [], **terms, "iterations": 2, "logarithm": False},
        "_mean_field_unrolled_backward": {"grad": unary, "result": unary, "history": history, "features": []}
        | {**terms, "logarithm": False, "wants_products": True},
    }[name]
    return {key: moved(value, lattice[0].device) for key, value in (arguments | changes).items()}


def use(name: str, lattice: Sequence[Tensor], /, **changes: Any) -> Any:
    return getattr(ops, name)(*arguments_of(name, lattice, **changes).values())


USES = ["lattice_filter", "_lattice_feature_grad", "mean_field", "_mean_field_unrolled"]
USES.append("_mean_field_unrolled_backward")


@pytest.mark.parametrize("name", USES)
def test_good_operands(name: str, lattice: LatticeTensors) -> None:
    use(name, lattice)


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("field", FIELDS)
def test_tensors_of_a_lattice(field: str, name: str, lattice: LatticeTensors) -> None:
    tensor = getattr(lattice, field)
    other = torch.int32 if tensor.dtype == torch.int64 else torch.int64
    for what, wrong, error in (
        ("dtype", tensor.to(other), TypeError),
        ("shape", tensor.new_zeros((*tensor.shape[:-1], tensor.shape[-1] + 1) if tensor.dim() else (1,)), ValueError),
        ("rank", tensor[None], ValueError),
        ("empty", tensor.new_zeros((0,) * max(tensor.dim(), 1)), ValueError),
    ):
        with pytest.raises(error, match=r"lattice|grid|values|unary|features"):
            use(name, lattice._replace(**{field: wrong}))
            pytest.fail(f"{what} of {field} was accepted")
    if tensor.dim() > 1 and tensor.numel():
        with pytest.raises(ValueError, match=f"lattice tensor {field} must be contiguous"):
            use(name, lattice._replace(**{field: torch.stack([tensor, tensor], -1)[..., 0]}))


@pytest.mark.parametrize("name", USES)
def test_number_of_tensors_and_grid(name: str, lattice: LatticeTensors) -> None:
    key = "lattice" if "lattice" in name else "lattices"
    for count in (0, 1, TENSORS - 1):
        with pytest.raises(ValueError, match=f"{TENSORS} .*tensors.* got {count}"):
            use(name, lattice, **{key: list(lattice)[:count]})
    with pytest.raises(ValueError, match=f"{TENSORS} .*tensors.* got {TENSORS + 1}"):
        use(name, lattice, **{key: [*lattice, lattice.weights]})
    for grid in ((4, 6), (2, 2, 6), (20, 0), ()):
        with pytest.raises(ValueError, match=r"grid|lattice tensor weights|N = "):
            use(name, lattice, grid=grid)


def test_grid_with_other_tiles(device: torch.device) -> None:
    # The same number of points in another number of tiles: the tables do not fit, and would be read out of bounds.
    line = build(Case((1200, 1), False, [13.0]), levels(2, 1, 1200).to(device))
    assert num_tiles((1200, 1)) != num_tiles((30, 40))
    values, features = torch.zeros(2, 1200, 3), torch.zeros(2, 1, 1200)
    for name, arguments in (
        ("lattice_filter", {"values": values}),
        ("_lattice_feature_grad", {"values": values, "grad": values, "features": features}),
        ("mean_field", {"unary": torch.zeros(2, 3, 1200), "norms": [torch.ones(2, 1200)]}),
    ):
        with pytest.raises(ValueError, match=r"lattice tensor tile_offsets must be .* of shape"):
            use(name, line, grid=(30, 40), **arguments)


OPERANDS = {
    "lattice_filter": {"features": torch.zeros(2, 3, 20)}
    | {"splat_scale": torch.ones(2, 20), "slice_scale": torch.ones(2, 20)},
    "_lattice_feature_grad": {},
    "mean_field": {},
    "_mean_field_unrolled": {"features": [torch.zeros(2, 3, 20)]},
    "_mean_field_unrolled_backward": {"features": [torch.zeros(2, 3, 20)]},
}


def doors_of(name: str, device: torch.device) -> list[Any]:
    """The kernels of the device, the dispatcher (where "meta" calls the fake kernels), and the reference."""
    op = getattr(ops, name).default
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU if device.type == "cpu" else torch._C.DispatchKey.CUDA)
    return [lambda *a: op.redispatch(key, *a), op] + [getattr(reference, name)] * (device.type == "cpu")


def test_guide_and_bandwidth_on_several_devices(device: torch.device) -> None:
    other = "meta" if device.type == "cpu" else "cpu"
    guide, bandwidth = levels(2, 1, 20).to(device), torch.ones(3, device=device)
    for door in doors_of("lattice_build", device):
        door(guide, bandwidth, (4, 5), True, 200)
        for wrong in ((guide.to(other), bandwidth), (guide, bandwidth.to(other))):
            with pytest.raises(ValueError, match=rf"bandwidth must be on the device of guide, .*{other}"):
                door(*wrong, (4, 5), True, 200)


@pytest.mark.parametrize("name", USES)
def test_operands_on_several_devices(name: str, lattice: LatticeTensors) -> None:
    device = lattice.weights.device
    other = torch.device("meta" if device.type == "cpu" else "cpu")
    good = arguments_of(name, lattice, **OPERANDS[name])
    doors = doors_of(name, device)
    for door in doors:
        door(*good.values())
    tensors = [
        k for k, v in good.items() if isinstance(v, Tensor) or (isinstance(v, list) and isinstance(v[0], Tensor))
    ]
    assert len(tensors) >= 3
    for operand in tensors:
        wrong = good | {operand: moved(good[operand], other)}
        for door in doors:
            with pytest.raises(ValueError, match=rf" must be on the device of .*, (got )?{other}") as raised:
                door(*wrong.values())
            owner = operand in ("unary", "grad") or operand.startswith("lattice")  # then it may be the others to blame
            assert owner or str(raised.value).startswith(operand), str(raised.value)
    for field in range(TENSORS):
        mixed = [tensor.to(other) if i == field else tensor for i, tensor in enumerate(lattice)]
        wrong = good | {"lattice" if "lattice" in name else "lattices": mixed}
        for door in doors:
            with pytest.raises(ValueError, match=" must be on the device of "):
                door(*wrong.values())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"values": torch.zeros(2, 20, 3).long()}, TypeError, "values must have the dtype of the lattice.* got Long"),
        ({"values": torch.zeros(2, 20, 3).double()}, TypeError, "values must have the dtype .* got Double"),
        ({"values": torch.zeros(2, 21, 3)}, ValueError, r"values must be \[B, N, C\] with N = 20, got \[2, 21, 3\]"),
        ({"values": torch.zeros(20, 3)}, ValueError, r"values must be \[B, N, C\] .* got \[20, 3\]"),
        ({"values": torch.zeros(3, 20, 3)}, ValueError, "batch of the lattice must be 1 or 3, got 2"),
        ({"features": torch.zeros(2, 2, 20)}, ValueError, r"features must be \[2, 3, 20\], got \[2, 2, 20\]"),
        ({"splat_scale": torch.zeros(2, 19)}, ValueError, r"splat_scale must be \[B, N\] with N = 20, got \[2, 19\]"),
        ({"slice_scale": torch.zeros(20)}, ValueError, r"slice_scale must be \[B, N\] .* got \[20\]"),
        ({"slice_scale": torch.zeros(3, 20)}, ValueError, "batch of the slice_scale must be 1 or 2, got 3"),
        ({"splat_scale": torch.zeros(2, 20).double()}, TypeError, "splat_scale must have the dtype of the lattice"),
    ],
)
def test_lattice_filter(lattice: LatticeTensors, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use("lattice_filter", lattice, **changes)


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
        use("_lattice_feature_grad", lattice, **changes)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_features_of_no_lattice(lattice: LatticeTensors, value: float, rung: str) -> None:
    # Their ranks would be no permutation, and read out of bounds.
    features = torch.full((2, 3, 20), value)
    if rung == "cpu":
        with pytest.raises(ValueError, match="features must be those of the lattice: finite"):
            use("_lattice_feature_grad", lattice, features=features)
    else:
        assert use("_lattice_feature_grad", lattice, features=features).isnan().all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"unary": torch.zeros(2, 3, 20).int()}, TypeError, "unary must have a floating dtype, got Int"),
        ({"unary": torch.zeros(2, 3, 20).double()}, TypeError, "unary .* needs lattices of dtype Double, got Float"),
        ({"unary": torch.zeros(2, 3, 5)}, ValueError, r"unary must be \[B, C, N\] with N = 20, got \[2, 3, 5\]"),
        ({"unary": torch.zeros(3, 20)}, ValueError, r"unary must be \[B, C, N\] .* got \[3, 20\]"),
        ({"unary": torch.zeros(5, 3, 20)}, ValueError, "batch of a lattice must be 1 or .* 5, got 2"),
        ({"unary": torch.zeros(2, 0, 20), "output": "labels"}, ValueError, "unary must have at least one label"),
        ({"lattices": []}, ValueError, "every pairwise term needs 11 lattice tensors, .* got 0, 1, 1 and 1"),
        ({"norms": []}, ValueError, "got 11, 0, 1 and 1"),
        ({"normalizations": []}, ValueError, "got 11, 1, 0 and 1"),
        ({"compats": []}, ValueError, "got 11, 1, 1 and 0"),
        ({"norms": [torch.ones(20)]}, ValueError, r"norm must be \[2, 20\], got \[20\]"),
        ({"norms": [torch.ones(0)]}, ValueError, r"norm must be \[2, 20\], got \[0\]"),
        ({"normalizations": ["mean"]}, ValueError, "normalization must be none, before, .* got mean"),
        ({"normalizations": ["homogeneous"]}, ValueError, "normalization must be none, before, .* got homogeneous"),
        ({"compats": [torch.ones(4)]}, ValueError, r"compat must be a number, .* C = 3, got \[4\]"),
        ({"compats": [torch.ones(3, 4)]}, ValueError, r"compat must be a number, .* got \[3, 4\]"),
        ({"iterations": -1}, ValueError, "iterations must not be negative, got -1"),
        ({"damping": 1.0}, ValueError, r"damping must be in \[0, 1\), got 1"),
        ({"damping": -0.1}, ValueError, r"damping must be in \[0, 1\), got -0.1"),
        ({"damping": math.nan}, ValueError, "damping must be in"),
        ({"tol": math.nan}, ValueError, "tol must be a number, got nan"),
        ({"output": "map"}, ValueError, "output must be probabilities, .* got map"),
        ({"precision": "half"}, ValueError, "precision must be fp32 or fp16, got half"),
    ],
)
def test_mean_field(lattice: LatticeTensors, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use("mean_field", lattice, **changes)


def unary_with(value: float, labels: int | slice = 1) -> Tensor:
    unary = torch.zeros(2, 3, 20)
    unary[1, labels, 4] = value
    return unary


@pytest.mark.parametrize("name", ["mean_field", "_mean_field_unrolled"])
@pytest.mark.parametrize(
    ("unary", "details"),
    [
        (unary_with(math.nan), "nan for label 1 at point 4 of image 1"),
        (unary_with(-math.inf), "-inf for label 1 at point 4 of image 1"),
        (unary_with(math.inf, slice(None)), r"\+infinity for all of them at point 4 of image 1"),
    ],
)
def test_unary_of_no_distribution(lattice: LatticeTensors, unary: Tensor, details: str, name: str, rung: str) -> None:
    expect_fault(rung, "unary must .* at point 4 of image 1", lambda: use(name, lattice, unary=unary))
    if rung == "cpu":
        with pytest.raises(ValueError, match=details):
            use(name, lattice, unary=unary)


@pytest.mark.parametrize("name", ["mean_field", "_mean_field_unrolled"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_compatibility_that_is_not_finite(lattice: LatticeTensors, value: float, name: str, rung: str) -> None:
    # Where nothing reads it beforehand, the first iteration shows it.
    message = (
        f"compat must be finite, got {value}" if rung == "cpu" else "the energies overflow in iteration 1 at point 0"
    )
    for compat in (torch.tensor(value), torch.full((3,), value), torch.full((3, 3), value)):
        expect_fault(rung, message, lambda: use(name, lattice, compats=[compat]))  # noqa: B023 (called at once)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("output", ["probabilities", "log_probabilities", "labels"])
def test_overflow_in_the_mean_field(output: str, dtype: torch.dtype, rung: str, device: torch.device) -> None:
    term = make_term(SMALL, levels(1, 1, 20).to(device), compatibility("potts", 3), "none", dtype)
    term = term._replace(compat=torch.tensor(torch.finfo(dtype).max, dtype=dtype))
    settings = {"norms": [term.norm], "normalizations": ["none"], "compats": [term.compat], "output": output}
    kind = ("float " if dtype == torch.float32 else "double ") if rung == "cpu" else ""
    message = f"energies overflow {kind}in iteration .* compat or unary"
    unary = noise(1, 3, 20, dtype=dtype)
    expect_fault(rung, message, lambda: use("mean_field", term.lattice, unary=unary, **settings))
