"""The reference lattice: against a second, naive one, against the dense formula, its adjoint and its gradients."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from densecrf_cuda import _tiles, reference
from densecrf_cuda.dense import dense_filter
from densecrf_cuda.reference.geometry import elevate, enclose

DOUBLE = torch.float64


def build(guide: Tensor, bandwidth: Sequence[float], grid: tuple[int, ...], coordinates: bool = False) -> list[Tensor]:
    dtype = guide.dtype if guide.dtype == DOUBLE else torch.float32
    capacity = guide.shape[0] * math.prod(grid) * (len(bandwidth) + 1)
    return list(reference.lattice_build(guide, torch.tensor(bandwidth, dtype=dtype), grid, coordinates, capacity))


def random_lattice(d: int, points: int, batch: int = 1, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """A lattice of random points in float64, and their features; nearly surely no point lies on a simplex face."""
    generator = torch.Generator().manual_seed(seed)
    features = 2 * torch.randn(batch, d, points, dtype=DOUBLE, generator=generator)
    return build(features, [1.0] * d, (points,)), features


def random_values(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def naive_point(feature: np.ndarray) -> tuple[list[np.floating], list[tuple[int, ...]]]:
    """Barycentric weights and vertices of one point, by the formulas."""
    d, real = len(feature), feature.dtype.type
    deviation = real(math.sqrt(2 / 3) * (d + 1))
    inverse = real(1) / real(d + 1)
    elevated, total = [real(0)] * (d + 1), real(0)
    for j in range(d, 0, -1):
        c = feature[j - 1] * real(float(deviation) / math.sqrt(j * (j + 1)))
        elevated[j] = total - c * real(j)
        total = total + c
    elevated[0] = total
    nearest = [int(np.rint(e * inverse)) for e in elevated]
    remainder = [v * (d + 1) for v in nearest]
    rank = [0] * (d + 1)
    for i in range(d):
        for j in range(i + 1, d + 1):
            less = elevated[i] - real(remainder[i]) < elevated[j] - real(remainder[j])
            rank[i if less else j] += 1
    for i in range(d + 1):
        rank[i] += sum(nearest)
        step = d + 1 if rank[i] < 0 else -(d + 1) if rank[i] > d else 0
        rank[i], remainder[i] = rank[i] + step, remainder[i] + step
    weights = [real(0)] * (d + 2)
    for i in range(d + 1):
        offset = (elevated[i] - real(remainder[i])) * inverse
        weights[d - rank[i]] += offset
        weights[d - rank[i] + 1] -= offset
    weights[0] += real(1) + weights[d + 1]
    keys = [tuple(remainder[i] + (k if rank[i] <= d - k else k - d - 1) for i in range(d)) for k in range(d + 1)]
    return weights[: d + 1], keys


def naive_build(features: np.ndarray, grid: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The definition of lattice_build, one point at a time; features [B, d, N] already divided."""
    batch, d, _ = features.shape
    raster, tile = (order.numpy() for order in _tiles.tile_order(grid))
    vertices: dict[tuple[int, ...], int] = {}
    weights, local_ids, order, tile_vertices, tile_offsets, image_offsets = [], [], [], [], [0], [0]
    for b in range(batch):
        for t in range(_tiles.num_tiles(grid)):
            mine: dict[int, int] = {}
            simplices: dict[tuple[int, ...], list[tuple[int, Any]]] = {}
            for place, n in enumerate(raster[tile == t]):
                b_weights, keys = naive_point(features[b, :, n])
                ids = [vertices.setdefault((b, *key), len(vertices)) for key in keys]
                for vertex in ids:
                    if vertex not in mine:
                        mine[vertex] = len(mine)
                        tile_vertices.append(vertex)
                simplices.setdefault(tuple(mine[vertex] for vertex in ids), []).append((place, b_weights))
            for corners, points in sorted(simplices.items(), key=lambda item: -len(item[1])):  # stable
                for index, (place, b_weights) in enumerate(points):
                    weights.append(b_weights)
                    local_ids.append(corners)
                    order.append(~place if index else place)
            tile_offsets.append(len(tile_vertices))
        image_offsets.append(len(vertices))
    neighbours = np.full((d + 1, len(vertices), 2), -1)
    for (b, *key), vertex in vertices.items():
        for axis in range(d + 1):
            for side, sign in enumerate((-1, 1)):
                moved = [k - sign * d if i == axis else k + sign for i, k in enumerate(key)]
                neighbours[axis, vertex, side] = vertices.get((b, *moved), -1)
    return {
        "weights": np.array(weights, features.dtype).reshape(batch, -1, d + 1),
        "local_ids": np.array(local_ids).reshape(batch, -1, d + 1),
        "point_order": np.array(order).reshape(batch, -1),
        "tile_offsets": np.array(tile_offsets),
        "tile_vertices": np.array(tile_vertices),
        "neighbours": neighbours,
        "image_offsets": np.array(image_offsets),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("grid", "coordinates", "channels", "bandwidth"),
    [
        ((300,), True, 0, [1.7]),
        ((20, 35), True, 0, [3.0, 3.0]),  # whole bandwidths and coordinates: exact ties
        ((18, 17), True, 3, [5.0, 7.0, 13.0, 13.0, 13.0]),
        ((3, 5, 17), True, 1, [2.0, 2.0, 1.5, 20.0]),
        ((40,), False, 9, [30.0] * 9),
    ],
)
def test_lattice_is_the_one_that_loops_define(
    grid: tuple[int, ...], coordinates: bool, channels: int, bandwidth: list[float], dtype: torch.dtype
) -> None:
    points = math.prod(grid)
    # A few levels, so that points share simplices and lie on their faces.
    guide = 60 * torch.randint(4, (2, channels, points), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    scales = torch.tensor(bandwidth, dtype=dtype)
    capacity = 2 * points * (len(bandwidth) + 1)
    lattice = reference.lattice_build(guide, scales, grid, coordinates, capacity)
    features = reference.lattice_features(guide, scales, grid, coordinates)
    naive = naive_build(features.numpy(), grid)

    assert lattice.splat_plan.shape == (2, 0)  # which only a GPU reads
    vertices = int(lattice.num_vertices)
    assert vertices == naive["image_offsets"][-1]
    used = len(naive["tile_vertices"])
    got = lattice._replace(
        tile_vertices=lattice.tile_vertices[:used], neighbours=lattice.neighbours[:, :vertices]
    )._asdict()
    for name, expected in naive.items():  # bit for bit, weights too: the operations and their order are the same
        np.testing.assert_array_equal(got[name].numpy(), expected, err_msg=name)
    # The lists by vertex are the lists by tile, transposed.
    offsets, partials = lattice.vertex_offsets[: vertices + 1], lattice.vertex_partials[:used]
    assert offsets[-1] == used
    owner = torch.repeat_interleave(torch.arange(vertices), offsets.diff())
    assert torch.equal(lattice.tile_vertices[partials].long(), owner)
    assert torch.equal(partials.sort().values, torch.arange(used))
    assert (partials.diff()[owner.diff() == 0] > 0).all()


@pytest.mark.parametrize("d", [1, 2, 5, 16])
def test_barycentric_weights_reproduce_the_point(d: int) -> None:
    features = 3 * random_values(1, d, 100)
    remainder, rank, weights = enclose(features)
    k = torch.arange(d + 1)[:, None, None]
    vertices = remainder[0] + torch.where(rank[0] <= d - k, k, k - d - 1)  # [vertex, coordinate, point]
    # Sums of d + 1 numbers of magnitude 3 d: rounding leaves about 1e-15 d^2.
    torch.testing.assert_close((weights[0][:, None] * vertices).sum(0), elevate(features)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 100, dtype=DOUBLE), rtol=0, atol=1e-13)
    assert weights.min() > -1e-13
    assert (vertices.sum(1) == 0).all()


