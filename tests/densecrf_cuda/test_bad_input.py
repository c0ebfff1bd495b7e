"""Bad input: an error that names rule and value, through every door, and never a crash."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import levels, noise, ops
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian, Lattice, permutohedral_filter
from densecrf_cuda.reference.geometry import MAX_DIMENSION

NAN, INF = math.nan, math.inf
UNARY, IMAGE = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5, dtype=torch.uint8)


def with_value(tensor: Tensor, value: float, *index: Any) -> Tensor:
    changed = tensor.float() if not tensor.is_floating_point() else tensor.clone()
    changed[index] = value
    return changed


def crf(*kernels: Any, **settings: Any) -> Callable[..., Tensor]:
    return DenseCRF(3, kernels or [Gaussian(3, 3), Bilateral(8, 20, 5)], **settings)


# --- DenseCRF: what it is made of ---


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Gaussian(0), ValueError, "sxy must be positive and finite, got 0"),
        (lambda: Gaussian(-1.5), ValueError, "sxy must be positive and finite, got -1.5"),
        (lambda: Gaussian((3, NAN)), ValueError, "sxy must be positive and finite, got nan"),
        (lambda: Gaussian(INF), ValueError, "sxy must be positive and finite, got inf"),
        (
            lambda: Gaussian([[3.0]]),
            ValueError,
            r"sxy must be a number or one number per dimension, got shape \(1, 1\)",
        ),
        (lambda: Gaussian("wide"), TypeError, "sxy must be a number .* got 'wide'"),
        (lambda: Bilateral(8, 0), ValueError, "srgb must be positive and finite, got 0"),
        (lambda: Bilateral(8, (1, 2, -3)), ValueError, "srgb must be positive and finite, got -3"),
        (lambda: Features(None, bandwidth=0), ValueError, "bandwidth must be positive and finite, got 0"),
        (lambda: Features(torch.zeros(2, 9).int()), TypeError, "features must be floating or uint8, got torch.int32"),
        (lambda: Features(torch.zeros(9)), ValueError, r"features must be \[d, \*spatial\] .* got \(9,\)"),
        (lambda: Features([1.0]), TypeError, "features must be a tensor, a function of the image or None, got list"),
        (lambda: Gaussian(3, weight=NAN), ValueError, "weight must be finite, got nan"),
        (lambda: Gaussian(3, normalization="mean"), ValueError, "normalization must be one of .*, got 'mean'"),
        (lambda: crf(normalization="mean"), ValueError, "normalization must be one of .*, got 'mean'"),
        (lambda: crf(normalization=3), TypeError, "normalization must be a string, got int"),
        (lambda: crf(Gaussian(3, [1.0, 2.0])), ValueError, r"compat must be a number, \[3\] or .* got shape \(2,\)"),
        (lambda: crf(Gaussian(3, torch.zeros(3, 2))), ValueError, r"compat must be .* got shape \(3, 2\)"),
        (lambda: crf(Gaussian(3, torch.zeros(1, 3, 3))), ValueError, r"compat must be .* got shape \(1, 3, 3\)"),
        (lambda: crf(Gaussian(3, NAN)), ValueError, "compat must be finite, got NaN"),
        (lambda: crf(Gaussian(3, [1.0, INF, 0.0])), ValueError, "compat must be finite, got inf"),
        (lambda: crf(Gaussian(3, "strong")), TypeError, "compat must be a number, .* got 'strong'"),
        (lambda: crf("gaussian"), TypeError, "kernels must be Gaussian, Bilateral or Features, got str"),
        (lambda: crf(iterations=-1), ValueError, "iterations must be at least 0, got -1"),
        (lambda: crf(iterations=2.5), TypeError, "iterations must be an integer, got 2.5"),
        (lambda: DenseCRF(0), ValueError, "num_classes must be at least 1, got 0"),
        (lambda: DenseCRF(True), TypeError, "num_classes must be an integer, got True"),
        (lambda: crf(damping=1.0), ValueError, r"damping must be in \[0, 1\), got 1.0"),
        (lambda: crf(damping=-0.1), ValueError, r"damping must be in \[0, 1\), got -0.1"),
        (lambda: crf(damping=NAN), ValueError, r"damping must be in \[0, 1\), got nan"),
        (lambda: crf(tol=-1e-3), ValueError, "tol must not be negative, got -0.001"),
        (lambda: crf(tol=NAN), ValueError, "tol must not be negative, got nan"),
        (lambda: crf(filter="exact"), ValueError, "filter must be 'lattice' or 'dense', got 'exact'"),
        (lambda: crf(output="argmax"), ValueError, "output must be 'probabilities', .* got 'argmax'"),
        (lambda: crf(spatial_dims=0), ValueError, "spatial_dims must be at least 1, got 0"),
        (lambda: crf(trainable="everything"), ValueError, "trainable must be True, False or .* got 'everything'"),
    ],
)
def test_making_a_crf(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# --- DenseCRF: what it is given ---


@pytest.mark.parametrize("filter", ["lattice", "dense"])
@pytest.mark.parametrize(
    ("kernels", "unary", "image", "error", "message"),
    [
        (
            (),
            with_value(UNARY, NAN, 1, 2, 3, 4),
            IMAGE,
            ValueError,
            "unary must not be NaN .* label 2.* point 19.* image 1",
        ),
        ((), with_value(UNARY, -INF, 0, 0, 0, 0), IMAGE, ValueError, "unary must not be NaN or -infinity, got -inf"),
        (
            (),
            with_value(UNARY, INF, 0, slice(None), 1, 2),
            IMAGE,
            ValueError,
            r"unary must allow .* point 7 .* image 0",
        ),
        ((), with_value(UNARY, INF), IMAGE, ValueError, "unary must allow at least one label"),
        ((), UNARY.int(), IMAGE, TypeError, "unary must have a floating dtype, .* got torch.int32"),
        ((), UNARY.bool(), IMAGE, TypeError, "unary must have a floating dtype, .* got torch.bool"),
        ((), UNARY.numpy(), IMAGE, TypeError, "unary must be a torch.Tensor, got ndarray"),
        ((), UNARY, IMAGE.numpy(), TypeError, "image must be a torch.Tensor, got ndarray"),
        ((), UNARY, IMAGE.int(), TypeError, "image must be uint8 or floating, got torch.int32"),
        ((), UNARY[:, :2], IMAGE, ValueError, r"unary must be \[B, 3, \*spatial\] .* got \(2, 2, 4, 5\)"),
        ((), UNARY.movedim(1, 3), IMAGE, ValueError, r"got \(2, 4, 5, 3\): the labels look like the last axis"),
        ((), UNARY[0, 0], IMAGE, ValueError, r"unary must be \[B, C, H, W\] or \[C, H, W\], got shape \(4, 5\)"),
        ((), UNARY[0, 0, 0], IMAGE, ValueError, r"unary must be .* got shape \(5,\)"),
        (
            (),
            UNARY.mT,
            IMAGE,
            ValueError,
            r"image must have the spatial shape of unary, \(5, 4\).* width and height look",
        ),
        ((), UNARY, IMAGE.movedim(1, 3), ValueError, r"image must .* got shape .*the channels look like the last axis"),
        ((), UNARY, IMAGE[..., :4], ValueError, r"image must have the spatial shape of unary, \(4, 5\), got .* 4, 4\)"),
        ((), UNARY, IMAGE[:1], ValueError, "image must have the batch of unary, 2, got 1"),
        ((), UNARY, IMAGE[0], ValueError, "image must have the batch of unary, 2, got 1"),
        ((), UNARY, IMAGE[:, :0], ValueError, r"image must have at least one channel, got shape \(2, 0, 4, 5\)"),
        ((), UNARY, None, ValueError, r"Bilateral\(sxy=8.0, srgb=20.0.* needs an image, got none"),
        ((), UNARY[..., :0], IMAGE[..., :0], ValueError, r"unary must have at least one point, got .*\(2, 3, 4, 0\)"),
        ((), UNARY, IMAGE.to("meta"), ValueError, "image must be on the device of unary, cpu, got meta"),
        ((), UNARY, with_value(IMAGE, NAN, 1, 0, 1, 2), ValueError, "features must be finite, got nan"),
        ((), UNARY, with_value(IMAGE, INF, 0, 2, 0, 0), ValueError, "features must be finite, got inf"),
        ((Gaussian((3, 3, 3)),), UNARY, None, ValueError, "sxy must be a number or 2 numbers, .* got 3"),
        ((Bilateral(3, (1, 2)),), UNARY, IMAGE, ValueError, "srgb must be a number or 3 numbers, .* got 2"),
        ((Features(torch.zeros(2, 4, 4)),), UNARY, None, ValueError, r"features must .* \(4, 5\), got \(2, 4, 4\)"),
        ((Features(torch.zeros(3, 2, 4, 5)),), UNARY, None, ValueError, "batch of features must be 1 or .* 2, got 3"),
        ((Features(torch.zeros(2, 4, 5), bandwidth=[1, 2, 3]),), UNARY, None, ValueError, "bandwidth must .* got 3"),
        ((Features(torch.full((2, 4, 5), NAN)),), UNARY, None, ValueError, "features must be finite, got nan"),
        ((Features(lambda image: image.int()),), UNARY, IMAGE, TypeError, "features must be floating .* torch.int32"),
        ((Features(lambda image: None),), UNARY, IMAGE, TypeError, "features must be a torch.Tensor, got NoneType"),
        ((Features(None),), UNARY, None, ValueError, r"Features\(.* needs an image, got none"),
    ],
)
def test_calling_a_crf(
    kernels: tuple[Any, ...], unary: Any, image: Any, error: type[Exception], message: str, filter: str
) -> None:
    with pytest.raises(error, match=message):
        crf(*kernels, filter=filter)(unary, image)
    if error is ValueError and isinstance(unary, Tensor):  # the path with gradients checks as much
        with pytest.raises(error, match=message):
            crf(*kernels, filter=filter)(unary.clone().requires_grad_(), image)


def test_bandwidth_too_small_for_the_key_range() -> None:
    message = r"feature dimension 2 is 255 / bandwidth 1e-05 = 2.55e\+07 at point 0 of image 0: use a larger bandwidth"
    with pytest.raises(ValueError, match=message):
        crf(Bilateral(8, 1e-5))(UNARY, IMAGE + 255)
    with pytest.raises(ValueError, match="dimension 0 is 4 / bandwidth 1e-06"):
        crf(Gaussian(1e-6))(UNARY)
    with pytest.raises(ValueError, match=r"key coordinates must stay below 2\^20"):
        Lattice(torch.full((2, 9), 3e38))


def test_calls_with_bad_settings() -> None:
    with pytest.raises(ValueError, match="iterations must be at least 0, got -3"):
        crf()(UNARY, IMAGE, iterations=-3)
    with pytest.raises(ValueError, match=r"output must be .* got 'argmax'"):
        crf()(UNARY, IMAGE, output="argmax")


@pytest.mark.parametrize("compat", [1e38, [-1e38, 1e38, 0.0], torch.diag(torch.full((3,), -1e38))])
def test_energies_that_overflow_are_no_silent_nan(compat: Any) -> None:
    with pytest.raises(ValueError, match=r"overflow float in iteration \d+ .*compat or unary is too large"):
        crf(Gaussian(3, compat, normalization="none"))(noise(3, 4, 5).float())


# --- Lattice and permutohedral_filter ---


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: Lattice([1.0]), TypeError, "features must be a torch.Tensor, got list"),
        (lambda: Lattice(torch.zeros(2, 9).long()), TypeError, "features must be floating or uint8, got torch.int64"),
        (lambda: Lattice(torch.zeros(9)), ValueError, r"features must be .* got shape \(9,\) with spatial_dims=0"),
        (lambda: Lattice(torch.zeros(2, 9), spatial_dims=2), ValueError, r"got shape \(2, 9\) with spatial_dims=2"),
        (lambda: Lattice(torch.zeros(2, 9), [1, 2, 3]), ValueError, r"bandwidth .* 2 for features .*\(2, 9\), got 3"),
        (lambda: Lattice(torch.zeros(2, 9), 0), ValueError, "bandwidth must be positive and finite, got 0"),
        (lambda: Lattice(torch.zeros(2, 9), -1), ValueError, "bandwidth must be positive and finite, got -1"),
        (
            lambda: Lattice(torch.zeros(MAX_DIMENSION + 1, 9)),
            ValueError,
            f"1 to {MAX_DIMENSION} feature dimensions, got {MAX_DIMENSION + 1}",
        ),
        (lambda: Lattice(torch.zeros(0, 9)), ValueError, f"1 to {MAX_DIMENSION} feature dimensions, got 0"),
        (lambda: Lattice(with_value(torch.zeros(2, 9), NAN, 1, 4)), ValueError, "got nan in dimension 1 of point 4"),
        (lambda: Lattice(with_value(torch.zeros(2, 9), -INF, 0, 8)), ValueError, "got -inf in dimension 0 of point 8"),
        (lambda: Lattice(torch.zeros(2, 9)).filter([1.0]), TypeError, "values must be a torch.Tensor, got list"),
        (
            lambda: Lattice(torch.zeros(2, 9)).filter(torch.zeros(1, 8)),
            ValueError,
            r"spatial shape \(9,\), got \(1, 8\)",
        ),
        (lambda: Lattice(torch.zeros(2, 9)).filter(torch.zeros(9)), ValueError, r"values must .* got \(9,\)"),
        (lambda: Lattice(torch.zeros(2, 9)).filter(torch.zeros(1, 9).int()), TypeError, "dtype of the lattice"),
        (lambda: Lattice(torch.zeros(2, 9)).filter(torch.zeros(1, 9).double()), TypeError, "dtype of the lattice"),
        (lambda: Lattice(torch.zeros(2, 9).double()).filter(torch.zeros(1, 9)), TypeError, "dtype of the lattice"),
        (lambda: Lattice(torch.zeros(2, 9)).filter(torch.zeros(1, 9), "mean"), ValueError, "normalization .*'mean'"),
        (
            lambda: Lattice(torch.zeros(2, 3, 9), spatial_dims=1).filter(torch.zeros(3, 1, 9)),
            ValueError,
            "batch of the lattice must be 1 or 3, got 2",
        ),
        (
            lambda: permutohedral_filter([1.0], torch.zeros(2, 9)),
            TypeError,
            "must be torch.Tensor, got list and Tensor",
        ),
        (lambda: permutohedral_filter(torch.zeros(1, 8), torch.zeros(2, 9)), ValueError, "values must be"),
        (
            lambda: permutohedral_filter(torch.zeros(1, 9).int(), torch.zeros(2, 9)),
            TypeError,
            "values must have .* got Int",
        ),
    ],
)
def test_lattice(run: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run()


# --- the operators themselves ---


def build_arguments(**changes: Any) -> tuple[Any, ...]:
    arguments = {"guide": levels(2, 1, 20), "bandwidth": torch.tensor([2.0, 2.0, 13.0]), "grid": (4, 5)}
    return tuple((arguments | {"coordinates": True, "capacity": 160} | changes).values())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"guide": torch.zeros(2, 1, 20).int()}, TypeError, "guide must be uint8 or .* got Int"),
        ({"guide": torch.zeros(1, 20)}, ValueError, r"guide must be \[B, G, N\], got \[1, 20\]"),
        ({"guide": torch.zeros(2, 1, 21)}, ValueError, r"guide must have one column per point of the grid .*21"),
        ({"guide": torch.zeros(2, 2, 20)}, ValueError, "bandwidth must have one entry per feature dimension, 4, got 3"),
        (
            {"guide": torch.zeros(2, 0, 20), "coordinates": False},
            ValueError,
            f"1 to {MAX_DIMENSION} feature dimensions, got 0",
        ),
        ({"grid": ()}, ValueError, "grid must name at least one axis"),
        ({"grid": (-4, -5)}, ValueError, "grid must not be negative"),
        ({"grid": (4, 6)}, ValueError, "one column per point of the grid"),
        (
            {"bandwidth": torch.tensor([2.0, 0.0, 1.0])},
            ValueError,
            "bandwidths must be positive .* got 0 in dimension 1",
        ),
        ({"bandwidth": torch.tensor([2.0, 1.0, NAN])}, ValueError, "got nan in dimension 2"),
        ({"bandwidth": torch.tensor([[2.0, 1.0, 1.0]])}, ValueError, r"bandwidth must be \[d\], got \[1, 3\]"),
        ({"bandwidth": torch.tensor([2, 1, 1])}, TypeError, "bandwidth must be float or double, got Long"),
        ({"bandwidth": torch.tensor([2, 1, 1]).half()}, TypeError, "bandwidth must be float or double, got Half"),
        ({"capacity": -1}, ValueError, "capacity must not be negative, got -1"),
        ({"capacity": 0}, ValueError, "vertices, more than its capacity 0"),
        (
            {"bandwidth": torch.ones(3, device="meta")},
            ValueError,
            "bandwidth must be on the device of guide, cpu, .* meta",
        ),
    ],
)
def test_lattice_build(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.lattice_build(*build_arguments(**changes))
