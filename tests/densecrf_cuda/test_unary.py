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


def test_gradients() -> None:
    p = probabilities()[:1, :, :2, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(unary_from_probabilities, (p,))
    assert torch.autograd.gradcheck(unary_from_logits, (p,))


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
    scribbles = utils.unary_from_labels(labels, 3, 0.7, zero_unsure=True)
    np.testing.assert_allclose(unary_from_scribbles(labels, 3, 0.7).reshape(3, -1), scribbles, **tolerance)
    sure = utils.unary_from_labels(labels, 4, 0.7, zero_unsure=False)
    np.testing.assert_allclose(unary_from_labels(labels, 4, 0.7).reshape(4, -1), sure, **tolerance)


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
        (unary_from_scribbles, (LABELS + 4, 3, 0.5), ValueError, r"labels must be in 0\.\.3 .* got 4"),
        (unary_from_scribbles, (LABELS - 1, 3, 0.5), ValueError, "labels .* got -1"),
    ],
)
def test_bad_input(call: Callable[..., Tensor], arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(*arguments)
