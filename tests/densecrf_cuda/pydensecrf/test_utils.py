"""`utils` against pydensecrf's, element by element, and against its formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from densecrf_cuda.pydensecrf import utils

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, (6, 7))
PROBABILITIES = RNG.dirichlet(np.ones(4), (5, 6)).transpose(2, 0, 1)
IMAGE = RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)

CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "labels": ("unary_from_labels", (LABELS, 4, 0.7), {}),
    "labels, certainty of float32": ("unary_from_labels", (LABELS, 4, np.float32(0.7)), {}),
    "labels without unsure": ("unary_from_labels", (LABELS, 5, 0.6), {"zero_unsure": False}),
    "labels of a volume": ("unary_from_labels", (LABELS.reshape(2, 3, 7), 7, 0.9, True), {}),
    "old labels": ("compute_unary", (LABELS, 4), {}),
    "old labels with certainty": ("compute_unary", (LABELS, 4), {"GT_PROB": 0.8}),
    "softmax": ("unary_from_softmax", (PROBABILITIES,), {}),
    "softmax of float32": ("unary_from_softmax", (PROBABILITIES.astype(np.float32),), {}),
    "softmax of float16": ("unary_from_softmax", (PROBABILITIES.astype(np.float16),), {}),
    "softmax in another layout": ("unary_from_softmax", (PROBABILITIES.copy().transpose(0, 2, 1),), {}),
    "softmax with zeros": ("unary_from_softmax", (PROBABILITIES.round(),), {}),
    "softmax scaled": ("unary_from_softmax", (PROBABILITIES.astype(np.float32), 0.8), {"clip": 1e-3}),
    "softmax not clipped": ("unary_from_softmax", (PROBABILITIES, None, None), {}),
    "old softmax": ("softmax_to_unary", (PROBABILITIES,), {}),
    "old softmax scaled": ("softmax_to_unary", (PROBABILITIES,), {"GT_PROB": 0.9}),
    "gaussian": ("create_pairwise_gaussian", ((3, 5), (5, 6)), {}),
    "gaussian of doubles": ("create_pairwise_gaussian", (np.array([0.3, 0.7]), [5, 6]), {}),
    "gaussian of a volume": ("create_pairwise_gaussian", ([3, 2.5, 0.1], (4, 5, 6)), {}),
    "bilateral": ("create_pairwise_bilateral", ((3, 5), (13, 10, 7.5), IMAGE), {"chdim": 2}),
    "bilateral of one width": ("create_pairwise_bilateral", ((3, 5), 13, IMAGE, 2), {}),
    "bilateral of doubles": ("create_pairwise_bilateral", ((3, 5), np.array([1.3, 1, 2]), IMAGE / 7, 2), {}),
    "bilateral, channels first": ("create_pairwise_bilateral", ((3, 5), (13,) * 5, IMAGE, 0), {}),
    "bilateral in grey": ("create_pairwise_bilateral", ((80, 80), (13,), IMAGE[:, :, 0]), {}),
    "bilateral, channels in the middle": ("create_pairwise_bilateral", ((3, 5), (13,) * 6, IMAGE, 1), {}),
    "bilateral of a volume": ("create_pairwise_bilateral", ((3, 5, 2), 0.01, IMAGE), {}),
}


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CALLS)
def test_equal_to_pydensecrf(name: str) -> None:
    theirs = pytest.importorskip("pydensecrf.utils", reason="pydensecrf2 is not installed (Python <= 3.12 only)")
    function, arguments, options = CALLS[name]
    ours = getattr(utils, function)(*arguments, **options)
    expected = getattr(theirs, function)(*arguments, **options)
    assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
    assert ours.flags.c_contiguous and ours.flags.writeable
    np.testing.assert_array_equal(ours, expected)


def test_labels_by_their_formula() -> None:
    right, wrong, unsure = -np.log(0.7), -np.log(0.15), np.log(3)
    expected = [[unsure, right, wrong], [unsure, wrong, wrong], [unsure, wrong, right]]
    np.testing.assert_allclose(utils.unary_from_labels([[0, 1, 3]], 3, 0.7), expected, rtol=1e-6)
    expected = [[right, wrong, wrong], [wrong, right, wrong], [wrong, wrong, right]]
    np.testing.assert_allclose(utils.unary_from_labels([0, 1, 2], 3, 0.7, zero_unsure=False), expected, rtol=1e-6)


def test_features_by_their_formula() -> None:
    y, x = np.mgrid[:5, :6]
    expected = [y.ravel() / 3, x.ravel() / 5, *(IMAGE.reshape(-1, 3) / (13, 10, 7)).T]
    got = utils.create_pairwise_bilateral((3, 5), (13, 10, 7), IMAGE, chdim=2)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(utils.create_pairwise_gaussian((3, 5), (5, 6)), expected[:2], rtol=1e-6)


def test_inputs_of_other_kinds() -> None:
    expected = utils.unary_from_labels(LABELS, 4, 0.7)
    for labels in (LABELS.tolist(), torch.from_numpy(LABELS), LABELS.astype(np.uint8)):  # uint8 wraps in pydensecrf
        np.testing.assert_array_equal(utils.unary_from_labels(labels, 4, 0.7), expected)
    np.testing.assert_array_equal(
        utils.unary_from_softmax(torch.from_numpy(PROBABILITIES).requires_grad_()),
        utils.unary_from_softmax(PROBABILITIES),
    )


def test_inputs_stay_as_they_are() -> None:
    image, p = IMAGE.astype(np.float32), PROBABILITIES.copy()
    utils.create_pairwise_bilateral((3, 5), 13, image, chdim=2)
    utils.unary_from_softmax(p, 0.5)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(p, PROBABILITIES)


def test_one_label() -> None:
    np.testing.assert_allclose(utils.unary_from_labels([0, 1], 1, 0.5), [[0, np.log(2)]], rtol=1e-6)


@pytest.mark.parametrize("function", [utils.compute_unary, utils.softmax_to_unary])
def test_old_names_warn(function: Any) -> None:
    argument = {utils.compute_unary: (LABELS, 4), utils.softmax_to_unary: (PROBABILITIES,)}[function]
    with pytest.warns(DeprecationWarning, match="is deprecated, use unary_from_"):
        function(*argument)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: utils.unary_from_labels(LABELS, 4, 1.0), ValueError, r"gt_prob must be in \(0, 1\), got 1.0"),
        (lambda: utils.unary_from_labels(LABELS, 0, 0.5), ValueError, "n_labels must be at least 1, got 0"),
        (lambda: utils.unary_from_labels(LABELS, 3, 0.5), ValueError, "labels must be from 0 to 3, got 4"),
        (lambda: utils.unary_from_labels([255], 3, 0.5, False), ValueError, "labels must be from 0 to 2, got 255"),
        (lambda: utils.unary_from_labels([-1, 1], 3, 0.5), ValueError, "labels must be from 0 to 3, got -1"),
        (lambda: utils.unary_from_labels(LABELS / 2, 4, 0.5), TypeError, "labels must be integers, got float64"),
        (lambda: utils.unary_from_softmax(PROBABILITIES, 1.5), ValueError, r"scale must be in \(0, 1\], got 1.5"),
        (lambda: utils.unary_from_softmax(0.5), ValueError, r"sm must be \[C, \*spatial\], got 0.5"),
        (lambda: utils.unary_from_softmax("p"), TypeError, "sm must be an array of numbers"),
        (lambda: utils.create_pairwise_gaussian((3,), (5, 6)), ValueError, "each of 2 axes, got"),
        (lambda: utils.create_pairwise_gaussian((3, 0), (5, 6)), ValueError, "sdims must be positive, got 0"),
        (lambda: utils.create_pairwise_bilateral((3, 3), (5, 6), IMAGE, 2), ValueError, "each of 3 channels, got"),
        (lambda: utils.create_pairwise_bilateral((3, 3), 0, IMAGE, 2), ValueError, "schan must be positive, got 0"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
