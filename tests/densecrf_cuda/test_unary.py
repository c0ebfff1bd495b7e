"""Unary energies: the formulas, numpy and tensors, gradients, bad input."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from densecrf_cuda.unary import (
    unary_from_labels,
    unary_from_logits,
    unary_from_probabilities,
    unary_from_scribbles,
)


def probabilities() -> Tensor:
    return torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).softmax(1)


def test_probabilities_are_clipped() -> None:
    got = unary_from_probabilities(torch.tensor([1.0, 0.25, 1e-5, 1e-6, 0.0], dtype=torch.float64))
    expected = [0.0, math.log(4), math.log(1e5), math.log(1e5), math.log(1e5)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)
    assert unary_from_probabilities(torch.tensor([0.0]), clip=0).isposinf().all()
    assert (unary_from_probabilities(torch.tensor([1.0 + 1e-7])) == 0).all()  # a softmax rounds up


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probabilities_keep_their_dtype(dtype: torch.dtype) -> None:
    p = torch.tensor([0.5, 0.0], dtype=dtype)
    got = unary_from_probabilities(p)
    expected = torch.tensor([math.log(2), math.log(1e5)], dtype=torch.float64)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=torch.finfo(dtype).eps, atol=0)  # rounded once


def test_logits_are_the_probabilities_of_their_softmax() -> None:
    logits = 3 * torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(unary_from_logits(logits), unary_from_probabilities(logits.softmax(1), clip=0))
    points = logits.flatten(2)
    torch.testing.assert_close(unary_from_logits(points, spatial_dims=1), unary_from_logits(logits).flatten(2))
    forbidden = torch.tensor([0.0, -math.inf]).reshape(2, 1, 1)
    assert unary_from_logits(forbidden).flatten().tolist() == [0.0, math.inf]


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_scale_mixes_with_the_uniform_distribution(spatial_dims: int) -> None:
    p = torch.rand(2, 5, *[3] * spatial_dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(
        1
    )
    got = unary_from_probabilities(p, scale=0.8, spatial_dims=spatial_dims)
    torch.testing.assert_close(got, -(0.8 * p + 0.2 / 5).log(), rtol=1e-14, atol=0)
    assert torch.equal(unary_from_probabilities(p, scale=1.0), unary_from_probabilities(p))


def test_gradients() -> None:
    p = probabilities()[:1, :, :2, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(unary_from_probabilities, (p,))
    assert torch.autograd.gradcheck(unary_from_logits, (p,))
    assert torch.autograd.gradcheck(lambda p: unary_from_probabilities(p, scale=0.7), (p,))


def test_labels() -> None:
    labels = torch.tensor([[0, 2], [1, 255]])
    got = unary_from_labels(labels, 3, 0.7, unsure_label=255)
    right, wrong, unsure = -math.log(0.7), -math.log(0.3 / 2), math.log(3)
    expected = [
        [[right, wrong], [wrong, unsure]],
        [[wrong, wrong], [right, unsure]],
        [[wrong, right], [wrong, unsure]],
    ]
    torch.testing.assert_close(got, torch.tensor(expected))
    torch.testing.assert_close((-got).exp().sum(0), torch.ones(2, 2))
    assert got.dtype == torch.float32


def test_scribbles_count_from_one() -> None:
    scribbles = torch.tensor([[[0, 3], [2, 0]]])
    expected = unary_from_labels(torch.tensor([[[9, 2], [1, 9]]]), 3, 0.6, unsure_label=9)
    got = unary_from_scribbles(scribbles, 3, 0.6)
    assert got.shape == (1, 3, 2, 2)
    assert torch.equal(got, expected)


def test_several_unsure_labels() -> None:
    labels = torch.tensor([[0, 255], [-1, 1]])
    got = unary_from_labels(labels, 2, 0.7, unsure_label=(255, -1))
    expected = unary_from_labels(torch.tensor([[0, 9], [9, 1]]), 2, 0.7, unsure_label=9)
    assert torch.equal(got, expected)
    assert torch.equal(unary_from_labels(labels.clamp(0, 1), 2, 0.7, ()), unary_from_labels(labels.clamp(0, 1), 2, 0.7))


def by_hand(labels: np.ndarray, confidence: np.ndarray, num_labels: int) -> np.ndarray:
    """[C, *labels.shape] from the formula, pixel by pixel; a label outside 0..C-1 is unsure."""
    u = np.full((num_labels, *labels.shape), math.log(num_labels))
    for place in np.ndindex(labels.shape):
        if 0 <= labels[place] < num_labels:
            u[(slice(None), *place)] = -math.log((1 - confidence[place]) / (num_labels - 1))
            u[(labels[place], *place)] = -math.log(confidence[place])
    return u


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_a_confidence_for_each_label(spatial_dims: int) -> None:
    labels = np.arange(4**spatial_dims).reshape([4] * spatial_dims) % 4
    each = [0.9, 0.5, 0.7, 0.3]
    expected = by_hand(labels, np.array(each)[labels], 4)
    got = unary_from_labels(labels, 4, each, spatial_dims=spatial_dims)
    # Logarithms in double, rounded to float32 once.
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-7)
    assert torch.equal(got, unary_from_labels(labels, 4, tuple(each), spatial_dims=spatial_dims))
    assert torch.equal(got, unary_from_scribbles(labels + 1, 4, each, spatial_dims=spatial_dims))
    unsure = np.where(labels == 2, 255, labels)
    got = unary_from_labels(unsure, 4, each, unsure_label=255, spatial_dims=spatial_dims)
    np.testing.assert_allclose(got.numpy(), by_hand(unsure, np.array(each)[labels], 4), rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_a_confidence_for_each_pixel(spatial_dims: int, dtype: torch.dtype) -> None:
    grid = [3, 5, 4][:spatial_dims]
    labels = torch.randint(-1, 3, (2, *grid), generator=torch.Generator().manual_seed(0))
    confidence = (0.1 + 0.8 * torch.rand(2, *grid, generator=torch.Generator().manual_seed(1))).to(dtype)
    got = unary_from_labels(labels, 3, confidence, unsure_label=-1, spatial_dims=spatial_dims)
    assert got.shape == (2, 3, *grid) and got.dtype == torch.float32
    for b in range(2):
        expected = by_hand(labels[b].numpy(), confidence[b].double().numpy(), 3)
        # 1 - g is computed in float32 at least: 1 unit in the last place of g = 0.9, in 0.1
        np.testing.assert_allclose(got[b].numpy(), expected, rtol=1e-6)
    shared = unary_from_scribbles(labels + 1, 3, confidence[0].numpy(), spatial_dims=spatial_dims)
    assert torch.equal(shared[0], got[0]) and not torch.equal(shared[1], got[1])
    everywhere = unary_from_labels(labels, 3, torch.full((2, *grid), 0.6, dtype=dtype), -1, spatial_dims=spatial_dims)
    number = unary_from_labels(labels, 3, torch.tensor(0.6, dtype=dtype), -1, spatial_dims=spatial_dims)
    assert torch.equal(everywhere, number)


def test_a_confidence_of_one_in_c_says_nothing() -> None:
    labels = torch.tensor([[0, 2, 1]])
    confidence = torch.tensor([[0.9, 1 / 3, 1.0]], dtype=torch.float64)
    got = unary_from_labels(labels, 3, confidence)
    torch.testing.assert_close(got[:, 0, 1], torch.full((3,), math.log(3)))
    assert got[:, 0, 2].tolist() == [math.inf, 0.0, math.inf]


def test_gradients_with_respect_to_the_confidence() -> None:
    labels = torch.tensor([[0, 2], [1, 9]])
    g = torch.tensor([[0.9, 0.4], [0.6, 0.5]], dtype=torch.float64, requires_grad=True)
    weights = torch.arange(1.0, 13).reshape(3, 2, 2)
    (weights * unary_from_labels(labels, 3, g, unsure_label=9)).sum().backward()
    mine = torch.nn.functional.one_hot(labels.clamp(max=2), 3).permute(2, 0, 1).double()
    # d(-log g) = -1 / g at the label and d(-log((1 - g) / 2)) = 1 / (1 - g) at the others; an unsure pixel has none
    expected = (weights * ((1 - mine) / (1 - g) - mine / g)).sum(0).detach()
    expected[1, 1] = 0
    torch.testing.assert_close(g.grad, expected, rtol=1e-6, atol=0)  # energies are float32


def test_certain_labels_and_a_single_label() -> None:
    assert unary_from_labels(torch.tensor([[1]]), 2, 1.0).flatten().tolist() == [math.inf, 0.0]
    torch.testing.assert_close(unary_from_labels(torch.tensor([[0]]), 1, 0.9).flatten(), -torch.tensor([0.9]).log())


def test_spatial_dims_place_the_labels() -> None:
    assert unary_from_labels(torch.zeros(2, 3, 4, 5, dtype=torch.int64), 7, 0.5, spatial_dims=3).shape == (
        2,
        7,
        3,
        4,
        5,
    )
    assert unary_from_scribbles(torch.zeros(6, dtype=torch.int64), 7, 0.5, spatial_dims=1).shape == (7, 6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64, np.int64, np.bool_])
def test_numpy_labels_of_any_layout(dtype: type) -> None:
    labels = (np.arange(12).reshape(3, 4) % 2).astype(dtype)
    expected = unary_from_labels(torch.from_numpy(labels.astype(np.int64)), 2, 0.8)
    read_only = labels.copy()
    read_only.setflags(write=False)
    for array in (labels, read_only, np.asfortranarray(labels), labels[::-1][::-1]):
        assert torch.equal(unary_from_labels(array, 2, 0.8), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_probabilities_of_any_layout(dtype: type) -> None:
    p = probabilities().numpy().astype(dtype)
    expected = unary_from_probabilities(torch.from_numpy(p))
    read_only = p.copy()
    read_only.setflags(write=False)
    for array in (p, read_only, np.asfortranarray(p), p[..., ::-1].copy()[..., ::-1]):
        assert torch.equal(unary_from_probabilities(array), expected)
    assert torch.equal(unary_from_logits(p), unary_from_logits(torch.from_numpy(p)))


def test_against_pydensecrf() -> None:
    utils = pytest.importorskip("pydensecrf.utils", reason="pydensecrf2 is not installed (Python <= 3.12 only)")
    p = probabilities()[0].numpy()
    labels = np.arange(20).reshape(4, 5) % 4
    # All three are logarithms of the same float32 or double: the last bits of float32 may differ.
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(unary_from_probabilities(p).reshape(3, -1), utils.unary_from_softmax(p), **tolerance)
    for scale in (0.3, 0.9):
        mixed = utils.unary_from_softmax(p, scale=scale)
        np.testing.assert_allclose(unary_from_probabilities(p, scale=scale).reshape(3, -1), mixed, **tolerance)
    volume = torch.rand(4, 2, 3, 5, generator=torch.Generator().manual_seed(0)).softmax(0).numpy()
    expected = utils.unary_from_softmax(volume, scale=0.5, clip=0.2)
    got = unary_from_probabilities(volume, 0.2, scale=0.5, spatial_dims=3)
    np.testing.assert_allclose(got.reshape(4, -1), expected, **tolerance)
    scribbles = utils.unary_from_labels(labels, 3, 0.7, zero_unsure=True)
    np.testing.assert_allclose(unary_from_scribbles(labels, 3, 0.7).reshape(3, -1), scribbles, **tolerance)
    sure = utils.unary_from_labels(labels, 4, 0.7, zero_unsure=False)
    np.testing.assert_allclose(unary_from_labels(labels, 4, 0.7).reshape(4, -1), sure, **tolerance)
    slices = np.arange(60).reshape(3, 4, 5) % 6
    sure = utils.unary_from_labels(slices, 5, 0.6, zero_unsure=True)
    got = unary_from_scribbles(slices, 5, 0.6, spatial_dims=3)
    np.testing.assert_allclose(got.reshape(5, -1), sure, **tolerance)


LABELS = torch.zeros(2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "arguments", "error", "message"),
    [
        (
            unary_from_probabilities,
            (torch.tensor([0.5, 1.5]),),
            ValueError,
            r"probabilities must be in \[0, 1\], got 1.5",
        ),
        (unary_from_probabilities, (torch.tensor([-0.1]),), ValueError, "got -0.1"),
        (unary_from_probabilities, (torch.tensor([math.nan]),), ValueError, "got nan"),
        (unary_from_probabilities, (torch.tensor([1]),), TypeError, "probabilities .* got torch.int64"),
        (unary_from_probabilities, ([0.5],), TypeError, "a tensor or a numpy array, got list"),
        (unary_from_probabilities, (torch.tensor([0.5]), 1.0), ValueError, r"clip must be in \[0, 1\), got 1.0"),
        (unary_from_probabilities, (torch.tensor([0.5]), math.nan), ValueError, "clip"),
        (unary_from_logits, (torch.zeros(4, 5),), ValueError, r"logits must be .* got \(4, 5\)"),
        (unary_from_logits, (torch.full((2, 1, 1), math.nan),), ValueError, "neither NaN nor .* got nan"),
        (unary_from_logits, (torch.full((2, 1, 1), math.inf),), ValueError, "neither NaN nor .* got inf"),
        (unary_from_logits, (torch.zeros(2, 1, 1).int(),), TypeError, "logits .* got torch.int32"),
        (unary_from_labels, (LABELS + 3, 3, 0.5), ValueError, r"labels must be in 0\.\.2, got 3"),
        (unary_from_labels, (LABELS - 1, 3, 0.5, 255), ValueError, r"labels must be in 0\.\.2 or 255, got -1"),
        (unary_from_labels, (LABELS.float(), 3, 0.5), TypeError, "labels must be integers, got torch.float32"),
        (unary_from_labels, (LABELS[0], 3, 0.5), ValueError, "2 spatial axes"),
        (unary_from_labels, (LABELS, 0, 0.5), ValueError, "num_labels must be at least 1, got 0"),
        (unary_from_labels, (LABELS, 3, 0.0), ValueError, r"confidence must be in \(0, 1\], got 0.0"),
        (unary_from_labels, (LABELS, 3, 1.1), ValueError, "confidence .* got 1.1"),
        (unary_from_labels, (LABELS, 3, 0.5, 2), ValueError, "unsure_label must be outside .* got 2"),
        (
            unary_from_labels,
            (LABELS + 3, 3, 0.5, (255, -1)),
            ValueError,
            r"labels must be in 0\.\.2 or 255 or -1, got 3",
        ),
        (unary_from_labels, (LABELS, 3, 0.5, (255, 1)), ValueError, "unsure_label must be outside .* got 1"),
        (unary_from_labels, (LABELS, 3, 0.5, 25.5), TypeError, "unsure_label must be an integer, got 25.5"),
        (unary_from_labels, (LABELS, 2.5, 0.5), TypeError, "num_labels must be an integer, got 2.5"),
        (unary_from_labels, (LABELS, 3, [0.5, 0.6]), ValueError, "confidence of each label must be 3 numbers, got 2"),
        (unary_from_labels, (LABELS, 3, [0.5, 0.6, 0.0]), ValueError, r"confidence must be in \(0, 1\], got 0.0"),
        (unary_from_labels, (LABELS, 3, math.nan), ValueError, r"confidence must be in \(0, 1\], got nan"),
        (unary_from_labels, (LABELS, 3, "sure"), TypeError, "confidence must be a number, .* got 'sure'"),
        (
            unary_from_labels,
            (LABELS, 3, torch.ones(3)),
            ValueError,
            r"shape of labels, \(2, 2\), got \(3,\); .* a list",
        ),
        (unary_from_labels, (LABELS, 3, torch.zeros(2, 2)), ValueError, r"confidence must be in \(0, 1\], got 0.0"),
        (unary_from_labels, (LABELS, 3, torch.ones(2, 2).int()), TypeError, "confidence must be floating point"),
        (unary_from_labels, (LABELS, 3, torch.ones(2, 2, device="meta")), ValueError, "on the device of labels, cpu"),
        (lambda p: unary_from_probabilities(p, scale=0), (LABELS + 0.5,), ValueError, r"scale .* \(0, 1\], got 0"),
        (
            lambda p: unary_from_probabilities(p, scale=0.5),
            (LABELS + 0.5,),
            ValueError,
            r"2 spatial axes, got \(2, 2\)",
        ),
        (
            lambda x: unary_from_logits(x, spatial_dims=0),
            (LABELS + 0.5,),
            ValueError,
            "spatial_dims must be at least 1",
        ),
        (unary_from_scribbles, (LABELS + 4, 3, 0.5), ValueError, r"labels must be in 0\.\.3 .* got 4"),
        (unary_from_scribbles, (LABELS - 1, 3, 0.5), ValueError, "labels .* got -1"),
    ],
)
def test_bad_input(call: Callable[..., Tensor], arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(*arguments)
