"""The exact Gaussian filter: closed forms, attention, gradients, blocks, bad input."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from densecrf_cuda import dense
from densecrf_cuda.dense import dense_attention_filter, dense_filter

DOUBLE = torch.float64
NORMALIZATIONS = ["none", "before", "after", "symmetric", "homogeneous"]


def example(*batch: int, d: int = 3, channels: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*batch, channels, 4, 5, dtype=DOUBLE, generator=generator)
    return values, torch.randn(*batch, d, 4, 5, dtype=DOUBLE, generator=generator)


def kernel_matrix(features: Tensor) -> Tensor:
    points = features.flatten(1).T
    return torch.exp(-(points[:, None] - points[None]).square().sum(2) / 2)


def test_two_points() -> None:
    # k = exp(-(3² + 4²) / 2) between the points and 1 with themselves.
    k = math.exp(-12.5)
    features = torch.tensor([[[0.0, 3.0]], [[0.0, 4.0]]], dtype=DOUBLE)
    values = torch.tensor([[[2.0, 5.0]]], dtype=DOUBLE)
    expected = {
        "none": [2 + 5 * k, 2 * k + 5],
        "homogeneous": [(2 + 5 * k) / (1 + k), (2 * k + 5) / (1 + k)],
    }
    for normalization, result in expected.items():
        got = dense_filter(values, features, normalization=normalization)
        torch.testing.assert_close(got.flatten(), torch.tensor(result, dtype=DOUBLE), rtol=1e-15, atol=0)


def test_line_of_pixels_is_a_separable_gaussian() -> None:
    # With features (x, y) / s the kernel is the product of two one-dimensional Gaussians.
    height, width, s = 6, 7, 1.5
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    values = torch.randn(3, height, width, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    got = dense_filter(values, torch.stack([x, y]) / s, normalization="none")
    rows, cols = (kernel_matrix(torch.arange(n).double()[None] / s) for n in (height, width))
    torch.testing.assert_close(got, rows @ values @ cols, rtol=1e-13, atol=1e-13)  # sums of 42 terms


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_normalizations(normalization: str) -> None:
    values, features = example()
    kernel = kernel_matrix(features)
    k = kernel.sum(1)
    before = {"before": 1 / k, "symmetric": k**-0.5}.get(normalization, torch.ones_like(k))
    after = {"after": 1 / k, "homogeneous": 1 / k, "symmetric": k**-0.5}.get(normalization, torch.ones_like(k))
    expected = after * (values.flatten(1) * before @ kernel)
    got = dense_filter(values, features, normalization=normalization)
    torch.testing.assert_close(got.flatten(1), expected, rtol=1e-13, atol=1e-13)  # sums of 20 terms; 1e-20 is lost


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients(normalization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "BLOCK_ENTRIES", 60)  # 3 rows at a time: the checkpointed path
    values, features = (tensor[..., :2].clone().requires_grad_() for tensor in example(2, d=2))

    def run(values: Tensor, features: Tensor) -> Tensor:
        return dense_filter(values, features, normalization=normalization)

    assert torch.autograd.gradcheck(run, (values, features))
    assert torch.autograd.gradgradcheck(run, (values, features))


def test_backward_keeps_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    points = 600
    monkeypatch.setattr(dense, "BLOCK_ENTRIES", 20 * points)
    values = torch.randn(2, points, generator=torch.Generator().manual_seed(0)).requires_grad_()
    features = torch.randn(3, points, generator=torch.Generator().manual_seed(1)).requires_grad_()
    saved: set[tuple[int, int]] = set()

    def note(tensor: Tensor) -> Tensor:
        saved.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        dense_filter(values, features, spatial_dims=1).sum().backward()
    # Inputs, norms and results, a handful of [4, N] at most; the kernel matrix would be N² = 360 000 entries.
    assert max(size for _, size in saved) <= 4 * 4 * points
    assert values.grad is not None
    assert features.grad is not None
    assert features.grad.abs().max() > 0


@pytest.mark.parametrize("entries", [1, 70, 1 << 20])
def test_blocks_do_not_matter(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values, features = example(2)
    expected = dense_filter(values, features)
    monkeypatch.setattr(dense, "BLOCK_ENTRIES", entries)
    # The matrix product of a block may sum in another order.
    torch.testing.assert_close(dense_filter(values, features), expected, rtol=1e-13, atol=1e-13)
    attention = dense_attention_filter(values, features)
    torch.testing.assert_close(attention, dense_filter(values, features, normalization="homogeneous"))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_attention_is_the_homogeneous_filter(d: int, dtype: torch.dtype, tolerance: float) -> None:
    values, features = example(2, d=d)
    values, features = values.to(dtype), (10 * features + 1000).to(dtype)
    got = dense_attention_filter(values, features)
    # The logits f·g - |g|²/2 reach 1e3 after centring: their rounding, 1e3 eps, is the relative error of a weight.
    # (In float32 the features at 1000 are rounded for both alike.)
    for normalization in ("homogeneous", "after"):
        expected = dense_filter(values, features, normalization=normalization)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_attention_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "BLOCK_ENTRIES", 60)
    values, features = (tensor[..., :2].clone().requires_grad_() for tensor in example(d=2))
    assert torch.autograd.gradcheck(dense_attention_filter, (values, features))


@pytest.mark.parametrize("run", [dense_filter, dense_attention_filter])
def test_layouts(run: Any) -> None:
    values, features = example(2)
    each = torch.stack([run(v, f) for v, f in zip(values, features)])
    torch.testing.assert_close(run(values, features), each)
    shared = torch.stack([run(v, features[0]) for v in values])
    torch.testing.assert_close(run(values, features[0]), shared)
    torch.testing.assert_close(run(values, features[:1]), shared)
    torch.testing.assert_close(run(values.flatten(2), features.flatten(2), spatial_dims=1), each.flatten(2))
    volume = run(values[..., None], features[..., None], spatial_dims=3)
    torch.testing.assert_close(volume[..., 0], each)
    strided = run(values.transpose(2, 3), features.transpose(2, 3))
    torch.testing.assert_close(strided.transpose(2, 3), each)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float(dtype: torch.dtype) -> None:
    values, features = (tensor.to(dtype) for tensor in example())
    got = dense_filter(values, features)
    assert got.dtype == dtype
    assert torch.equal(got, dense_filter(values.float(), features.float()).to(dtype))


@pytest.mark.parametrize("run", [dense_filter, dense_attention_filter])
@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (3, 0, 4, 5), (3, 2, 0, 5)])
def test_empty(run: Any, shape: tuple[int, ...]) -> None:
    features = torch.zeros(shape[0], 3, *shape[2:])
    assert run(torch.zeros(shape), features).shape == shape


@pytest.mark.parametrize("run", [dense_filter, dense_attention_filter])
@pytest.mark.parametrize(
    ("values", "features", "error", "message"),
    [
        (torch.zeros(2, 4, 5).int(), torch.zeros(3, 4, 5), TypeError, "values .* got torch.int32"),
        (torch.zeros(2, 4, 5), torch.zeros(3, 4, 5).byte(), TypeError, "features .* got torch.uint8"),
        (torch.zeros(4, 5), torch.zeros(3, 4, 5), ValueError, r"values must be \[C, \*spatial\].* got shape \(4, 5\)"),
        (torch.zeros(2, 4, 5), torch.zeros(3, 5, 4), ValueError, r"spatial shape of values, \(4, 5\), got \(5, 4\)"),
        (torch.zeros(2, 1, 4, 5), torch.zeros(3, 3, 4, 5), ValueError, "batch of features must be 1 or .* 2, got 3"),
        (torch.zeros(2, 4, 5), torch.full((3, 4, 5), math.nan), ValueError, "features must be finite, got nan"),
        (torch.zeros(2, 4, 5), torch.full((3, 4, 5), math.inf), ValueError, "features must be finite, got inf"),
    ],
)
def test_bad_input(run: Any, values: Tensor, features: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(values, features)


def test_bad_settings() -> None:
    values, features = example()
    with pytest.raises(ValueError, match=r"normalization must be one of .* got 'mean'"):
        dense_filter(values, features, normalization="mean")
    with pytest.raises(ValueError, match="spatial_dims must be at least 1, got 0"):
        dense_filter(values, features, spatial_dims=0)


@pytest.mark.cuda
@pytest.mark.parametrize("run", [dense_filter, dense_attention_filter])
def test_a_gpu_gives_the_same_and_is_not_waited_for(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "BLOCK_ENTRIES", 60)  # 3 rows at a time: the checkpointed path
    inputs = example(2)
    on_gpu = [tensor.cuda().requires_grad_() for tensor in inputs]
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = run(*on_gpu)
        gradients = torch.autograd.grad(result.square().sum(), on_gpu)
        bad = run(on_gpu[0].detach(), torch.full_like(on_gpu[1], math.nan))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = [tensor.requires_grad_() for tensor in inputs]
    expected = run(*on_cpu)
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.square().sum(), on_cpu)):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-9, atol=1e-9)
    assert bad.isnan().all()
