"""Gradients of `mean_field`, the fused inference, and its place in torch's dispatcher."""

from __future__ import annotations

import pytest
import torch
from helpers import DOUBLE, SMALL, Case, compatibility, infer, levels, make_term, noise, ops
from torch import Tensor

FORMS = ["potts", "diagonal", "matrix"]


@pytest.mark.parametrize("output", ["probabilities", "log_probabilities"])
@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: str, normalization: str, output: str, device: torch.device) -> None:
    case = Case((3, 3), True, [2.0, 1.5])
    shared = make_term(case, torch.zeros(1, 0, 9, device=device), compatibility(form, 3), normalization, DOUBLE)
    colour = Case((3, 3), False, [30.0])
    own = make_term(colour, levels(2, 1, 9).to(device), compatibility("potts", 3), "symmetric", DOUBLE)
    unary = noise(2, 3, 9).to(device)
    inputs = [tensor.clone().requires_grad_() for tensor in (unary, shared.norm, shared.compat, own.norm, own.compat)]

    def run(unary: Tensor, *parts: Tensor) -> Tensor:
        terms = [shared._replace(norm=parts[0], compat=parts[1]), own._replace(norm=parts[2], compat=parts[3])]
        return infer(unary, terms, case, 2, output=output, damping=0.2, tol=1e-9)

    if normalization == "none":
        inputs[1].requires_grad_(False)
    assert torch.autograd.gradcheck(run, inputs)


def test_labels_have_no_gradient(device: torch.device) -> None:
    unary = noise(1, 3, 20).float().to(device).requires_grad_()
    terms = [make_term(SMALL, levels(1, 1, 20).to(device), compatibility("potts", 3))]
    assert not infer(unary, terms, SMALL, output="labels").requires_grad
    assert infer(unary, terms, SMALL).requires_grad


@pytest.mark.parametrize("output", ["probabilities", "log_probabilities", "labels"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_opcheck(dtype: torch.dtype, output: str, device: torch.device) -> None:
    term = make_term(SMALL, levels(2, 1, 20).to(device), compatibility("diagonal", 3), dtype=dtype)
    differentiable = output != "labels"
    unary, norm, compat = (
        tensor.clone().requires_grad_(differentiable)
        for tensor in (noise(2, 3, 20, dtype=dtype).to(device), term.norm, term.compat)
    )
    terms = (list(term.lattice), [norm], [term.normalization], [compat])
    torch.library.opcheck(ops.mean_field, (unary, *terms, SMALL.grid, 2, 0.1, -1.0, output, "fp32"))
