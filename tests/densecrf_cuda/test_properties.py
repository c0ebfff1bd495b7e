"""What holds for any shape, stride, dtype, dimension, number of channels and normalization."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from helpers import DOUBLE, Case, assert_same_lattice, build, filter_reference, noise, ops, relative
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian, Lattice, permutohedral_filter, reference

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is in the extra dev")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# The same examples every time, no database, no clock. A device is no state: examples may share its fixture.
few = settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NORMALIZATIONS = ["none", "before", "after", "symmetric", "homogeneous"]
grids = st.one_of(  # tuples of 1 to 4 sizes, up to 2000 points
    st.tuples(st.integers(1, 1500)),
    st.tuples(st.integers(1, 45), st.integers(1, 45)),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(1, 6)] * 4),
)
seeds = st.integers(0, 2**20)


class Problem(NamedTuple):
    case: Case
    guide: Tensor  # [B', G, N]
    values: Tensor  # [B, N, C], float64
    dtype: torch.dtype  # of the lattice


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    grid, seed = draw(grids), draw(seeds)
    coordinates = draw(st.booleans())
    channels = draw(st.integers(0 if coordinates else 1, 6))
    d = channels + (len(grid) if coordinates else 0)
    bandwidth = draw(st.lists(st.sampled_from([0.7, 2.0, 3.3, 13.0, 80.0]), min_size=d, max_size=d))
    batch, shared = draw(st.integers(1, 3)), draw(st.booleans())
    points = math.prod(grid)
    guide = 255 * noise(1 if shared else batch, channels, points, seed=seed).sigmoid()
    kind = draw(st.sampled_from([torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    values = noise(batch, points, draw(st.integers(1, 40)), seed=seed + 1)
    return Problem(
        Case(grid, coordinates, bandwidth), guide.to(kind), values, draw(st.sampled_from([torch.float32, DOUBLE]))
    )


@st.composite
def strided(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    """The same numbers with any order of axes in memory, any gaps and any offset."""
    order = draw(st.permutations(range(tensor.dim())))
    steps = draw(st.lists(st.integers(1, 3), min_size=tensor.dim(), max_size=tensor.dim()))
    offset = draw(st.integers(0, 5))
    strides, size = [0] * tensor.dim(), 1
    for axis in order:
        strides[axis] = size * steps[axis]
        size *= steps[axis] * max(tensor.shape[axis], 1)
    memory = torch.zeros(offset + size + 1, dtype=tensor.dtype, device=tensor.device)
    view = memory.as_strided(tensor.shape, strides, offset)
    view.copy_(tensor)
    return view


@few
@given(problem=problems(), reverse=st.booleans())
def test_lattice_and_filter_equal_the_reference(problem: Problem, reverse: bool, device: torch.device) -> None:
    case, guide, values, dtype = problem
    lattice = build(case, guide.to(device), dtype=dtype)
    bandwidth = torch.tensor(case.bandwidth, dtype=dtype)
    capacity = guide.shape[0] * case.points * (len(case.bandwidth) + 1)
    assert_same_lattice(lattice, reference.lattice_build(guide, bandwidth, case.grid, case.coordinates, capacity))
    got = ops.lattice_filter(values.to(device, dtype), None, None, None, lattice, case.grid, reverse)
    expected = filter_reference(values.to(dtype), lattice, case.grid, reverse=reverse, dtype=DOUBLE)
    # float32: sums of hundreds of terms, relative to the largest result
    assert relative(got, expected) <= (1e-10 if dtype == DOUBLE else 1e-5)


@few
@given(problem=problems(), data=st.data(), half=st.sampled_from([None, torch.float16, torch.bfloat16]))
def test_memory_layout_does_not_matter(
    problem: Problem, data: Any, half: torch.dtype | None, device: torch.device
) -> None:
    case, guide, values, dtype = problem
    guide = guide.to(device)
    values = values.to(device, half if half and dtype == torch.float32 else dtype)
    scale = noise(values.shape[0], case.points, seed=3).exp().to(device, dtype)
    lattice = build(case, guide, dtype=dtype)
    assert_same_lattice(build(case, data.draw(strided(guide)), dtype=dtype), lattice)
    expected = ops.lattice_filter(values, None, scale, scale, lattice, case.grid, False)
    moved, weights = data.draw(strided(values)), data.draw(strided(scale))
    assert torch.equal(ops.lattice_filter(moved, None, weights, weights, lattice, case.grid, False), expected)
    channels = data.draw(st.integers(1, 9))
    repeated = values[..., :1].expand(-1, -1, channels)
    got = ops.lattice_filter(repeated, None, scale, scale, lattice, case.grid, False)
    assert torch.equal(got, ops.lattice_filter(repeated.contiguous(), None, scale, scale, lattice, case.grid, False))


@few
@given(problem=problems(), a=st.floats(-3, 3), b=st.floats(-3, 3), normalization=st.sampled_from(NORMALIZATIONS))
def test_filter_is_linear_positive_and_has_its_adjoint(
    problem: Problem, a: float, b: float, normalization: str, device: torch.device
) -> None:
    case, guide, values, _ = problem
    bandwidth = torch.tensor(case.bandwidth, dtype=DOUBLE, device=device)
    lattice = Lattice.on_grid(guide.to(device), bandwidth, case.grid, case.coordinates)
    x = values.to(device).transpose(1, 2).reshape(values.shape[0], -1, *case.grid)
    y = x.flip(1) ** 2
    kx, ky = lattice.filter(x, normalization), lattice.filter(y, normalization)
    assert (ky >= 0).all()
    scale = float(kx.abs().max() + ky.abs().max())
    combined = lattice.filter(a * x + b * y, normalization)
    torch.testing.assert_close(combined, a * kx + b * ky, rtol=0, atol=1e-11 * scale)
    # Each side is a sum of as many products of this size as there are values.
    adjoint = lattice.filter(y, normalization, reverse=True)
    torch.testing.assert_close((kx * y).sum(), (x * adjoint).sum(), rtol=0, atol=1e-12 * scale * float(y.abs().sum()))


@few
@given(problem=problems(), normalization=st.sampled_from(NORMALIZATIONS))
def test_one_image_at_a_time_gives_the_same_bits(problem: Problem, normalization: str, device: torch.device) -> None:
    case, guide, values, dtype = problem
    guide, x = guide.to(device), values.to(device, dtype).transpose(1, 2).reshape(values.shape[0], -1, *case.grid)
    bandwidth = torch.tensor(case.bandwidth, dtype=dtype, device=device)
    together = Lattice.on_grid(guide, bandwidth, case.grid, case.coordinates).filter(x, normalization)
    for b in range(len(x)):
        own = guide if len(guide) == 1 else guide[b : b + 1]
        alone = Lattice.on_grid(own, bandwidth, case.grid, case.coordinates).filter(x[b], normalization)
        assert torch.equal(alone, together[b])


@few
@given(d=st.integers(1, 20), points=st.integers(1, 200), channels=st.integers(1, 9), seed=seeds)
def test_order_of_points_does_not_matter(d: int, points: int, channels: int, seed: int, device: torch.device) -> None:
    features, values = noise(d, points, seed=seed).to(device), noise(channels, points, seed=seed + 1).to(device)
    order = torch.randperm(points, generator=torch.Generator().manual_seed(seed)).to(device)
    expected = permutohedral_filter(values, features)
    got = permutohedral_filter(values[:, order], features[:, order])
    torch.testing.assert_close(got, expected[:, order], rtol=0, atol=1e-11 * float(expected.abs().max()))


class CrfProblem(NamedTuple):
    crf: DenseCRF
    unary: Tensor
    image: Tensor


@st.composite
def crf_problems(draw: st.DrawFn, forms: tuple[str, ...] = ("potts", "diagonal", "matrix")) -> CrfProblem:
    classes, seed = draw(st.integers(1, 24)), draw(seeds)
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    channels = draw(st.integers(1, 4))
    kernels: list[Any] = []
    for index in range(draw(st.integers(0, 3))):
        form = draw(st.sampled_from(forms))
        shape = {"potts": (), "diagonal": (classes,), "matrix": (classes, classes)}[form]
        compat = noise(*shape, seed=seed + index) if shape else draw(st.floats(-2, 4))
        normalization = draw(st.sampled_from([None, *NORMALIZATIONS[1:]]))
        kernels.append(
            draw(
                st.sampled_from(
                    [
                        Gaussian(2.3, compat, normalization=normalization),
                        Bilateral((5, 9), 30, compat, normalization=normalization),
                        Features(None, compat, bandwidth=45, normalization=normalization),
                    ]
                )
            )
        )
    crf = DenseCRF(
        classes,
        kernels,
        iterations=draw(st.integers(0, 4)),
        damping=draw(st.sampled_from([0.0, 0.5])),
        tol=draw(st.sampled_from([None, 0.0, 1e-2])),
    )
    unary = draw(st.sampled_from([0.1, 3.0, 100.0])) * noise(batch, classes, height, width, seed=seed)
    image = 255 * noise(batch, channels, height, width, seed=seed + 9).sigmoid()
    return CrfProblem(crf, unary, image.to(draw(st.sampled_from([torch.uint8, torch.float32, DOUBLE]))))


@few
@given(
    problem=crf_problems(),
    data=st.data(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, DOUBLE]),
)
def test_results_are_distributions(problem: CrfProblem, data: Any, dtype: torch.dtype, device: torch.device) -> None:
    crf, unary, image = problem.crf, problem.unary.to(device, dtype), problem.image.to(device)
    forbidden = torch.rand(unary.shape, generator=torch.Generator().manual_seed(0)).to(device) < 0.2
    forbidden[:, 0] = False
    unary = unary.masked_fill(forbidden, math.inf)
    q = crf(unary, image)
    assert q.shape == unary.shape and q.dtype == dtype
    assert (q >= 0).all() and (q <= 1).all() and (q[forbidden] == 0).all()
    # Each of the probabilities is rounded to the dtype once.
    unit = max(torch.finfo(dtype).eps, 1e-6 if dtype != DOUBLE else 1e-14)
    torch.testing.assert_close(q.double().sum(1), torch.ones_like(q[:, 0], dtype=DOUBLE), rtol=0, atol=4 * unit)
    log_q = crf(unary, image, output="log_probabilities")
    torch.testing.assert_close(log_q.exp(), q, rtol=0, atol=100 * unit)
    if dtype in (torch.float32, DOUBLE):  # before it is rounded to a half, Q may have one maximum, then several
        assert torch.equal(crf(unary, image, output="labels"), q.argmax(1))
    assert torch.equal(crf(data.draw(strided(unary)), data.draw(strided(image))), q)
    for b in range(len(unary)):
        assert torch.equal(crf(unary[b], image[b]), q[b])


@few
@given(problem=crf_problems(forms=("potts",)), seed=seeds)
def test_names_of_labels_do_not_matter(problem: CrfProblem, seed: int, device: torch.device) -> None:
    crf, unary, image = problem.crf, problem.unary.to(device), problem.image.to(device)
    order = torch.randperm(crf.num_classes, generator=torch.Generator().manual_seed(seed)).to(device)
    crf.tol = None  # rounding may decide in which iteration an image stops
    # Sums over labels in another order; four iterations with weights up to 4 amplify the last bits.
    torch.testing.assert_close(crf(unary[:, order], image), crf(unary, image)[:, order], rtol=1e-8, atol=1e-9)
    # Adding the same energy to every label of a pixel changes nothing either.
    offset = noise(unary.shape[0], 1, *unary.shape[2:], seed=seed).to(device)
    torch.testing.assert_close(crf(unary + offset, image), crf(unary, image), rtol=1e-8, atol=1e-9)


@few
@given(problem=crf_problems())
def test_path_with_gradients_equals_the_fused_one(problem: CrfProblem, device: torch.device) -> None:
    crf, unary, image = problem.crf, problem.unary.to(device), problem.image.to(device)
    crf.tol = None
    fused = crf(unary, image)
    leaf = unary.clone().requires_grad_()
    q = crf(leaf, image)
    torch.testing.assert_close(q, fused, rtol=1e-8, atol=1e-9)
    # Q depends on differences of energies alone: its gradient sums to zero over the labels of a pixel.
    (gradient,) = torch.autograd.grad((q * noise(*q.shape, seed=4).to(device)).sum(), leaf)
    scale = 1 + float(gradient.abs().max())
    torch.testing.assert_close(gradient.sum(1), torch.zeros_like(gradient[:, 0]), rtol=0, atol=1e-10 * scale)
