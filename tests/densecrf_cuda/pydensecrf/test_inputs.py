"""What the drop-in accepts beyond pydensecrf, and that it leaves alone what it is given."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from programs import Program, run

from densecrf_cuda.pydensecrf import densecrf as dcrf
from densecrf_cuda.pydensecrf import eigen, utils

PROGRAM = Program((7, 9))


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def every_other(array: np.ndarray) -> np.ndarray:
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "read-only": read_only,
    "fortran": np.asfortranarray,
    "strided": every_other,
    "reversed": lambda array: array[::-1].copy()[::-1],
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "float64": lambda array: array.astype(np.float64),
    "list": lambda array: array.tolist(),
    "tensor": torch.from_numpy,
    "tensor that requires gradients": lambda array: torch.from_numpy(array.astype(np.float32)).requires_grad_(),
}


def infer(unary: Any, image: Any, features: Any, compat: Any) -> np.ndarray:
    crf = dcrf.DenseCRF2D(9, 7, 3)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseBilateral(12, 40, image, compat)
    crf.addPairwiseEnergy(features, compat)
    return np.array(crf.inference(5))


@pytest.mark.parametrize("form", FORMS)
def test_any_layout_and_dtype_gives_the_same(form: str) -> None:
    arrays = [PROGRAM.unary, PROGRAM.image, PROGRAM.features[0], np.float32([-2, -3, -4])]
    given = [FORMS[form](array) for array in arrays]
    before = copy.deepcopy(given)
    np.testing.assert_array_equal(infer(*given), infer(*arrays))
    for value, old in zip(given, before):
        assert torch.equal(value, old) if isinstance(value, torch.Tensor) else np.array_equal(value, old)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    halves = [torch.from_numpy(array).to(dtype) for array in (PROGRAM.unary, PROGRAM.image, PROGRAM.features[0])]
    rounded = [half.float().numpy() for half in halves]
    np.testing.assert_array_equal(infer(*halves, 3), infer(*rounded, 3))


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float16, np.float32, np.float64])
def test_pictures_of_other_numbers(dtype: type) -> None:
    levels = PROGRAM.image // 2  # exact in every dtype
    expected = infer(PROGRAM.unary, levels, PROGRAM.features[0], 3)
    np.testing.assert_array_equal(infer(PROGRAM.unary, levels.astype(dtype), PROGRAM.features[0], 3), expected)


def test_numbers_of_any_type() -> None:
    crf = dcrf.DenseCRF2D(np.int64(9), 7.0, np.float32(3))
    crf.setUnaryEnergy(PROGRAM.unary)
    crf.addPairwiseGaussian(np.array([3, 3]), np.float32(3), kernel=np.int32(1), normalization=3.0)
    crf.addPairwiseBilateral(torch.tensor(12.0), (40, 30, 50), PROGRAM.image, torch.tensor(3.0))
    expected = dcrf.DenseCRF2D(9, 7, 3)
    expected.setUnaryEnergy(PROGRAM.unary)
    expected.addPairwiseGaussian(3, 3)
    expected.addPairwiseBilateral((12, 12), [40, 30, 50], PROGRAM.image, 3)
    np.testing.assert_array_equal(crf.inference(np.int8(5)), expected.inference(5.9))  # cut, as pydensecrf cuts it


def test_arrays_may_change_after_they_were_given() -> None:
    unary, image, features = PROGRAM.unary, PROGRAM.image, PROGRAM.features[0]
    crf = dcrf.DenseCRF2D(9, 7, 3)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseBilateral(12, 40, image, 3)
    crf.addPairwiseEnergy(features, 3)
    expected = np.array(crf.inference(5))
    for array in (unary, image, features):
        array[:] = 1
    np.testing.assert_array_equal(crf.inference(5), expected)


def test_forbidden_labels() -> None:
    unary = PROGRAM.unary
    unary[1, ::2] = np.inf
    crf = PROGRAM.build(dcrf)
    crf.setUnaryEnergy(unary)
    q = crf.inference(5)
    assert (q[1, ::2] == 0).all() and (q[1, 1::2] > 0).all()
    assert np.isfinite(crf.klDivergence(q))


def test_logistic_unary_through_set_unary_energy() -> None:
    weights, features = np.arange(12.0).reshape(3, 4) / 5, np.cos(np.arange(4 * 63.0)).reshape(4, 63)
    crf, expected = PROGRAM.build(dcrf), PROGRAM.build(dcrf)
    crf.setUnaryEnergy(weights, features)
    expected.setUnary(dcrf.LogisticUnary(weights, features))
    np.testing.assert_array_equal(crf.inference(5), expected.inference(5))


def test_a_unary_object_serves_twice() -> None:
    unary = dcrf.ConstUnary(PROGRAM.unary)
    first, second = PROGRAM.build(dcrf), PROGRAM.build(dcrf)
    for crf in (first, first, second):
        crf.setUnary(unary)
    np.testing.assert_array_equal(first.inference(5), run(PROGRAM, iterations=5))
    np.testing.assert_array_equal(second.inference(5), first.inference(5))


def test_the_result_is_a_fortran_matrix_with_a_buffer() -> None:
    q = PROGRAM.build(dcrf).inference(5)
    assert type(q) is eigen.MatrixXf
    view = memoryview(q)
    assert (view.format, view.shape, view.strides, view.readonly) == ("f", (3, 63), (4, 12), False)
    np.testing.assert_allclose(np.asarray(q).sum(0), 1, rtol=1e-6)  # three numbers are added
    assert type(np.argmax(q, axis=0)) is np.ndarray
    np.testing.assert_array_equal(np.array(q).reshape(3, 7, 9).reshape(3, -1), q)


def test_the_tiling_of_generic_features_does_not_matter() -> None:
    shape = (20, 31)  # several tiles; in the other order no coordinate tells the width
    program = Program(shape, dimensions=0)
    shuffled = np.random.default_rng(0).permutation(program.points)
    results = []
    for order in (np.arange(program.points), shuffled):
        crf = dcrf.DenseCRF(program.points, 3)
        crf.setUnaryEnergy(program.unary[:, order])
        crf.addPairwiseEnergy(program.features[1][:, order], 3)
        results.append(np.array(crf.inference(5)))
    np.testing.assert_allclose(results[1], results[0][:, shuffled], rtol=0, atol=1e-5)  # sums in another order


def test_features_of_a_volume() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 2))
    crf = dcrf.DenseCRF(image[..., 0].size, 2)
    crf.setUnaryEnergy(np.random.default_rng(1).random((2, 120)))
    crf.addPairwiseEnergy(utils.create_pairwise_bilateral((2, 2, 2), (30, 30), image, chdim=3), 3)
    assert np.array(crf.inference(5)).shape == (2, 120)
