"""`lattice_filter` and its gradient with respect to features: against the reference and finite differences."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    CASES,
    DOUBLE,
    Case,
    assert_as_exact_as_torch,
    build,
    filter_reference,
    for_threads,
    layouts,
    levels,
    noise,
    on_cpu,
    ops,
    relative,
)
from torch import Tensor

from densecrf_cuda import reference
from densecrf_cuda.ops import lattice_filter
from densecrf_cuda.reference import LatticeTensors

CHANNELS = [1, 2, 3, 4, 5, 8, 21, 33, 64, 150, 300]


def lattice_of(name: str, device: torch.device, batch: int = 1, dtype: torch.dtype = torch.float32) -> LatticeTensors:
    case = CASES[name]
    return build(case, levels(batch, case.channels, case.points).to(device), dtype=dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, batch: int, reverse: bool, device: torch.device) -> None:
    case = CASES[name]
    scales = tuple(noise(batch, case.points, seed=seed).exp().to(device) for seed in (2, 3))
    values = noise(batch, case.points, 5).to(device)
    lattice = lattice_of(name, device, batch, DOUBLE)
    for splat, slice_ in ((None, None), scales, (scales[0], None), (None, scales[1])):
        got = ops.lattice_filter(values, None, splat, slice_, lattice, case.grid, reverse)
        expected = filter_reference(values, lattice, case.grid, (splat, slice_), reverse)
        assert relative(got, expected) <= 1e-10

    lattice, values = lattice_of(name, device, batch), values.float()
    splat, slice_ = (scale.float() for scale in scales)
    got = ops.lattice_filter(values, None, splat, slice_, lattice, case.grid, reverse)
    torch_result = filter_reference(values, lattice, case.grid, (splat, slice_), reverse)
    exact = filter_reference(values, lattice, case.grid, (splat, slice_), reverse, DOUBLE)
    assert_as_exact_as_torch(got, torch_result, exact)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", ["d2-ties", "d5", "d16"])
def test_any_number_of_channels(name: str, channels: int, device: torch.device) -> None:
    case = CASES[name]
    values = noise(1, case.points, channels)
    for dtype in (DOUBLE, torch.float32):
        lattice = lattice_of(name, device, 1, dtype)
        got = ops.lattice_filter(values.to(device, dtype), None, None, None, lattice, case.grid, False)
        assert got.dtype == dtype and got.is_contiguous()
        exact = filter_reference(values.to(dtype), lattice, case.grid, dtype=DOUBLE)
        if dtype == DOUBLE:
            assert relative(got, exact) <= 1e-10
        else:
            assert_as_exact_as_torch(got, filter_reference(values.to(dtype), lattice, case.grid), exact)


@pytest.mark.parametrize("channels", [1, 6, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float(dtype: torch.dtype, channels: int, device: torch.device) -> None:
    case = CASES["d5"]
    lattice = lattice_of("d5", device, 2)
    values = noise(2, case.points, channels).to(device, dtype)
    scale = noise(2, case.points).exp().to(device, dtype)
    got = ops.lattice_filter(values, None, scale, scale, lattice, case.grid, False)
    expected = ops.lattice_filter(values.float(), None, scale.float(), scale.float(), lattice, case.grid, False)
    assert got.dtype == dtype
    assert torch.equal(got, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 6, 21])
def test_layout_of_values_does_not_matter(channels: int, dtype: torch.dtype, device: torch.device) -> None:
    case = CASES["d5"]
    lattice = lattice_of("d5", device, 2, DOUBLE if dtype == DOUBLE else torch.float32)
    values, scale = noise(2, case.points, channels).to(device, dtype), noise(2, case.points).to(device, dtype)

    def run(values: Tensor, scale: Tensor | None) -> Tensor:
        return ops.lattice_filter(values, None, scale, scale, lattice, case.grid, False)

    expected = run(values, None)
    for name, strided in layouts(values).items():
        assert torch.equal(run(strided, None), expected), name
    expected = run(values, scale)
    for name, strided in layouts(scale).items():
        assert torch.equal(run(values, strided), expected), name
    for expanded in (
        values[:, :, :1].expand(-1, -1, channels),
        values[:1].expand(2, -1, -1),
        values[:, :1].expand(-1, case.points, -1),
        values[:1, :1, :1].expand(2, case.points, channels),
    ):
        assert torch.equal(run(expanded, None), run(expanded.contiguous(), None))
    assert torch.equal(run(values, scale[:1]), run(values, scale[:1].expand(2, -1)))


def test_inputs_are_not_modified(device: torch.device) -> None:
    case = CASES["d5"]
    lattice = lattice_of("d5", device)
    inputs = [noise(1, case.points, 3, dtype=torch.float32).to(device), *lattice[:8:7]]
    inputs.append(noise(1, case.points, dtype=torch.float32).to(device))
    before = [tensor.clone() for tensor in inputs]
    ops.lattice_filter(inputs[0], None, inputs[-1], inputs[-1], lattice, case.grid, False)
    assert all(map(torch.equal, inputs, before))


@pytest.mark.parametrize("shape", [(0, 561, 4), (2, 561, 0), (0, 561, 0)])
def test_empty_values(shape: tuple[int, ...], device: torch.device) -> None:
    values = torch.zeros(shape, device=device)
    got = ops.lattice_filter(values, None, None, None, lattice_of("d5", device), CASES["d5"].grid, False)
    assert got.shape == shape


def test_empty_grid(device: torch.device) -> None:
    lattice = build(Case((0, 5), True, [1.0, 1.0]), torch.zeros(2, 0, 0, device=device))
    values = torch.zeros(2, 0, 3, device=device)
    assert ops.lattice_filter(values, None, None, None, lattice, (0, 5), False).shape == (2, 0, 3)


@pytest.mark.parametrize("channels", [1, 7, 40])
@pytest.mark.parametrize("reverse", [False, True])
def test_batches_are_bitwise_their_images(reverse: bool, channels: int, device: torch.device) -> None:
    case = CASES["d5"]
    guide, values = levels(3, 3, case.points).to(device), noise(3, case.points, channels).float().to(device)
    scale = noise(3, case.points).exp().float().to(device)
    own, shared = build(case, guide), build(case, guide[:1])
    together = ops.lattice_filter(values, None, scale, scale, own, case.grid, reverse)
    sharing = ops.lattice_filter(values, None, scale[:1], None, shared, case.grid, reverse)
    for b in range(3):
        x, s, alone = values[b : b + 1], scale[b : b + 1], build(case, guide[b : b + 1])
        assert torch.equal(ops.lattice_filter(x, None, s, s, alone, case.grid, reverse), together[b : b + 1])
        got = ops.lattice_filter(x, None, scale[:1], None, shared, case.grid, reverse)
        assert torch.equal(got, sharing[b : b + 1])


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("channels", [1, 21])
def test_number_of_threads_does_not_matter(channels: int, batch: int, restore_threads: None) -> None:
    case = Case((61, 90), True, [5.0, 5.0, 13.0, 13.0, 13.0])
    guide, values = levels(batch, 3, case.points), noise(batch, case.points, channels).float()
    lattice = build(case, guide)
    features = reference.lattice_features(guide, torch.tensor(case.bandwidth), case.grid, True)

    def run() -> list[Tensor]:
        filtered = [ops.lattice_filter(values, None, None, None, lattice, case.grid, r) for r in (False, True)]
        return [*filtered, ops._lattice_feature_grad(values, filtered[0], features, lattice, case.grid, False)]

    first, *others = for_threads(run)
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("name", CASES)
def test_reverse_is_the_adjoint(name: str, device: torch.device) -> None:
    case = CASES[name]
    lattice = lattice_of(name, device, 2, DOUBLE)
    x, y = (noise(2, case.points, 3, seed=seed).to(device) for seed in (1, 2))
    kx = ops.lattice_filter(x, None, None, None, lattice, case.grid, False)
    kty = ops.lattice_filter(y, None, None, None, lattice, case.grid, True)
    # Both are one sum of some thousand products in another order.
    torch.testing.assert_close((kx * y).sum(), (x * kty).sum(), rtol=1e-11, atol=1e-11)


def scattered(d: int, points: int, batch: int, device: torch.device) -> tuple[Tensor, LatticeTensors]:
    """Random features, nearly surely farther from every face of a simplex than the steps of gradcheck."""
    features = 2 * noise(batch, d, points, seed=d).to(device)
    return features, build(Case((points,), False, [1.0] * d), features, dtype=DOUBLE)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("d", "lattices", "images"), [(1, 1, 1), (2, 1, 3), (3, 2, 2), (5, 2, 2), (8, 1, 2), (16, 1, 1)]
)
def test_gradients(d: int, lattices: int, images: int, reverse: bool, device: torch.device) -> None:
    points = 7
    case = Case((points,), False, [1.0] * d)
    features, lattice = scattered(d, points, lattices, device)
    x = noise(images, points, 2).to(device).requires_grad_()
    splat, slice_ = (noise(lattices, points, seed=s).to(device).requires_grad_() for s in (2, 3))
    features.requires_grad_()

    def run(x: Tensor, splat: Tensor, slice_: Tensor, features: Tensor | None = None) -> Tensor:
        # The operator reads the features only through the lattice: finite differences need one of their own.
        own = lattice if features is None else build(case, features.detach(), dtype=DOUBLE)
        return lattice_filter(
            x, own, [points], features=features, splat_scale=splat, slice_scale=slice_, reverse=reverse
        )

    assert torch.autograd.gradcheck(run, (x, splat, slice_, features))
    assert torch.autograd.gradgradcheck(run, (x, splat, slice_))


def test_only_what_is_asked_for_gets_a_gradient(device: torch.device) -> None:
    features, lattice = scattered(3, 9, 1, device)
    x, scale = noise(1, 9, 2).to(device), noise(1, 9).to(device)
    everything = {"features": features, "splat_scale": scale, "slice_scale": scale}
    whole = {}
    inputs = {"x": x, **{name: tensor.clone() for name, tensor in everything.items()}}
    for name, tensor in inputs.items():
        leaf = tensor.clone().requires_grad_()
        arguments = {key: leaf if key == name else value for key, value in inputs.items()}
        lattice_filter(arguments.pop("x"), lattice, [9], **arguments).square().sum().backward()
        whole[name] = leaf.grad
    leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
    arguments = dict(leaves)
    lattice_filter(arguments.pop("x"), lattice, [9], **arguments).square().sum().backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, whole[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels", [1, 4, 21, 70])
@pytest.mark.parametrize("name", ["d1", "d2-ties", "d5", "d8"])
def test_feature_gradient_equals_the_reference(name: str, channels: int, reverse: bool, device: torch.device) -> None:
    case = CASES[name]
    guide = (levels(2, case.channels, case.points) + noise(2, case.channels, case.points)).to(device)
    bandwidth = torch.tensor(case.bandwidth, dtype=DOUBLE, device=device)
    features = reference.lattice_features(guide, bandwidth, case.grid, case.coordinates)
    values, grad = (noise(2, case.points, channels, seed=seed).to(device) for seed in (1, 2))
    for dtype in (DOUBLE, torch.float32):
        lattice = build(Case(case.grid, False, [1.0] * len(case.bandwidth)), features.to(dtype), dtype=dtype)
        x, g, f = values.to(dtype), grad.to(dtype), features.to(dtype)
        got = ops._lattice_feature_grad(x, g, f, lattice, case.grid, reverse)
        assert got.dtype == dtype
        cpu = [tensor.cpu() for tensor in (x, g, f)]
        expected = reference._lattice_feature_grad(*cpu, on_cpu(lattice), case.grid, reverse)
        if dtype == DOUBLE:
            assert relative(got, expected) <= 1e-10
        else:
            # The simplices are those of float32, so the rank of every point is as there: only sums are more exact.
            exact = reference._lattice_feature_grad(
                *(tensor.double() for tensor in cpu), on_cpu(lattice, DOUBLE), case.grid, reverse
            )
            assert_as_exact_as_torch(got, expected, exact)


def test_strides_of_the_feature_gradient_do_not_matter(device: torch.device) -> None:
    features, lattice = scattered(3, 40, 2, device)
    x, grad = (noise(2, 40, 5, seed=s).to(device) for s in (1, 2))
    expected = ops._lattice_feature_grad(x, grad, features, lattice, [40], False)
    for name in layouts(x):
        strided = [layouts(tensor)[name] for tensor in (x, grad, features)]
        assert torch.equal(ops._lattice_feature_grad(*strided, lattice, [40], False), expected), name
    ones = x.new_ones(1, 1, 1).expand(x.shape)  # what sum().backward() sends
    expected = ops._lattice_feature_grad(x, ones.contiguous(), features, lattice, [40], False)
    assert torch.equal(ops._lattice_feature_grad(x, ones, features, lattice, [40], False), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, device: torch.device) -> None:
    lattice_dtype = DOUBLE if dtype == DOUBLE else torch.float32
    case = CASES["d3-grey-ties"]
    lattice = list(lattice_of("d3-grey-ties", device, 2, lattice_dtype))
    values = noise(2, case.points, 3).to(device, dtype).requires_grad_()
    scale = noise(2, case.points).to(device, lattice_dtype).requires_grad_()
    features = noise(2, 3, case.points).to(device, lattice_dtype).requires_grad_()
    torch.library.opcheck(ops.lattice_filter, (values, None, None, None, lattice, case.grid, False))
    torch.library.opcheck(ops.lattice_filter, (values, features, scale, scale, lattice, case.grid, True))
    plain = [tensor.detach() for tensor in (values, values, features)]
    torch.library.opcheck(ops._lattice_feature_grad, (*plain, lattice, case.grid, False))
