"""`DenseCRF.steps`: the same Q as `forward`, with what it costs, against pydensecrf and the formulas."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DOUBLE, noise
from inference_model import make_example
from oracles import assert_same, pattern_image, pattern_unary, photo
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian, InferenceStep

# What is composed of operators is the same code in `steps` and `forward`, hence the same bits. Mean field in one
# operator sums in another order: float32 rounding, a few times amplified.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
SETTINGS: dict[str, tuple[dict[str, Any], bool]] = {
    "mean field": ({}, False),
    "damping and tol": ({"damping": 0.3, "tol": 0.3}, False),
    "dense": ({"filter": "dense"}, True),
    "dense with damping and tol": ({"filter": "dense", "damping": 0.3, "tol": 0.3}, True),
    "convergent": ({"inference": "convergent"}, True),
    "convergent with tol": ({"inference": "convergent", "tol": 0.3}, True),
    "frank-wolfe": ({"inference": "frank_wolfe"}, True),
    "frank-wolfe, l2, tol": ({"inference": "frank_wolfe", "regularization": "l2", "tol": 0.9}, True),
    "frank-wolfe, none": ({"inference": "frank_wolfe", "regularization": "none", "step_size": "decreasing"}, True),
}


def example(device: torch.device, *batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(pattern_image(12, 15)).permute(2, 0, 1).expand(*batch, -1, -1, -1).clone()
    if batch:
        image[0] = 255 - image[0]
    return noise(*batch, 3, 12, 15, dtype=dtype).to(device), image.to(device)


def usual(**settings: Any) -> DenseCRF:
    return DenseCRF(3, [Gaussian(3, 2), Bilateral(8, 20, [-3.0, -4.0, -2.0])], **{"iterations": 4} | settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_what_forward_gives(name: str, device: torch.device) -> None:
    settings, same_bits = SETTINGS[name]
    unary, image = example(device, 2)
    crf = usual(**settings)
    steps = list(crf.steps(unary, image))
    assert [step.iteration for step in steps] == [0, 1, 2, 3, 4]
    assert torch.equal(steps[0].q, steps[0].q.clamp(0, 1)) and not torch.equal(steps[0].q, steps[1].q)
    for step in steps:
        expected = crf(unary, image, iterations=step.iteration)
        assert step.q.shape == unary.shape and step.q.dtype == unary.dtype
        if same_bits:
            assert torch.equal(step.q, expected), step.iteration
        else:
            torch.testing.assert_close(step.q, expected, **ROUNDING)
    if "tol" in settings:  # it stopped somewhere, or this shows nothing
        assert any(torch.equal(a.q[b], c.q[b]) for a, c in itertools.pairwise(steps) for b in range(2))


@pytest.mark.parametrize("size", [(60, 80), (28, 36)])
@pytest.mark.parametrize("form", ["potts", "matrix"])
def test_pydensecrf(form: str, size: tuple[int, int], device: torch.device) -> None:
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (Python <= 3.12 only)")
    image, unary = photo("astronaut", *size), pattern_unary(3, *size)
    matrix = [[-3.0, 0.5, 0.0], [0.5, -2.0, 1.0], [0.0, 1.0, -4.0]]
    theirs = densecrf.DenseCRF2D(size[1], size[0], 3)
    theirs.setUnaryEnergy(unary)
    theirs.addPairwiseGaussian(sxy=3, compat=3)
    compat = 10.0 if form == "potts" else np.array(matrix, np.float32)
    theirs.addPairwiseBilateral(sxy=30, srgb=13, rgbim=image, compat=compat)
    crf = DenseCRF(3, [Gaussian(3, 3), Bilateral(30, 13, 10.0 if form == "potts" else matrix)])
    energies = torch.from_numpy(unary).reshape(3, *size).to(device)
    q, first, second = theirs.startInference()
    for step in crf.steps(energies, torch.from_numpy(image).permute(2, 0, 1).to(device), iterations=5):
        assert_same(step.q.flatten(1).cpu(), np.array(q).reshape(3, -1))
        # both add up float32 products of thousands of pixels
        assert step.kl_divergence.item() == pytest.approx(theirs.klDivergence(q), rel=1e-4)
        theirs.stepInference(q, first, second)


@pytest.mark.parametrize("inference", ["mean_field", "convergent", "frank_wolfe"])
def test_costs_are_the_formulas(inference: str, device: torch.device) -> None:
    made = make_example([3.0, [[1.0, 0.5], [0.5, -2.0]]], 2, "after", inference=inference)
    for step in made.crf.to(device).steps(made.unary.to(device), iterations=3):
        q = step.q.cpu().numpy()
        assert step.free_energy.item() == pytest.approx(made.model.free_energy(q), rel=1e-12)
        assert step.energy.item() == pytest.approx(made.model.energy(q), rel=1e-12)
        pairwise = (q * made.model.messages(q)).sum()
        assert step.kl_divergence.item() == pytest.approx(made.model.free_energy(q) + pairwise / 2, rel=1e-12)


def test_shapes(device: torch.device) -> None:
    unary, image = example(device, 2)
    crf = usual(inference="convergent", iterations=2)
    for b in range(2):
        for one, many in zip(crf.steps(unary[b], image[b]), crf.steps(unary, image)):
            assert one.q.shape == (3, 12, 15) and torch.equal(one.q, many.q[b])
            assert one.free_energy.shape == () and many.free_energy.shape == (2,)
            assert many.free_energy.dtype == DOUBLE
            assert one.free_energy.item() == pytest.approx(many.free_energy[b].item(), rel=1e-12)
    points = DenseCRF(2, [Features(noise(3, 9, dtype=torch.float32).to(device), 1.0)])
    assert [step.q.shape for step in points.steps(noise(2, 9).to(device), iterations=1)] == [(2, 9)] * 2
    volume = DenseCRF(2, [Bilateral(2, 20, 1)], spatial_dims=3)
    guide = torch.zeros(1, 1, 3, 4, 5, device=device)
    steps = volume.steps(noise(1, 2, 3, 4, 5, dtype=torch.float16).to(device), guide, iterations=1)
    assert [(step.q.shape, step.q.dtype) for step in steps] == [((1, 2, 3, 4, 5), torch.float16)] * 2


def test_steps_are_computed_when_they_are_asked_for() -> None:
    crf, (unary, image) = usual(iterations=1000), example(torch.device("cpu"))
    steps = crf.steps(unary, image)
    assert isinstance(steps, Iterator)
    first, second = next(steps), next(steps)
    assert isinstance(first, InferenceStep) and repr(second) == "InferenceStep(iteration=1, q=(3, 12, 15))"
    torch.testing.assert_close(first.q, (-unary).softmax(0))
    assert [step.iteration for step in crf.steps(unary, image, iterations=0)] == [0]


def test_gradients_flow_as_they_do_through_forward(device: torch.device) -> None:
    unary, image = example(device, 2, dtype=DOUBLE)
    unary.requires_grad_()
    crf = usual(trainable="weights", iterations=3)
    *_, last = crf.steps(unary, image)
    wanted = [unary, *crf.parameters()]
    got = torch.autograd.grad(last.q.square().sum(), wanted)
    for gradient, expected in zip(got, torch.autograd.grad(crf(unary, image).square().sum(), wanted)):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)  # sums in another order, in double
    free_energies = [step.free_energy.sum() for step in crf.steps(unary, image)]
    assert all(torch.autograd.grad(value, unary, retain_graph=True)[0].abs().max() > 0 for value in free_energies)


def test_no_grad_counts_at_the_call(device: torch.device) -> None:
    unary, image = example(device)
    unary.requires_grad_()
    with torch.no_grad():
        steps = usual().steps(unary, image)
    assert not any(step.q.requires_grad for step in steps)
    steps = usual().steps(unary, image)
    with torch.no_grad():
        assert all(step.q.requires_grad for step in steps)
    for _ in usual().steps(unary, image, iterations=1):
        assert torch.is_grad_enabled()


def test_autocast_changes_nothing(device: torch.device) -> None:
    unary, image = example(device)
    matrix = (-4 * torch.eye(3)).tolist()
    crf = DenseCRF(3, [Bilateral(8, 20, matrix)], iterations=2, inference="convergent")
    plain = list(crf.steps(unary, image))
    with torch.autocast(device.type, torch.bfloat16):
        cast = list(crf.steps(unary, image))
        for ours, theirs in zip(cast, plain):
            assert torch.equal(ours.q, theirs.q) and torch.equal(ours.free_energy, theirs.free_energy)
            assert torch.is_autocast_enabled(device.type)


def test_bad_input_is_refused_at_the_call() -> None:
    unary, image = example(torch.device("cpu"))
    with pytest.raises(ValueError, match="unary must be"):
        usual().steps(unary[:2], image)
    with pytest.raises(ValueError, match="needs an image, got none"):
        usual().steps(unary)
    with pytest.raises(ValueError, match="unary must not be NaN"):
        usual().steps(unary * torch.nan, image)
    with pytest.raises(ValueError, match="iterations must be at least 0, got -1"):
        usual().steps(unary, image, iterations=-1)
