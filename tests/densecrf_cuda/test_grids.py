"""Grids of one to four axes and the spacing of their pixels: signals, volumes, video, and volumes over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DOUBLE, levels, noise
from oracles import assert_same
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian

# Spatial shapes with, in the order x, y, z, ..., a bandwidth in millimetres and the millimetres from pixel to pixel.
GRIDS: dict[str, tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]] = {
    "signal": ((40,), (3.0,), (0.5,)),
    "picture": ((9, 12), (3.0, 2.0), (0.7, 1.3)),
    "volume": ((4, 6, 8), (2.5, 2.0, 4.0), (0.8, 0.9, 3.0)),
    "volume over time": ((3, 4, 3, 5), (2.0, 2.5, 3.0, 1.5), (0.9, 1.1, 2.0, 0.5)),
}


def problem(grid: tuple[int, ...], device: torch.device, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    """Energies [3, *grid] and an image [2, *grid] of a few grey levels."""
    image = levels(1, 2, math.prod(grid)).reshape(2, *grid)
    return noise(3, *grid, dtype=dtype).to(device), image.to(device, dtype)


def positions(grid: tuple[int, ...], spacing: Sequence[float]) -> Tensor:
    """Where every pixel is, [axes, *grid], in the order x, y, z, ..., which is that of the last axis first."""
    axes = torch.meshgrid(*(torch.arange(size, dtype=DOUBLE) for size in grid), indexing="ij")[::-1]
    return torch.stack([axis * step for axis, step in zip(axes, spacing)])


# --- what the kernels are ---


@pytest.mark.parametrize("name", GRIDS)
def test_exact_kernel_is_the_formula_in_physical_units(name: str, device: torch.device) -> None:
    grid, sxy, spacing = GRIDS[name]
    unary, image = problem(grid, device)
    place, colour = positions(grid, spacing).flatten(1), image.cpu().flatten(1)
    squares = (
        (place[:, :, None] - place[:, None]) ** 2 / (2 * torch.tensor(sxy, dtype=DOUBLE)[:, None, None] ** 2)
    ).sum(0)
    colours = ((colour[:, :, None] - colour[:, None]) ** 2 / (2 * 30.0**2)).sum(0)
    u = unary.cpu().flatten(1)
    q = u.neg().softmax(0)
    for kernel, exponent in {Gaussian: squares, Bilateral: squares + colours}.items():
        arguments = (sxy,) if kernel is Gaussian else (sxy, 30)
        crf = DenseCRF(
            3,
            [kernel(*arguments, 0.3, spacing=spacing)],
            iterations=1,
            normalization="none",
            filter="dense",
            spatial_dims=len(grid),
        )
        expected = (0.3 * q @ torch.exp(-exponent) - u).softmax(0)
        # double precision; the sum over 40 to 192 pixels is taken in another order
        torch.testing.assert_close(crf(unary, image).cpu().flatten(1), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("name", GRIDS)
def test_spacing_is_a_bandwidth_in_pixels_and_a_feature_in_millimetres(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    grid, sxy, spacing = GRIDS[name]
    unary, image = problem(grid, device, dtype)
    dims = len(grid)

    def run(*kernels: Any) -> Tensor:
        return DenseCRF(3, kernels, iterations=4, spatial_dims=dims)(unary, image)

    in_pixels = [width / step for width, step in zip(sxy, spacing)]
    q = run(Gaussian(sxy, 2, spacing=spacing), Bilateral(sxy, (30, 40), 3, spacing=spacing))
    assert (q - unary.neg().softmax(0)).abs().max() > 0.1
    assert torch.equal(q, run(Gaussian(in_pixels, 2), Bilateral(in_pixels, (30, 40), 3)))
    grid_features = positions(grid, [1] * dims).to(device, dtype)
    both = torch.cat([grid_features, image])
    assert torch.equal(
        q, run(Features(grid_features, 2, bandwidth=in_pixels), Features(both, 3, bandwidth=[*in_pixels, 30, 40]))
    )
    if dtype == DOUBLE:  # in float32 the products of coordinate and spacing are other numbers, and simplices may change
        place = positions(grid, spacing).to(device)
        millimetres = run(
            Features(place, 2, bandwidth=sxy), Features(torch.cat([place, image]), 3, bandwidth=[*sxy, 30, 40])
        )
        torch.testing.assert_close(q, millimetres, rtol=1e-9, atol=1e-9)


def test_one_number_stands_for_every_axis(device: torch.device) -> None:
    grid = (4, 6, 8)
    unary, _ = problem(grid, device)

    def run(sxy: Any, spacing: Any) -> Tensor:
        return DenseCRF(3, [Gaussian(sxy, 2, spacing=spacing)], spatial_dims=3)(unary)

    assert torch.equal(run(3, 1.5), run((3, 3, 3), (1.5, 1.5, 1.5)))
    assert torch.equal(run(3, torch.tensor([0.5, 0.5, 1.5])), run((6, 6, 2), 1))
    assert torch.equal(run(3, np.array([0.5, 0.5, 1.5])), run(2, (1 / 3, 1 / 3, 1)))
    assert not torch.equal(run(3, (0.5, 0.5, 1.5)), run(3, (1.5, 0.5, 0.5)))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", GRIDS)
def test_batches_of_grids(name: str, batched: bool, device: torch.device) -> None:
    grid, sxy, spacing = GRIDS[name]
    unary, image = problem(grid, device, torch.float32)
    crf = DenseCRF(3, [Bilateral(sxy, 30, 3, spacing=spacing)], spatial_dims=len(grid), output="labels")
    single = crf(unary, image)
    assert single.shape == grid
    if batched:
        several = crf(torch.stack([unary, -unary]), torch.stack([image, image]))
        assert several.shape == (2, *grid)
        assert torch.equal(several[0], single) and not torch.equal(several[1], single)


def test_a_still_film_is_its_picture(device: torch.device) -> None:
    # Frames that are all alike: whether each is alone or all are one, every frame has the labels of the picture.
    unary, image = problem((9, 12), device)
    alone = DenseCRF(3, [Bilateral(3, 30, 3)], filter="dense")(unary, image)
    for frames in (0.1, 1e4):
        film = DenseCRF(3, [Bilateral((3, 3, frames), 30, 3)], filter="dense", spatial_dims=3)
        q = film(*(tensor[:, None].expand(-1, 5, -1, -1) for tensor in (unary, image)))
        # exp(-50) of a neighbouring frame's weight is left, or 8e-8 of each frame's weight is lost
        torch.testing.assert_close(q, alone[:, None].expand_as(q), rtol=0, atol=1e-6)


# --- pydensecrf ---


def pydensecrf_q(unary: Tensor, terms: Sequence[tuple[np.ndarray, float]], iterations: int = 10) -> np.ndarray:
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (Python <= 3.12 only)")
    crf = densecrf.DenseCRF(unary[0].numel(), len(unary))
    crf.setUnaryEnergy(np.ascontiguousarray(unary.cpu().flatten(1).numpy()))
    for features, compat in terms:
        crf.addPairwiseEnergy(np.ascontiguousarray(features, np.float32), compat=compat)
    return np.array(crf.inference(iterations)).reshape(len(unary), -1)


# Numbers of points are multiples of 4: elsewhere pydensecrf adds vertices of its own.
@pytest.mark.parametrize("name", GRIDS)
def test_pydensecrf_on_grids_of_any_dimension(name: str, device: torch.device) -> None:
    utils = pytest.importorskip("pydensecrf.utils", reason="pydensecrf2 is not installed (Python <= 3.12 only)")
    grid, sxy, spacing = GRIDS[name]
    dims = len(grid)
    unary, image = problem(grid, device, torch.float32)
    in_pixels = [width / step for width, step in zip(sxy, spacing)]
    gaussian = utils.create_pairwise_gaussian(in_pixels[::-1], grid)
    bilateral = utils.create_pairwise_bilateral(in_pixels[::-1], (30, 40), image.cpu().numpy(), chdim=0)
    # These count the axes from the first. A lattice depends a little on the order of its features, so theirs are given
    # to pydensecrf in ours,
    order = [*range(dims)[::-1], dims, dims + 1]
    expected = pydensecrf_q(unary, [(gaussian[::-1], 2.0), (bilateral[order], 3.0)])
    kernels = [Gaussian(sxy, 2, spacing=spacing), Bilateral(sxy, (30, 40), 3, spacing=spacing)]
    q = DenseCRF(3, kernels, spatial_dims=dims)(unary, image)
    assert_same(q.flatten(1).cpu(), expected)
    # and then ours in theirs.
    expected = pydensecrf_q(unary, [(gaussian, 2.0), (bilateral, 3.0)])
    theirs = [torch.from_numpy(f.copy()).reshape(-1, *grid).to(device) for f in (gaussian, bilateral)]
    q = DenseCRF(3, [Features(theirs[0], 2), Features(theirs[1], 3)], spatial_dims=dims)(unary)
    assert_same(q.flatten(1).cpu(), expected)


def test_pydensecrf_on_point_clouds(device: torch.device) -> None:
    for d in (1, 3, 6, 9):
        points, unary = noise(d, 200, dtype=torch.float32), noise(4, 200, seed=2, dtype=torch.float32)
        crf = DenseCRF(4, [Features(points.to(device), 3, bandwidth=[1 + 0.25 * i for i in range(d)])])
        scaled = points / torch.tensor([[1 + 0.25 * i] for i in range(d)])
        assert_same(crf(unary.to(device)).cpu(), pydensecrf_q(unary, [(scaled.numpy(), 3.0)]))


# --- point clouds and guides of many channels ---


@pytest.mark.parametrize("filter", ["lattice", "dense"])
def test_batches_of_point_clouds(filter: str, device: torch.device) -> None:
    unary, points = noise(2, 3, 60).to(device), noise(2, 6, 60, seed=2).to(device)
    widths = [0.5] * 3 + [2.0] * 3
    each = [DenseCRF(3, [Features(points[b], 3, bandwidth=widths)], filter=filter)(unary[b]) for b in range(2)]
    together = DenseCRF(3, [Features(points, 3, bandwidth=widths)], filter=filter, spatial_dims=1)(unary)
    assert together.shape == (2, 3, 60) and not torch.equal(each[0], each[1])
    for b in range(2):  # a library GEMM may sum a batch in another order
        torch.testing.assert_close(together[b], each[b], rtol=1e-10, atol=1e-12)


def test_many_channels_and_a_bandwidth_for_each(device: torch.device) -> None:
    grid, channels = (6, 8), 12
    unary = noise(3, *grid).to(device)
    image = levels(1, channels, math.prod(grid)).reshape(channels, *grid).to(device)
    widths = [20.0 + 5 * c for c in range(channels)]
    q = DenseCRF(3, [Bilateral((4, 3), widths, 4)])(unary, image)
    features = torch.cat([positions(grid, (1, 1)).to(device), image.double()])
    assert torch.equal(q, DenseCRF(3, [Features(features, 4, bandwidth=[4, 3, *widths])])(unary))
    # A channel whose bandwidth is huge, or that is the same everywhere, does not count.
    ignored = DenseCRF(3, [Bilateral((4, 3), [*widths, 1e9], 4)], filter="dense")
    exact = DenseCRF(3, [Bilateral((4, 3), widths, 4)], filter="dense")(unary, image)
    more = torch.cat([image, image[:1]])
    torch.testing.assert_close(ignored(unary, more), exact, rtol=1e-9, atol=1e-12)
    more[-1] = 7
    constant = DenseCRF(3, [Bilateral((4, 3), [*widths, 1.0], 4)], filter="dense")(unary, more)
    torch.testing.assert_close(constant, exact, rtol=1e-9, atol=1e-12)
