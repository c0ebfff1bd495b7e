"""`Lattice` and `permutohedral_filter`: shapes, normalizations, gradients, any dimension."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import DOUBLE, assert_same_lattice, noise
from torch import Tensor

from densecrf_cuda import Lattice, permutohedral_filter
from densecrf_cuda import lattice as lattice_module
from densecrf_cuda.reference import lattice_features

NORMALIZATIONS = ["none", "before", "after", "symmetric", "homogeneous"]


def explicit(k: Tensor, normalization: str) -> Tensor:
    """The normalized kernel matrix by the formulas, from the plain one."""
    rows = k.sum(1)
    if normalization == "before":
        return k / (rows + 1e-20)
    if normalization == "after":
        return k / (rows + 1e-20)[:, None]
    if normalization == "homogeneous":
        return k / rows[:, None]
    if normalization == "symmetric":
        n = (rows + 1e-20) ** -0.5
        return n[:, None] * k * n
    return k


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_normalizations_and_their_transposes(normalization: str, device: torch.device) -> None:
    points = 30
    lattice = Lattice(2 * noise(3, points).to(device))
    unit = torch.eye(points, dtype=DOUBLE, device=device)
    k = lattice.filter(unit, "none").T  # row c of the result is the filtered impulse c, column c of K
    assert (k - k.T).abs().max() > 1e-3  # so that a transpose that is forgotten shows
    matrix = explicit(k, normalization)
    torch.testing.assert_close(lattice.filter(unit, normalization).T, matrix, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lattice.filter(unit, normalization, reverse=True), matrix, rtol=1e-12, atol=1e-12)
    name = {"none": "NO_NORMALIZATION", "homogeneous": "HOMOGENEOUS"}.get(
        normalization, f"NORMALIZE_{normalization.upper()}"
    )
    assert torch.equal(lattice.filter(unit, name), lattice.filter(unit, normalization))


def test_symmetric_is_the_default(device: torch.device) -> None:
    features, values = noise(3, 30).to(device), noise(2, 30).to(device)
    lattice = Lattice(features)
    assert torch.equal(lattice.filter(values), lattice.filter(values, "symmetric"))
    assert torch.equal(permutohedral_filter(values, features), lattice.filter(values))


@pytest.mark.parametrize("d", [1, 2, 4, 7, 16, 20, 40])
def test_homogeneous_keeps_constants(d: int, device: torch.device) -> None:
    # One matrix with non-negative entries and rows that sum to 1: a constant stays, everything else stays in range.
    features, values = noise(d, 6, 7).to(device) / d, noise(3, 6, 7).to(device)
    lattice = Lattice(features)
    constant = torch.full((1, 6, 7), 3.0, dtype=DOUBLE, device=device)
    torch.testing.assert_close(lattice.filter(constant, "homogeneous"), constant, rtol=1e-12, atol=0)
    filtered = lattice.filter(values, "homogeneous")
    assert (filtered.amax((1, 2)) < values.amax((1, 2))).all() and (filtered.amin((1, 2)) > values.amin((1, 2))).all()


def test_far_points_do_not_mix_and_equal_points_do(device: torch.device) -> None:
    features = torch.tensor([[0.0, 100.0, 0.0, 300.0]], dtype=DOUBLE, device=device)
    values = torch.tensor([[1.0, 5.0, 3.0, 7.0]], dtype=DOUBLE, device=device)
    expected = torch.tensor([[2.0, 5.0, 2.0, 7.0]], dtype=DOUBLE, device=device)
    torch.testing.assert_close(Lattice(features).filter(values, "homogeneous"), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("shape", "spatial_dims", "grid"),
    [
        ((3, 40), None, (40,)),
        ((3, 5, 8), None, (5, 8)),
        ((2, 3, 5, 8), None, (5, 8)),
        ((2, 3, 4, 5, 2), None, (4, 5, 2)),
        ((2, 3, 40), 1, (40,)),
        ((3, 4, 5, 2), 3, (4, 5, 2)),
        ((2, 3, 2, 2, 5, 2), 4, (2, 2, 5, 2)),
    ],
)
def test_shapes(shape: tuple[int, ...], spatial_dims: int | None, grid: tuple[int, ...], device: torch.device) -> None:
    features = noise(*shape, dtype=torch.float32).to(device)
    lattice = Lattice(features, spatial_dims=spatial_dims)
    batch = shape[0] if len(shape) == len(grid) + 2 else 1
    assert (lattice.grid, lattice.batch, lattice.dimension) == (grid, batch, 3)
    values = noise(batch, 2, *grid, dtype=torch.float32).to(device)
    result = lattice.filter(values)
    assert result.shape == values.shape and result.dtype == torch.float32
    # The same points in a row: another order of the sums, the same lattice up to the names of its vertices.
    flat = Lattice(features.reshape(batch, 3, 40), spatial_dims=1)
    assert flat.num_vertices == lattice.num_vertices
    # Sums of some ten terms of magnitude 1 in float32.
    torch.testing.assert_close(
        result.reshape(batch, 2, 40), flat.filter(values.reshape(batch, 2, 40)), rtol=0, atol=1e-5
    )
    if batch == 1:
        assert torch.equal(lattice.filter(values[0]), result[0])
        several = noise(3, 2, *grid, dtype=torch.float32).to(device)
        assert torch.equal(lattice.filter(several), torch.stack([lattice.filter(image) for image in several]))


def test_bandwidth_divides(device: torch.device) -> None:
    features, values = noise(2, 3, 5, 8).to(device), noise(2, 2, 5, 8).to(device)
    expected = Lattice(features / 0.5).filter(values)
    for bandwidth in (0.5, [0.5, 0.5, 0.5], torch.tensor([0.5] * 3)):
        assert torch.equal(permutohedral_filter(values, features, bandwidth), expected)
    widths = torch.tensor([0.5, 1.0, 0.25], device=device)
    scaled = features / widths[:, None, None]
    assert torch.equal(permutohedral_filter(values, features, widths.tolist()), Lattice(scaled).filter(values))


def test_one_off_equals_lattice(device: torch.device) -> None:
    features, values = noise(2, 3, 40).to(device), noise(2, 4, 40).to(device)
    lattice = Lattice(features, spatial_dims=1)
    for spatial_dims in (None, 1):  # [B, d, N] is found beside [B, C, N], where it cannot be an image
        assert torch.equal(permutohedral_filter(values, features, spatial_dims=spatial_dims), lattice.filter(values))
    image = noise(3, 5, 8).to(device)
    for name in NORMALIZATIONS:
        got = permutohedral_filter(image[:2], image, normalization=name)
        assert torch.equal(got, Lattice(image).filter(image[:2], name))


def test_dtypes_of_values_and_features(device: torch.device) -> None:
    features, values = noise(3, 40).to(device), noise(2, 40).to(device)
    exact = permutohedral_filter(values, features)
    assert exact.dtype == DOUBLE
    assert torch.equal(
        permutohedral_filter(values, features.float()), permutohedral_filter(values, features.float().double())
    )
    single = permutohedral_filter(values.float(), features)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-5)  # float32 features and sums
    for dtype in (torch.float16, torch.bfloat16):
        got = permutohedral_filter(values.to(dtype), features.float())
        assert got.dtype == dtype
        assert torch.equal(got, permutohedral_filter(values.to(dtype).float(), features.float()).to(dtype))
    grey = torch.arange(40, device=device, dtype=torch.uint8)[None]
    assert torch.equal(Lattice(grey, 9.0).filter(values.float()), Lattice(grey.float(), 9.0).filter(values.float()))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_number_of_vertices_of_the_usual_gaussian(dtype: torch.dtype, device: torch.device) -> None:
    # 24 540 is the size of pydensecrf's lattice after addPairwiseGaussian(sxy=3, ...) on 500 × 375 pixels.
    y, x = torch.meshgrid(torch.arange(375.0), torch.arange(500.0), indexing="ij")
    lattice = Lattice(torch.stack([x, y]).to(device, dtype), bandwidth=3)
    assert lattice.num_vertices == 24540
    nothing = torch.zeros(1, 0, 375 * 500, device=device)
    coordinates = Lattice.on_grid(nothing, torch.tensor([3.0, 3.0], dtype=dtype, device=device), (375, 500), True)
    assert_same_lattice(coordinates.tensors, lattice.tensors)


def test_lattice_that_needs_more_than_the_usual_capacity(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    features = 100 * noise(2, 8, 50).to(device)  # every point has nine vertices of its own, the first guess is four
    values = noise(2, 3, 50).to(device)
    expected = Lattice(features, spatial_dims=1)
    assert expected.num_vertices == 2 * 50 * 9
    monkeypatch.setattr(lattice_module, "_GENEROUS_BYTES", 0)
    frugal = Lattice(features, spatial_dims=1)
    assert_same_lattice(frugal.tensors, expected.tensors)
    assert torch.equal(frugal.filter(values), expected.filter(values))
    close = Lattice(features / 1e6 + 0.3, spatial_dims=1)  # all in one simplex
    assert close.tensors.neighbours.shape[1] == 2 * 4 * 50
    with pytest.raises(ValueError, match=r"(?i)features must be finite, got nan"):
        Lattice(torch.full((1, 50), torch.nan))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients(normalization: str, reverse: bool, device: torch.device) -> None:
    # Random features are nearly surely farther from every face than the steps of gradcheck.
    features = noise(2, 2, 7).to(device).requires_grad_()
    values = noise(2, 2, 7, seed=2).to(device).requires_grad_()

    def run(values: Tensor, features: Tensor) -> Tensor:
        return Lattice(features, spatial_dims=1).filter(values, normalization, reverse=reverse)

    def shared(values: Tensor, features: Tensor) -> Tensor:
        return Lattice(features[0]).filter(values, normalization, reverse=reverse)

    for function in (run, shared):
        assert torch.autograd.gradcheck(function, (values, features))
    fixed = Lattice(features.detach(), spatial_dims=1)
    assert torch.autograd.gradgradcheck(lambda v: fixed.filter(v, normalization, reverse=reverse), (values,))


def test_gradient_by_guide_and_bandwidth(device: torch.device) -> None:
    guide = (40 * noise(2, 1, 12)).to(device).requires_grad_()
    bandwidth = torch.tensor([2.1, 1.9, 20.0], dtype=DOUBLE, device=device, requires_grad=True)
    values = noise(2, 2, 3, 4).to(device)

    def run(guide: Tensor, bandwidth: Tensor) -> Tensor:
        return Lattice.on_grid(guide, bandwidth, (3, 4), True).filter(values)

    assert torch.autograd.gradcheck(run, (guide, bandwidth))
    lattice = Lattice.on_grid(guide, bandwidth, (3, 4), True)
    assert torch.equal(lattice.features, lattice_features(guide, bandwidth, (3, 4), True))


def gradient_of(features: Tensor, use: Callable[[Lattice], Tensor]) -> Tensor:
    leaf = features.clone().requires_grad_()
    lattice = Lattice(leaf)
    (gradient,) = torch.autograd.grad(use(lattice).square().sum(), leaf)
    return gradient


def test_gradients_do_not_depend_on_earlier_use(device: torch.device) -> None:
    features, values = noise(2, 9).to(device), noise(2, 9, seed=2).to(device)

    def after_use_without_gradients(lattice: Lattice) -> Tensor:
        with torch.no_grad():
            lattice.filter(values)
        return lattice.filter(values)

    expected = gradient_of(features, lambda lattice: lattice.filter(values))
    assert torch.equal(gradient_of(features, after_use_without_gradients), expected)


def test_no_graph_without_gradients(device: torch.device) -> None:
    features = noise(2, 9).to(device).requires_grad_()
    with torch.no_grad():
        lattice = Lattice(features)
    assert lattice.features is None
    assert not lattice.filter(noise(1, 9).to(device)).requires_grad