def test_number_of_vertices_of_the_usual_gaussian() -> None:
    # 24 540 is the size of pydensecrf's lattice after addPairwiseGaussian(sxy=3, ...) on 500 × 375 pixels.
    for dtype in (torch.float32, DOUBLE):
        lattice = build(torch.zeros(1, 0, 375 * 500, dtype=dtype), [3.0, 3.0], (375, 500), coordinates=True)
        assert int(lattice[9]) == 24540


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("d", "points", "batch"), [(1, 7, 2), (2, 60, 1), (5, 60, 2), (16, 20, 1)])
def test_reverse_is_the_adjoint(d: int, points: int, batch: int, reverse: bool) -> None:
    lattice, _ = random_lattice(d, points, batch)
    x, y = random_values(batch, points, 3), random_values(batch, points, 3, seed=2)
    kx = reference.lattice_filter(x, None, None, None, lattice, (points,), reverse)
    kty = reference.lattice_filter(y, None, None, None, lattice, (points,), not reverse)
    # 1e-12: a few hundred terms of magnitude 1, each rounded to 1e-16.
    torch.testing.assert_close((kx * y).sum(), (x * kty).sum(), rtol=1e-12, atol=1e-12)


def test_forward_is_not_its_own_adjoint() -> None:
    # Missing neighbours keep the axes of the blur from commuting; a backward pass in forward order would be wrong.
    lattice, _ = random_lattice(5, 60)
    x, y = random_values(1, 60, 3), random_values(1, 60, 3, seed=2)
    kx, ky = (reference.lattice_filter(v, None, None, None, lattice, (60,), False) for v in (x, y))
    assert ((kx * y).sum() - (x * ky).sum()).abs() > 1e-3


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("d", "batch", "images"), [(1, 1, 1), (2, 1, 3), (5, 2, 2)])
def test_gradients(d: int, batch: int, images: int, reverse: bool) -> None:
    points, grid = 9, (9,)
    lattice, features = random_lattice(d, points, batch)
    x = random_values(images, points, 2).requires_grad_()
    splat, slice_ = (random_values(batch, points, seed=s).requires_grad_() for s in (2, 3))
    features.requires_grad_()

    def run(*inputs: Tensor) -> Tensor:
        return reference.lattice_filter(*inputs, lattice, grid, reverse)

    # gradcheck's steps of 1e-6 stay inside the simplices of these points.
    assert torch.autograd.gradcheck(run, (x, features, splat, slice_))
    assert torch.autograd.gradgradcheck(lambda v: run(v, features.detach(), None, None), (x,))
    grad = random_values(images, points, 2, seed=4)
    y = reference.lattice_filter(x, features, None, None, lattice, grid, reverse)
    (expected,) = torch.autograd.grad(y, features, grad)
    got = reference._lattice_feature_grad(x.detach(), grad, features.detach(), lattice, grid, reverse)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # the same sums in another order


