"""Gradients of what makes the filters, through the fused backward pass: against composition and the reference."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import pytest
import torch
from helpers import CASES, DOUBLE, compatibility, levels, make_term, noise, ops, relative
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, reference
from densecrf_cuda.inference import unrolled_mean_field

CASE = CASES["d5"]


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric"])
@pytest.mark.parametrize("form", ["potts", "diagonal"])
@pytest.mark.parametrize("shared", [False, True])
def test_adjoint_is_that_of_the_reference(
    form: str, normalization: str, logarithm: bool, shared: bool, device: torch.device
) -> None:
    guide = levels(1 if shared else 2, 3, CASE.points).to(device)
    term = make_term(CASE, guide, compatibility(form, 4), normalization, DOUBLE)
    bandwidth = torch.tensor(CASE.bandwidth, dtype=DOUBLE, device=device)
    features = reference.lattice_features(guide, bandwidth, CASE.grid, CASE.coordinates)
    unary, grad = (noise(2, 4, CASE.points, seed=seed).to(device) for seed in (1, 2))
    lists = ([features], list(term.lattice), [term.norm], [normalization], [term.compat], CASE.grid)
    result, history, _ = ops._mean_field_unrolled(unary, *lists, 3, logarithm)
    got = ops._mean_field_unrolled_backward(grad, result, history, *lists, logarithm, True)
    expected = reference._mean_field_unrolled_backward(grad, result, history, *lists, logarithm, True)
    pairs = [*zip(got[:2], expected[:2]), (got[2][0], expected[2][0])]
    if normalization != "none":
        pairs.append((got[3][0], expected[3][0]))
    for ours, theirs in pairs:
        assert relative(ours, theirs) <= 1e-10  # double precision on both sides, sums in another order


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric", "homogeneous"])
@pytest.mark.parametrize("form", ["potts", "diagonal", "matrix"])
def test_training_everything_equals_the_composition(form: str, normalization: str, batch: int) -> None:
    """Every parameter, the unary and the image at once; the composition is checked by finite differences elsewhere."""
    compat = compatibility(form, 3).tolist()
    crf = DenseCRF(
        3,
        [Gaussian(sxy=2, compat=compat), Bilateral(sxy=5, srgb=60, compat=compat)],
        iterations=3,
        normalization=normalization,
        trainable=True,
    ).double()
    unary = noise(batch, 3, 17, 26, seed=1).requires_grad_()
    image = (255 * torch.rand(batch, 3, 17, 26, dtype=DOUBLE)).requires_grad_()
    weigh = noise(batch, 3, 17, 26, seed=2)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad((crf(unary, image) * weigh).sum(), [unary, image, *crf.parameters()])

    with patch("densecrf_cuda.crf.unrolled_mean_field", partial(unrolled_mean_field, fused=False)):
        expected = gradients()
    for ours, theirs in zip(gradients(), expected):
        assert relative(ours, theirs) <= 1e-10  # as above
