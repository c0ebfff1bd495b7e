"""The drop-in against pydensecrf itself: the same program, the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import photo
from programs import FORMS, Program, assert_same_marginals, original, run

from densecrf_cuda.pydensecrf import densecrf as dropin

# Multiples of four and not, larger and smaller than a tile of the lattice; 1 and 2 labels take other paths there.
SHAPES = [(16, 21), (17, 19), (33, 5), (1, 30), (3, 1)]


def assert_equal(program: Program, device: torch.device, iterations: int = 10) -> None:
    theirs = np.array(program.build(original()).inference(iterations))
    assert_same_marginals(run(program, device, iterations), theirs, program.exact(iterations))


@pytest.mark.parametrize("normalization", range(4))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_normalizations_and_compatibilities(
    shape: tuple[int, int], form: str, normalization: int, device: torch.device
) -> None:
    assert_equal(Program(shape, 3, normalization, form, kernel=normalization % 3), device)


@pytest.mark.parametrize("labels", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_and_numbers_of_labels(shape: tuple[int, int], labels: int, device: torch.device) -> None:
    assert_equal(Program(shape, labels), device)


@pytest.mark.parametrize("shape", [(40,), (43,), (9, 10), (4, 5, 6), (3, 5, 7), (2, 3, 2, 5)])
def test_other_dimensions_through_features(shape: tuple[int, ...], device: torch.device) -> None:
    assert_equal(Program(shape, dimensions=len(shape) if len(shape) != 2 else 0), device)


@pytest.mark.parametrize("kernel", range(3))
def test_kernel_types_do_not_change_inference(kernel: int) -> None:
    program = Program((9, 10), kernel=kernel)
    assert_equal(program, torch.device("cpu"))
    np.testing.assert_array_equal(run(program), run(program._replace(kernel=0)))


@pytest.mark.parametrize("iterations", [-1, 0, 1])
def test_few_iterations(iterations: int) -> None:
    program = Program((9, 11))
    theirs = np.array(program.build(original()).inference(iterations))
    assert_same_marginals(run(program, iterations=iterations), theirs, program.exact(max(iterations, 0)))


@pytest.mark.parametrize("shape", [(12, 14), (13, 15)])
def test_steps_and_divergence(shape: tuple[int, int], device: torch.device) -> None:
    program = Program(shape)
    ours, theirs = program.build(dropin, device=device), program.build(original())
    (q, *buffers), (their_q, *their_buffers) = ours.startInference(), theirs.startInference()
    for step in range(4):
        assert_same_marginals(np.array(q), np.array(their_q), program.exact(step))
        # Sums over the same numbers in float32 and double.
        assert ours.klDivergence(q) == pytest.approx(theirs.klDivergence(their_q), rel=1e-4)
        before = memoryview(q)
        assert ours.stepInference(q, *buffers) is None
        assert np.shares_memory(q, before)
        theirs.stepInference(their_q, *their_buffers)
    np.testing.assert_allclose(np.array(ours.inference(4)), np.array(q), rtol=0, atol=1e-5)  # another order of sums


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalization", range(4))
def test_divergence_of_any_distribution(normalization: int, form: str) -> None:
    program = Program((9, 10), 3, normalization, form)
    q = np.random.default_rng(0).dirichlet(np.ones(3), program.points).T.astype(np.float32, order="C")
    ours, theirs = (program.build(module).klDivergence(module.eigen.matrixXf(q)) for module in (dropin, original()))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_without_unary() -> None:
    program = Program((8, 9))
    results = []
    for module in (dropin, original()):
        crf = module.DenseCRF2D(9, 8, 3)
        crf.addPairwiseBilateral(12, 30, program.image, np.float32([-1, -2, -3]))
        results.append(np.array(crf.inference(5)))
    np.testing.assert_allclose(*results, atol=1e-5)


@pytest.mark.parametrize("kind", ["constant", "logistic"])
def test_unary_objects(kind: str) -> None:
    rng = np.random.default_rng(0)
    weights, features = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(4, 63)).astype(np.float32)
    program = Program((7, 9))
    results = []
    for module in (dropin, original()):
        crf = program.build(module)
        crf.setUnary(
            module.ConstUnary(weights @ features) if kind == "constant" else module.LogisticUnary(weights, features)
        )
        results.append(np.array(crf.inference(5)))
    np.testing.assert_allclose(*results, atol=1e-4)
    assert np.abs(results[0] - run(program, iterations=5)).max() > 0.1  # it took the place of the first


@pytest.mark.parametrize("shape", [(60, 80), (61, 79)])
@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_photos_with_the_parameters_of_tutorials(name: str, shape: tuple[int, int], device: torch.device) -> None:
    image = photo(name, *shape)
    program = Program(shape, 3)  # for its unary
    results = []
    for module, options in ((dropin, {"device": device}), (original(), {})):
        crf = module.DenseCRF2D(shape[1], shape[0], 3, **options)
        crf.setUnaryEnergy(program.unary)
        crf.addPairwiseGaussian(
            sxy=(3, 3), compat=3, kernel=module.DIAG_KERNEL, normalization=module.NORMALIZE_SYMMETRIC
        )
        crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
        results.append(np.array(crf.inference(10)))
    np.testing.assert_allclose(
        *results, rtol=0, atol=1e-4
    )  # pydensecrf is within 9e-5 of its model in float64 on photos
