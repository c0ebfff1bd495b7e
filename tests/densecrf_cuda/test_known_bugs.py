"""Mistakes that published GPU implementations of this filter have made, each tested for by what a user would see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CASES, DOUBLE, Case, build, levels, noise, ops, relative
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from densecrf_cuda import DenseCRF, Features, permutohedral_filter, reference


def filter_points(features: Tensor, values: Tensor, reverse: bool = False) -> Tensor:
    """values [N, C] filtered over features [d, N], unnormalised."""
    d, points = features.shape
    lattice = build(Case((points,), False, [1.0] * d), features[None], dtype=features.dtype)
    return ops.lattice_filter(values[None], None, None, None, lattice, [points], reverse)[0]


@pytest.mark.parametrize("d", range(1, 9))
def test_no_axis_of_the_blur_is_lost(d: int, device: torch.device) -> None:
    # Buffers change places an odd or an even number of times: what was sliced lacked the blur of the last axis.
    side = torch.arange(-3.0, 4.0, dtype=DOUBLE) if d <= 2 else torch.tensor([-0.9, 0.0, 0.9], dtype=DOUBLE)
    grid = torch.cartesian_prod(*[side] * min(d, 4)).reshape(-1, min(d, 4)).T
    features = torch.cat([grid, torch.zeros(d - grid.shape[0], grid.shape[1], dtype=DOUBLE)])
    points = features.shape[1]
    values = noise(points, 2)
    lattice = reference.lattice_build(features[None], torch.ones(d, dtype=DOUBLE), (points,), False, points * (d + 1))
    expected = reference.lattice_filter(values[None], None, None, None, lattice, (points,), False)[0]
    assert relative(filter_points(features.to(device), values.to(device)), expected) < 1e-12


@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_vertex_without_neighbours_is_treated_like_any_other(d: int, device: torch.device) -> None:
    # Isolated vertices were given twice their value where all others were halved. A point on a vertex has weight 1
    # there; the simplex's vertices v_0 … v_d form a ring, one step along each axis: axis 0 brings v_0's 1 halved to
    # v_d, axis 1 that to v_(d-1), and so on until 2^-d comes back to v_0. All other neighbours are missing.
    origin = torch.zeros(d, 1, device=device)
    got = filter_points(origin, torch.ones(1, 1, device=device))
    assert got.item() == pytest.approx((1 + 2.0 ** -(d + 1)) / (1 + 2.0**-d), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_backward_blurs_in_the_opposite_order(name: str, device: torch.device) -> None:
    # The same order in backward is off by 10 to 14 percent: <K x, y> = <x, K^T y> tells them apart.
    case = CASES[name]
    lattice = build(case, levels(1, case.channels, case.points).to(device), dtype=DOUBLE)
    x, y = noise(1, case.points, 3).to(device), noise(1, case.points, 3, seed=2).to(device)
    forth = ops.lattice_filter(x, None, None, None, lattice, case.grid, False)
    back = ops.lattice_filter(y, None, None, None, lattice, case.grid, True)
    assert float((forth * y).sum()) == pytest.approx(float((x * back).sum()), rel=1e-10)
    if 1 < len(case.bandwidth) <= 8:  # a line has but two axes along one direction; 90 points in 16-d hardly meet
        assert relative(ops.lattice_filter(x, None, None, None, lattice, case.grid, True), forth.cpu()) > 1e-4


def test_gradient_is_that_of_the_guide_and_not_of_itself(device: torch.device) -> None:
    # grad_output was filtered with itself as the guide: linear in the values, the gradient must not depend on them.
    features = torch.rand(2, 40, generator=torch.Generator().manual_seed(0)).to(device) * 4
    gradients = []
    for seed in (1, 2):
        values = noise(1, 40, seed=seed, dtype=torch.float32).to(device).requires_grad_()
        permutohedral_filter(values, features, normalization="none", spatial_dims=1).sum().backward()
        gradients.append(values.grad)
    assert torch.equal(*gradients)


def test_features_and_image_are_left_as_they_were(device: torch.device) -> None:
    # The caller's features were divided by the bandwidths in place.
    features = torch.rand(3, 9, 9).to(device) * 255
    before = features.clone()
    permutohedral_filter(features, features, 30)
    assert torch.equal(features, before)


@pytest.mark.parametrize("channels", [17, 33, 65, 129, 1000])
def test_any_number_of_channels(channels: int, device: torch.device) -> None:
    # More than 16 were refused, and earlier returned as zeros. Channels do not meet: each is the same alone.
    case = CASES["d3-grey-ties"]
    lattice = build(case, levels(1, case.channels, case.points).to(device))
    values = noise(1, case.points, channels, dtype=torch.float32).to(device)
    together = ops.lattice_filter(values, None, None, None, lattice, case.grid, False)
    for c in (0, 15, 16, channels - 1):
        alone = ops.lattice_filter(values[..., c : c + 1], None, None, None, lattice, case.grid, False)
        # sums are formed in another order where one channel has rows of its own
        assert relative(together[..., c : c + 1], alone.cpu()) < 1e-5


def test_every_vertex_is_there_once(device: torch.device) -> None:
    # Insertion without verification stored a key several times (64 keys became 106) or matched the zero key falsely.
    # Points on the vertices themselves: as many distinct vertices as points, plus what their simplices add.
    side = torch.arange(-4, 4)
    points = torch.cartesian_prod(side, side, side).T.double() * 1.3
    got = build(Case((512,), False, [1.0] * 3), points[None].to(device), dtype=DOUBLE)
    expected = reference.lattice_build(points[None], torch.ones(3, dtype=DOUBLE), (512,), False, 2048)
    assert int(got.num_vertices) == int(expected.num_vertices)
    vertices = got.tile_vertices[: int(got.tile_offsets[-1])].unique()
    assert vertices.tolist() == list(range(int(got.num_vertices)))


def test_flat_image(device: torch.device) -> None:
    # All points of a tile share one simplex: one thread had to add them all while its block waited. Here threads share
    # the sum; the result stays that of the closed form, a constant.
    image = torch.full((1, 40, 50), 127.0, device=device)
    flat = permutohedral_filter(image, image, 10, normalization="homogeneous")
    torch.testing.assert_close(flat, image, rtol=1e-5, atol=0)  # sums of 2000 numbers in float32


@pytest.mark.parametrize("far", [2**15 - 2, 2**15 + 2, 2**16 + 2, 500_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_keys_beyond_16_bits(far: int, sign: int, device: torch.device) -> None:
    # Keys were kept in 16 bits without a check: what lies 65536 apart met. Two groups far apart must not.
    near = torch.linspace(0, 3, 20, dtype=DOUBLE)
    features = torch.cat([near, near + sign * far])[None]
    values = torch.cat([torch.ones(20, 1, dtype=DOUBLE), torch.zeros(20, 1, dtype=DOUBLE)])
    got = filter_points(features.to(device), values.to(device)).cpu()
    alone = filter_points(near[None].to(device), values[:20].to(device)).cpu()
    torch.testing.assert_close(got[:20], alone, rtol=1e-6, atol=1e-9)  # a far feature has fewer bits for its fraction
    assert (got[20:] == 0).all()


def test_symmetric_normalization_is_that_of_both_sides(device: torch.device) -> None:
    # Dividing by the filtered ones alone is another matrix: D^-1/2 K D^-1/2 is what the paper's authors use.
    case = CASES["d2-ties"]
    lattice = build(case, torch.zeros(1, 0, case.points, dtype=torch.uint8, device=device), dtype=DOUBLE)
    eye = torch.eye(case.points, dtype=DOUBLE, device=device)[None]
    kernel = ops.lattice_filter(eye, None, None, None, lattice, case.grid, False)[0]
    scale = kernel.sum(1).rsqrt()
    got = ops.lattice_filter(eye, None, scale[None], scale[None], lattice, case.grid, False)[0]
    torch.testing.assert_close(got, scale[:, None] * kernel * scale, rtol=1e-10, atol=1e-14)


def test_a_lattice_is_built_once_for_all_iterations(device: torch.device) -> None:
    # It was built again in every iteration.
    built = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            built.append("lattice_build" in str(op))
            return op(*args, **kwargs or {})

    crf = DenseCRF(3, [Features(torch.rand(2, 12, 15).to(device), 3, bandwidth=0.1)], iterations=10).to(device)
    with Count():
        crf(noise(3, 12, 15, dtype=torch.float32).to(device))
    assert sum(built) == 1
