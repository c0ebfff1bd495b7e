"""The reference mean field against pydensecrf, live where it is installed and by stored numbers everywhere."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from oracles import assert_same, pattern_image, pattern_unary, refine_with_pydensecrf
from torch import Tensor

from densecrf_cuda import reference

NORMALIZATIONS = ["none", "before", "after", "symmetric"]
COMPATS = {
    "potts": (3.0, 4.0),
    "diagonal": ([-3.0, -1.0, -2.0], [-4.0, -2.0, -1.0]),
    "matrix": ([[-3.0, 0.5, 0.0], [0.5, -2.0, 1.0], [0.0, 1.0, -4.0]], np.diag([-2.0, -3.0, -1.0]).tolist()),
}
# A kernel: bandwidths of x, y (and of the colours).
GAUSSIAN, BILATERAL = (3.0, 3.0), (8.0, 6.0, 20.0, 20.0, 20.0)

# Q of pixels PIXELS, three labels each, made on x86 with pydensecrf2 1.1 by
#   crf = DenseCRF2D(12, 8, 3); crf.setUnaryEnergy(pattern_unary(3, 8, 12))
#   crf.addPairwiseGaussian(sxy=3, compat=c1, normalization=...)
#   crf.addPairwiseBilateral(sxy=(8, 6), srgb=20, rgbim=pattern_image(8, 12), compat=c2, normalization=...)
#   np.array(crf.inference(5))[:, PIXELS].T
# with c1, c2 = compats(name, normalization), lists as float32 arrays.
PIXELS = [0, 17, 50, 95]
ORACLE: dict[tuple[str, str], list[list[float]]] = {
    ("potts", "none"): [
        [0.3343417, 0.3296538, 0.3360046],
        [0.0306666, 0.6066697, 0.3626638],
        [0.3356498, 0.3321899, 0.3321603],
        [0.5682594, 0.0777356, 0.3540052],
    ],
    ("potts", "before"): [
        [0.0743221, 0.1101974, 0.8154805],
        [0.1181045, 0.6396539, 0.2422416],
        [0.6037518, 0.2279784, 0.1682698],
        [0.0819474, 0.0276504, 0.8904022],
    ],
    ("potts", "after"): [
        [0.1566411, 0.2110797, 0.6322792],
        [0.0848193, 0.7173268, 0.1978539],
        [0.5979261, 0.2574331, 0.1446408],
        [0.0516099, 0.0256003, 0.9227898],
    ],
    ("potts", "symmetric"): [
        [0.1044458, 0.1479468, 0.7476074],
        [0.0995429, 0.6813559, 0.2191011],
        [0.6045294, 0.2404428, 0.1550278],
        [0.0648944, 0.0260655, 0.90904],
    ],
    ("diagonal", "symmetric"): [
        [0.9967833, 0.0016078, 0.0016089],
        [0.9789016, 0.0131337, 0.0079647],
        [0.9986541, 0.0006724, 0.0006735],
        [0.9980897, 0.0003468, 0.0015634],
    ],
    ("matrix", "symmetric"): [
        [0.7727467, 0.0684412, 0.158812],
        [0.28614, 0.252328, 0.4615319],
        [0.831513, 0.0377503, 0.1307368],
        [0.7217807, 0.0200524, 0.2581669],
    ],
}


def compats(name: str, normalization: str) -> tuple[Any, ...]:
    """Weights of both kernels; smaller without normalization, where a row of the kernel sums to about 100, not to 1."""
    weights = COMPATS[name]
    return tuple((np.array(w) / 100).tolist() for w in weights) if normalization == "none" else weights


def refine(
    unary: np.ndarray,
    image: np.ndarray,
    bandwidths: Sequence[Sequence[float]],
    compats: Sequence[Any],
    normalization: str,
    iterations: int,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Tensor:
    """Q [C, N] of the reference."""
    grid = image.shape[:2]
    lattices, norms = [], []
    for bandwidth in bandwidths:
        guide = torch.from_numpy(image).reshape(1, -1, 3).transpose(1, 2)[:, : len(bandwidth) - 2]
        capacity = math.prod(grid) * (len(bandwidth) + 1)
        lattice = reference.lattice_build(guide, torch.tensor(bandwidth, dtype=dtype), grid, True, capacity)
        lattices += lattice
        no_norm = torch.empty(0, dtype=dtype)
        norms.append(
            no_norm if normalization == "none" else reference.normalization_scale(lattice, grid, normalization)
        )
    tensors = [torch.tensor(compat, dtype=dtype) for compat in compats]
    options = {"damping": 0.0, "tol": -1.0, "output": "probabilities", "precision": "fp32"} | settings
    energies, names = torch.from_numpy(unary).to(dtype)[None], [normalization] * len(compats)
    return reference.mean_field(energies, lattices, norms, names, tensors, grid, iterations, **options)[0][0]


@pytest.mark.parametrize(("name", "normalization"), ORACLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stored_oracle(name: str, normalization: str, dtype: torch.dtype) -> None:
    image, unary = pattern_image(8, 12), pattern_unary(3, 8, 12)
    q = refine(unary, image, [GAUSSIAN, BILATERAL], compats(name, normalization), normalization, 5, dtype)
    # 1e-5: the numbers are rounded to 1e-7; on 96 pixels five iterations in float32 leave about 1e-6.
    np.testing.assert_allclose(q[:, PIXELS].T.numpy(), ORACLE[name, normalization], rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("compat", COMPATS)
def test_small_pattern(compat: str, normalization: str) -> None:
    weights = compats(compat, normalization)
    arguments = (pattern_unary(3, 8, 12), pattern_image(8, 12), [GAUSSIAN, BILATERAL], weights, normalization)
    assert_same(refine(*arguments, 5), refine_with_pydensecrf(*arguments, 5))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("labels", [2, 5])
def test_pattern(labels: int, normalization: str) -> None:
    bandwidths = [(3.0, 3.0), (40.0, 40.0, 13.0, 13.0, 13.0)]
    # Unnormalised messages of thousands would lose Q's fourth digit to their own float32 rounding.
    weights = (0.03, 0.02) if normalization == "none" else (3.0, 10.0)
    arguments = (pattern_unary(labels, 60, 80), pattern_image(60, 80), bandwidths, weights, normalization, 10)
    expected = refine_with_pydensecrf(*arguments)
    assert_same(refine(*arguments), expected)
    # In float64 the float32 of pydensecrf is what remains; the published limit for ten iterations is 1e-4.
    assert_same(refine(*arguments, torch.float64), expected, atol=2e-4)


@pytest.mark.parametrize("photo", ["astronaut", "coffee", "chelsea"])
def test_photo(photo: str) -> None:
    data = pytest.importorskip("skimage.data")
    image = np.ascontiguousarray(getattr(data, photo)()[::3, ::3][:96, :128])
    unary = pattern_unary(21, *image.shape[:2])
    bandwidths = [(3.0, 3.0), (80.0, 80.0, 13.0, 13.0, 13.0)]
    arguments = (unary, image, bandwidths, (3.0, 10.0), "symmetric", 10)
    assert_same(refine(*arguments), refine_with_pydensecrf(*arguments))


@pytest.mark.parametrize("normalization", ["after", "symmetric"])
def test_size_that_is_no_multiple_of_four(normalization: str) -> None:
    """pydensecrf takes four points at a time and inserts the vertices of zero features for those it lacks.

    Those vertices carry no weight, but the blur passes through them. So the same points are added here, in a lattice
    of free features, and their values kept at 0.
    """
    height, width, labels = 13, 17, 3
    image, unary = pattern_image(height, width), pattern_unary(labels, height, width)
    points, padded = height * width, 4 * math.ceil(height * width / 4)
    y, x = np.divmod(np.arange(points), width)
    channels = torch.zeros(1, 5, padded)
    channels[0, :, :points] = torch.from_numpy(np.vstack([x, y, image.reshape(-1, 3).T]).astype(np.float32))
    lattice = reference.lattice_build(channels, torch.tensor(BILATERAL), (padded,), False, 6 * padded)

    def kernel(values: Tensor) -> Tensor:
        values = torch.nn.functional.pad(values, (0, 0, 0, padded - points))[None]
        return reference.lattice_filter(values, None, None, None, lattice, (padded,), False)[0, :points]

    row_sums = kernel(torch.ones(points, 1))
    norm = row_sums.rsqrt() if normalization == "symmetric" else row_sums.reciprocal()
    energy = torch.from_numpy(unary).T
    q = (-energy).softmax(1)
    for _ in range(10):
        y_k = norm * kernel(norm * q if normalization == "symmetric" else q)
        q = (-energy + 5.0 * y_k).softmax(1)
    expected = refine_with_pydensecrf(unary, image, [BILATERAL], [5.0], normalization, 10)
    assert_same(q.T, expected)
    # Without them Q differs by more than rounding, but the same labels win.
    ours = refine(unary, image, [BILATERAL], [5.0], normalization, 10)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=0.05)


def pattern_arguments(normalization: str = "symmetric") -> tuple[Any, ...]:
    return pattern_unary(3, 8, 12), pattern_image(8, 12), [GAUSSIAN, BILATERAL], COMPATS["potts"], normalization


def test_no_iterations_is_the_softmax_of_the_unary() -> None:
    q = refine(*pattern_arguments(), 0)
    torch.testing.assert_close(q, torch.from_numpy(-pattern_unary(3, 8, 12)).softmax(0))


def test_outputs_agree() -> None:
    q = refine(*pattern_arguments(), 5, torch.float64)
    log_q = refine(*pattern_arguments(), 5, torch.float64, output="log_probabilities")
    labels = refine(*pattern_arguments(), 5, torch.float64, output="labels")
    torch.testing.assert_close(log_q.exp(), q)  # default tolerances: the two roundings differ
    assert torch.equal(labels, q.argmax(0))
    damped = refine(*pattern_arguments(), 5, torch.float64, output="log_probabilities", damping=0.5)
    torch.testing.assert_close(damped.exp(), refine(*pattern_arguments(), 5, torch.float64, damping=0.5))


def test_damping_mixes_old_and_new() -> None:
    start, undamped = (refine(*pattern_arguments(), n, torch.float64) for n in (0, 1))
    damped = refine(*pattern_arguments(), 1, torch.float64, damping=0.25)
    torch.testing.assert_close(damped, 0.25 * start + 0.75 * undamped)


def test_every_image_stops_by_itself() -> None:
    grid = (8, 12)
    guide = torch.from_numpy(pattern_image(8, 12)).reshape(1, -1, 3).transpose(1, 2)
    lattice = reference.lattice_build(guide, torch.tensor(BILATERAL), grid, True, 1000)
    norm = reference.normalization_scale(lattice, grid, "symmetric")
    unaries = torch.from_numpy(np.stack([pattern_unary(3, 8, 12), 10 * pattern_unary(3, 8, 12)]))

    def run(unary: Tensor, iterations: int, tol: float) -> Tensor:
        settings = (iterations, 0.0, tol, "probabilities", "fp32")
        return reference.mean_field(unary, lattice, [norm], ["symmetric"], [torch.tensor(2.0)], grid, *settings)[0]

    tol, stops = 0.003, []
    together = run(unaries, 15, tol)
    for unary, got in zip(unaries, together):
        trace = [run(unary[None], n, -1.0)[0] for n in range(16)]
        stops.append(next(n for n in range(1, 16) if (trace[n] - trace[n - 1]).abs().max() <= tol))
        assert torch.equal(got, trace[stops[-1]])
    assert stops[0] != stops[1], stops


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_forbidden_label_has_probability_zero(damping: float) -> None:
    unary = pattern_unary(3, 8, 12)
    unary[1, 10:40] = np.inf
    arguments = (unary, *pattern_arguments()[1:], 5)
    q = refine(*arguments, damping=damping)
    assert (q[1, 10:40] == 0).all()
    torch.testing.assert_close(q.sum(0), torch.ones(96))
    log_q = refine(*arguments, damping=damping, output="log_probabilities")
    assert torch.equal(log_q.isneginf(), torch.from_numpy(np.isinf(unary)))


def test_no_kernels_and_half() -> None:
    unary = torch.from_numpy(pattern_unary(3, 8, 12))[None].half()
    q, status = reference.mean_field(unary, [], [], [], [], (8, 12), 3, 0.0, -1.0, "probabilities", "fp16")
    assert status.tolist() == [0]
    assert torch.equal(q, (-unary.float()).softmax(1).half())


def test_differentiable() -> None:
    image, grid = pattern_image(3, 4), (3, 4)
    guide = torch.from_numpy(image).reshape(1, -1, 3).transpose(1, 2)
    lattice = reference.lattice_build(guide, torch.tensor(BILATERAL, dtype=torch.float64), grid, True, 72)
    norm = reference.normalization_scale(lattice, grid, "symmetric").requires_grad_()
    unary = torch.from_numpy(pattern_unary(3, 3, 4)).double()[None].requires_grad_()
    compat = torch.tensor(COMPATS["matrix"][0], dtype=torch.float64, requires_grad=True)

    def run(unary: Tensor, norm: Tensor, compat: Tensor) -> Tensor:
        settings = (2, 0.1, -1.0, "log_probabilities", "fp32")
        return reference.mean_field(unary, lattice, [norm], ["symmetric"], [compat], grid, *settings)[0]

    assert torch.autograd.gradcheck(run, (unary, norm, compat))