def test_gradient_by_bandwidth_and_guide() -> None:
    grid = (3, 4)
    guide = (40 * random_values(1, 2, 12)).requires_grad_()
    bandwidth = torch.tensor([2.1, 1.9, 20.0, 17.0], dtype=DOUBLE, requires_grad=True)
    lattice = reference.lattice_build(guide, bandwidth, grid, True, 100)
    x = random_values(1, 12, 2)

    def run(guide: Tensor, bandwidth: Tensor) -> Tensor:
        features = reference.lattice_features(guide, bandwidth, grid, True)
        return reference.lattice_filter(x, features, None, None, lattice, grid, False)

    assert torch.autograd.gradcheck(run, (guide, bandwidth))


def test_batches() -> None:
    lattice, features = random_lattice(3, 40, batch=2)
    x = random_values(2, 40, 3)
    together = reference.lattice_filter(x, None, None, None, lattice, (40,), False)
    for b in range(2):
        alone = build(features[b : b + 1], [1.0] * 3, (40,))
        y = reference.lattice_filter(x[b : b + 1], None, None, None, alone, (40,), False)
        assert torch.equal(y, together[b : b + 1])
        shared = reference.lattice_filter(x, None, None, None, alone, (40,), False)
        assert torch.equal(shared[b : b + 1], y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float(dtype: torch.dtype) -> None:
    lattice = build(torch.zeros(1, 0, 30), [2.0, 2.0], (5, 6), coordinates=True)
    x = random_values(1, 30, 2).to(dtype)
    y = reference.lattice_filter(x, None, None, None, lattice, (5, 6), False)
    expected = reference.lattice_filter(x.float(), None, None, None, lattice, (5, 6), False)
    assert y.dtype == dtype
    assert torch.equal(y, expected.to(dtype))


@pytest.mark.parametrize("photo", ["astronaut", "coffee", "chelsea"])
def test_error_against_the_dense_formula(photo: str) -> None:
    data = pytest.importorskip("skimage.data")
    full = torch.from_numpy(getattr(data, photo)()).permute(2, 0, 1)[None].float()
    grid = (60, 80)
    rgb = torch.nn.functional.interpolate(full, grid, mode="area")[0]
    guide = rgb.reshape(1, 3, -1)
    mask = (rgb.mean(0) > 100).float()[None]
    bandwidth = torch.tensor([80.0, 80, 13, 13, 13])
    lattice = reference.lattice_build(guide, bandwidth, grid, True, 6 * mask.numel())
    norm = reference.normalization_scale(lattice, grid, "symmetric")
    got = reference.lattice_filter(mask.reshape(1, -1, 1), None, norm, norm, lattice, grid, False)
    features = reference.lattice_features(guide, bandwidth, grid, True).reshape(5, *grid)

    def error(factor: float) -> Tensor:
        return (got.reshape(mask.shape) - dense_filter(mask, features * factor)).abs()

    # The lattice approximates: docs/accuracy.md lists what is lost. Measured on these pictures: 0.012 to 0.017 in the
    # mean and 0.09 to 0.13 at most, on a mask of zeros and ones.
    at_one = error(1.0)
    assert at_one.mean() < 0.02
    assert at_one.max() < 0.15
    # It approximates this kernel, not a wider or a narrower one.
    assert at_one.mean() < min(error(0.7).mean(), error(1.4).mean())
