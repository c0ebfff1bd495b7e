"""What pydensecrf answers with a crash, or with numbers that mean nothing, is an error that names rule and value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from densecrf_cuda.pydensecrf import densecrf as dcrf
from densecrf_cuda.pydensecrf import eigen

WIDTH, HEIGHT, LABELS = 9, 7, 3
POINTS = WIDTH * HEIGHT
IMAGE = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)


def energies() -> np.ndarray:
    return np.ones((LABELS, POINTS), np.float32)


def changed(array: np.ndarray, place: Any, value: float) -> np.ndarray:
    array[place] = value
    return array


def bilateral(**options: Any) -> Callable[[Any], Any]:
    return lambda crf: crf.addPairwiseBilateral(**{"sxy": 3, "srgb": 5, "rgbim": IMAGE, "compat": 3, **options})


CALLS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "unary of another size": (
        lambda crf: crf.setUnaryEnergy(np.ones((3, 62))),
        ValueError,
        r"Bad shape for unary energy \(Need \(3, 63\), got \(3, 62\)\)",
    ),
    "unary as a picture": (lambda crf: crf.setUnaryEnergy(np.ones((3, 7, 9))), ValueError, r"reshape\(3, -1\)"),
    "unary transposed": (lambda crf: crf.setUnaryEnergy(np.ones((63, 3))), ValueError, "looks transposed"),
    "unary of None": (lambda crf: crf.setUnaryEnergy(None), TypeError, "numbers, got None"),
    "unary of words": (lambda crf: crf.setUnaryEnergy([["a", "b"]]), TypeError, "array of numbers"),
    "unary of complex numbers": (lambda crf: crf.setUnaryEnergy(1j * energies()), TypeError, "complex"),
    "unary with NaN": (
        lambda crf: crf.setUnaryEnergy(changed(energies(), (1, 5), np.nan)),
        ValueError,
        "got nan for label 1 of point 5",
    ),
    "unary with -inf": (
        lambda crf: crf.setUnaryEnergy(changed(energies(), (2, 6), -np.inf)),
        ValueError,
        "got -inf for label 2 of point 6",
    ),
    "unary that allows nothing": (
        lambda crf: crf.setUnaryEnergy(changed(energies(), (slice(None), 4), np.inf)),
        ValueError,
        "all labels of point 4",
    ),
    "logistic unary that does not fit": (
        lambda crf: crf.setUnaryEnergy(np.ones((3, 4)), np.ones((5, 63))),
        ValueError,
        r"Need \(4, \?\), got \(5, 63\)",
    ),
    "unary object of another size": (
        lambda crf: crf.setUnary(dcrf.ConstUnary(np.ones((2, 63)))),
        ValueError,
        r"Need \(3, 63\), got \(2, 63\)",
    ),
    "unary object of None": (lambda crf: crf.setUnary(None), TypeError, "class Unary, got NoneType"),
    "unary object that is an array": (lambda crf: crf.setUnary(energies()), TypeError, "class Unary, got ndarray"),
    "no start without unary": (lambda crf: crf.startInference(), ValueError, "needs a unary"),
    "compat too long": (bilateral(compat=np.ones(5, np.float32)), ValueError, r"\[3\] or \[3, 3\].* got shape \(5,\)"),
    "compat of another matrix": (bilateral(compat=np.ones((2, 2))), ValueError, r"got shape \(2, 2\)"),
    "compat of three dimensions": (bilateral(compat=np.ones((3, 3, 3))), ValueError, r"got shape \(3, 3, 3\)"),
    "compat of None": (bilateral(compat=None), TypeError, "compat must be an array of numbers, got None"),
    "compat of NaN": (bilateral(compat=float("nan")), ValueError, "compat must be finite, got NaN"),
    "bandwidth of zero": (lambda crf: crf.addPairwiseGaussian(0, 3), ValueError, "sxy must be positive .* got 0"),
    "bandwidth below zero": (bilateral(srgb=-3), ValueError, "srgb must be positive .* got -3"),
    "bandwidth too small": (bilateral(srgb=1e-6), ValueError, "use a larger bandwidth"),
    "bandwidths too many": (bilateral(sxy=(3, 3, 3)), ValueError, "sxy must be a number or 2 numbers.* got 3"),
    "bandwidths too few": (bilateral(srgb=(3, 3)), ValueError, "srgb must be a number or 3 numbers.* got 2"),
    "bandwidth of a word": (bilateral(sxy="3"), TypeError, "sxy must be an array of numbers"),
    "picture on its side": (bilateral(rgbim=IMAGE.swapaxes(0, 1)), ValueError, "width and height look swapped"),
    "picture with channels first": (bilateral(rgbim=IMAGE.transpose(2, 0, 1)), ValueError, r"transpose\(1, 2, 0\)"),
    "picture in grey": (bilateral(rgbim=IMAGE[:, :, 0]), ValueError, r"Need \(7, 9, 3\), got \(7, 9\)"),
    "picture of four channels": (bilateral(rgbim=IMAGE[:, :, [0, 1, 2, 0]]), ValueError, "create_pairwise_bilateral"),
    "picture with NaN": (bilateral(rgbim=np.full(IMAGE.shape, np.nan)), ValueError, "features must be finite"),
    "features with NaN": (
        lambda crf: crf.addPairwiseEnergy(changed(np.ones((2, POINTS)), (0, 3), np.nan), 3),
        ValueError,
        r"must be finite, got .* in dimension 0 of point 3",
    ),
    "features of another size": (
        lambda crf: crf.addPairwiseEnergy(np.ones((2, 62)), 3),
        ValueError,
        r"Need \(\?, 63\), got \(2, 62\)",
    ),
    "features without dimensions": (lambda crf: crf.addPairwiseEnergy(np.ones((0, 63)), 3), ValueError, "at least one"),
    "another kernel": (bilateral(kernel=7), ValueError, "kernel must be one of CONST_KERNEL, .* got 7"),
    "another normalization": (bilateral(normalization=9), ValueError, "NORMALIZE_SYMMETRIC, got 9"),
    "kernel by name": (bilateral(kernel="DIAG_KERNEL"), TypeError, "kernel must be an integer, got 'DIAG_KERNEL'"),
    "iterations by name": (lambda crf: crf.inference("5"), TypeError, "niter must be an integer, got '5'"),
    "divergence of an array": (lambda crf: crf.klDivergence(energies()), TypeError, "class MatrixXf, got ndarray"),
    "divergence of None": (lambda crf: crf.klDivergence(None), TypeError, "class MatrixXf, got NoneType"),
    "divergence of another size": (lambda crf: crf.klDivergence(eigen.MatrixXf()), ValueError, r"of shape \(0, 0\)"),
    "step without buffers": (
        lambda crf: crf.stepInference(crf.inference(0), None, None),
        TypeError,
        "tmp1 must be of class MatrixXf, got NoneType",
    ),
    "step from NaN": (
        lambda crf: crf.stepInference(
            eigen.matrixXf(np.full((3, 63), np.nan, np.float32)), eigen.MatrixXf(), eigen.MatrixXf()
        ),
        ValueError,
        "Q must be finite, got nan",
    ),
    "no labels": (lambda _: dcrf.DenseCRF(5, 0), ValueError, "nlabels must be at least 1, got 0"),
    "no width": (lambda _: dcrf.DenseCRF2D(0, 5, 2), ValueError, "w must be at least 1, got 0"),
    "points by name": (lambda _: dcrf.DenseCRF("5", 2), TypeError, "nvar must be an integer, got '5'"),
    "no base class": (lambda _: dcrf.Unary(), TypeError, "ConstUnary and LogisticUnary"),
}


@pytest.mark.parametrize("name", CALLS)
def test_errors(name: str, device: torch.device) -> None:
    call, error, message = CALLS[name]
    crf = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS, device=device)
    with pytest.raises(error, match=message):
        call(crf)
    crf.setUnaryEnergy(energies())  # and what failed has left nothing behind
    np.testing.assert_allclose(crf.inference(3), 1 / 3, rtol=1e-6)


def test_energies_that_overflow() -> None:
    crf = dcrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
    crf.setUnaryEnergy(np.arange(LABELS * POINTS).reshape(LABELS, POINTS) % 5)
    crf.addPairwiseGaussian(3, 3e38, normalization=dcrf.NO_NORMALIZATION)
    with pytest.raises(ValueError, match="overflow"):
        crf.inference(5)


@pytest.mark.parametrize("name", ["mps", "gpu", "cuda:x", 3.5])
def test_devices_that_there_are_not(name: Any) -> None:
    with pytest.raises(ValueError, match=r"device must be 'cpu', 'cuda' or 'cuda:<number>', got"):
        dcrf.DenseCRF2D(2, 2, 2, device=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_there_is_not_is_never_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="'cuda' is not available"):
        dcrf.DenseCRF2D(2, 2, 2, device="cuda")
    monkeypatch.setenv("DENSECRF_DEVICE", "cuda:1")
    with pytest.raises(RuntimeError, match="'cuda:1' is not available"):
        dcrf.DenseCRF(4, 2)
    dcrf.DenseCRF(4, 2, device="cpu")  # the keyword comes first


def test_the_environment_names_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENSECRF_DEVICE", "tpu")
    with pytest.raises(ValueError, match=r"DENSECRF_DEVICE must be .* got 'tpu'"):
        dcrf.DenseCRF(4, 2)
    for name in ("cpu", ""):
        monkeypatch.setenv("DENSECRF_DEVICE", name)
        assert np.array(dcrf.DenseCRF(4, 2).inference(1)).shape == (2, 4)
