"""The mean field that is made for training, and its adjoint: against the reference, finite differences, composition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import (
    CASES,
    DOUBLE,
    SMALL,
    Case,
    Term,
    assert_as_exact_as_torch,
    compatibility,
    for_threads,
    infer,
    layouts,
    levels,
    make_term,
    noise,
    on_cpu,
    ops,
    relative,
)
from oracles import pattern_image
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, reference

CASE = CASES["d5"]
FORMS = ["potts", "diagonal", "matrix"]
NORMALIZATIONS = ["none", "before", "after", "symmetric"]


def parts(
    terms: list[Term], dtype: torch.dtype | None = None
) -> tuple[list[Tensor], list[Tensor], list[str], list[Tensor]]:
    """The lists that the operators take; where a dtype is named, on the CPU and in it, for the reference."""
    lattices = [tensor for term in terms for tensor in (on_cpu(term.lattice, dtype) if dtype else term.lattice)]
    norms, compats = [term.norm for term in terms], [term.compat for term in terms]
    if dtype:
        norms, compats = ([tensor.cpu().to(dtype) for tensor in tensors] for tensors in (norms, compats))
    return lattices, norms, [term.normalization for term in terms], compats


def unroll(unary: Tensor, terms: list[Term], case: Case = CASE, iterations: int = 4, logarithm: bool = False) -> Any:
    """The result and its history."""
    *outputs, status = ops._mean_field_unrolled(unary, [], *parts(terms), case.grid, iterations, logarithm)
    assert status.tolist() == [0] * unary.shape[0]
    return outputs


def pull_back(
    grad: Tensor, result: Tensor, history: Tensor, terms: list[Term], logarithm: bool, case: Case = CASE
) -> list[Tensor]:
    """Gradient of the unary, and products; test_filter_gradients.py has the rest."""
    return ops._mean_field_unrolled_backward(grad, result, history, [], *parts(terms), case.grid, logarithm, True)[:2]


def make_terms(form: str, normalization: str, classes: int, dtype: torch.dtype, device: torch.device) -> list[Term]:
    guide = levels(2, 3, CASE.points).to(device)
    own = make_term(CASE, guide, compatibility(form, classes), normalization, dtype)
    plane = Case(CASE.grid, True, [3.0, 3.0])
    return [own, make_term(plane, guide[:1, :0], compatibility("potts", classes), "symmetric", dtype)]


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_reference(
    form: str, normalization: str, dtype: torch.dtype, logarithm: bool, device: torch.device
) -> None:
    terms, output = (
        make_terms(form, normalization, 5, dtype, device),
        "log_probabilities" if logarithm else "probabilities",
    )
    unary, grad = (noise(2, 5, CASE.points, seed=seed, dtype=dtype).to(device) for seed in (1, 2))
    result, history = unroll(unary, terms, logarithm=logarithm)
    assert torch.equal(result, infer(unary, terms, iterations=4, output=output))
    for t in range(4):
        q = infer(unary, terms, iterations=t).transpose(1, 2)
        torch.testing.assert_close(history[:, t], q, rtol=0, atol=2 * torch.finfo(dtype).eps)  # rounded to be stored
    # The adjoint of the same result and history, in the precision of the lattice and in double.
    got = pull_back(grad, result, history, terms, logarithm)
    saved = [tensor.cpu() for tensor in (grad, result, history)]

    def expected(precision: torch.dtype) -> tuple[Tensor, ...]:
        inputs, lists = [tensor.to(precision) for tensor in saved], parts(terms, precision)
        return reference._mean_field_unrolled_backward(*inputs, [], *lists, CASE.grid, logarithm, True)[:2]

    # Products are ten sums of thousands of numbers, and an error of PyTorch over ten numbers is often luck.
    for ours, torch_result, exact, units in zip(got, expected(dtype), expected(DOUBLE), (1, 3)):
        if dtype == DOUBLE:
            assert relative(ours, exact) <= 1e-10
        else:
            assert_as_exact_as_torch(ours, torch_result, exact, units)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [1, 2, 3, 8, 9, 21, 33, 150])
def test_any_number_of_labels(classes: int, form: str, device: torch.device) -> None:
    terms = make_terms(form, "symmetric", classes, DOUBLE, device)
    unary, grad = (noise(2, classes, CASE.points, seed=seed).to(device) for seed in (1, 2))
    result, history = unroll(unary, terms)
    got = pull_back(grad, result, history, terms, False)
    saved = [tensor.cpu() for tensor in (grad, result, history)]
    expected = reference._mean_field_unrolled_backward(*saved, [], *parts(terms, DOUBLE), CASE.grid, False, True)
    for ours, theirs in zip(got, expected):
        # With one label every gradient is zero: then what is left of terms of magnitude 1 counts.
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-10, atol=1e-10 * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: str, normalization: str, logarithm: bool, device: torch.device) -> None:
    case = Case((3, 3), True, [2.0, 1.5])
    term = make_term(case, torch.zeros(1, 0, 9, device=device), compatibility(form, 3), normalization, DOUBLE)
    unary = noise(2, 3, 9).to(device).requires_grad_()
    compat, norm = term.compat.clone().requires_grad_(), term.norm.clone()

    def run(unary: Tensor, compat: Tensor, norm: Tensor) -> Tensor:
        return unroll(unary, [term._replace(compat=compat, norm=norm)], case, 3, logarithm)[0]

    assert torch.autograd.gradcheck(run, (unary, compat, norm))
    assert torch.autograd.gradgradcheck(run, (unary, compat, norm))
    if normalization != "none":
        assert torch.autograd.gradcheck(run, (unary, compat, norm.requires_grad_()))


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("output", ["probabilities", "log_probabilities"])
@pytest.mark.parametrize("normalization", [*NORMALIZATIONS, "homogeneous"])
def test_crf_that_trains_no_filter(normalization: str, output: str, checkpoint: bool, device: torch.device) -> None:
    """Here the CRF takes this operator; where the image wants a gradient as well it composes: both agree."""
    weight = 0.05 if normalization == "none" else 1.0
    kernels = [Gaussian(2, 3, weight=weight), Bilateral(5, 40, [-2.0, -3.0, -1.0], weight=weight)]
    settings = {"normalization": normalization, "output": output, "checkpoint": checkpoint, "iterations": 3}
    crf = DenseCRF(3, kernels, trainable=("weights", "compatibility"), **settings).to(device).double()
    unary = noise(2, 3, 8, 9).to(device).requires_grad_()
    image = torch.from_numpy(pattern_image(8, 9)).permute(2, 0, 1).expand(2, -1, -1, -1).double().to(device)
    wanted = [unary, *crf.parameters()]
    q = crf(unary, image)
    with torch.no_grad():
        torch.testing.assert_close(q, crf(unary, image), rtol=1e-12, atol=1e-14)
    composed = crf(unary, image.clone().requires_grad_())
    factors = noise(*q.shape, seed=5).to(device)
    got, expected = (torch.autograd.grad((result * factors).sum(), wanted) for result in (q, composed))
    for ours, theirs in zip(got, expected):  # the same sums in another order
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
        assert theirs.abs().max() > 0


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("form", FORMS)
def test_number_of_threads_and_images_does_not_matter(form: str, batch: int, restore_threads: None) -> None:
    case = Case((61, 90), True, [5.0, 5.0, 13.0, 13.0, 13.0])
    guide, compat = levels(batch, 3, case.points), compatibility(form, 5)
    terms = [make_term(case, guide, compat)]
    unary, grad = (noise(batch, 5, case.points, seed=seed, dtype=torch.float32) for seed in (1, 2))

    def run() -> list[Tensor]:
        result, history = unroll(unary, terms, case)
        return [result, history, *pull_back(grad, result, history, terms, False, case)]

    first, *others = for_threads(run)
    for other in others:
        assert all(map(torch.equal, first, other))
    own = [make_term(case, guide[-1:], compat)]
    result, history = unroll(unary[-1:], own, case)
    alone = [result, history, pull_back(grad[-1:], result, history, own, False, case)[0]]
    assert all(torch.equal(ours[0], together[-1]) for ours, together in zip(alone, first))


def test_layout_of_inputs_does_not_matter(device: torch.device) -> None:
    terms = make_terms("diagonal", "symmetric", 5, torch.float32, device)
    unary, grad = (noise(2, 5, CASE.points, seed=seed, dtype=torch.float32).to(device) for seed in (1, 2))
    result, history = unroll(unary, terms)
    expected = pull_back(grad, result, history, terms, False)
    for name in layouts(unary):
        strided = unroll(layouts(unary)[name], terms)
        assert torch.equal(strided[0], result) and torch.equal(strided[1], history), name
        moved = [layouts(tensor)[name] for tensor in (grad, result, history)]
        assert all(map(torch.equal, pull_back(*moved, terms, False), expected)), name
    ones = grad.new_ones(1, 1, 1).expand(grad.shape)  # what sum().backward() sends
    assert all(
        map(
            torch.equal,
            pull_back(ones, result, history, terms, False),
            pull_back(ones.contiguous(), result, history, terms, False),
        )
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(dtype: torch.dtype, device: torch.device) -> None:
    terms = make_terms("potts", "symmetric", 5, torch.float32, device)
    unary, grad = (noise(2, 5, CASE.points, seed=seed).to(device, dtype) for seed in (1, 2))
    result, history = unroll(unary, terms)
    exact, same_history = unroll(unary.float(), terms)
    assert result.dtype == dtype and history.dtype == torch.float32
    assert torch.equal(result, exact.to(dtype)) and torch.equal(history, same_history)
    got, _ = pull_back(grad, result, history, terms, False)
    expected, _ = pull_back(grad.float(), result.float(), history, terms, False)
    assert got.dtype == dtype and torch.equal(got, expected.to(dtype))


def test_forbidden_labels_have_no_gradient(device: torch.device) -> None:
    terms = make_terms("potts", "symmetric", 3, DOUBLE, device)
    unary = noise(2, 3, CASE.points).to(device)
    unary[:, 1, ::3] = math.inf
    for logarithm in (False, True):
        leaf = unary.clone().requires_grad_()
        result, _ = unroll(leaf, terms, logarithm=logarithm)
        result.masked_fill(result.isneginf(), 0).square().sum().backward()
        assert leaf.grad.isfinite().all() and (leaf.grad[:, 1, ::3] == 0).all()


@pytest.mark.parametrize("shape", [(0, 3, 20), (2, 3, 0)])
def test_empty(shape: tuple[int, ...], device: torch.device) -> None:
    case = Case((4, shape[2] // 4), True, [2.0, 2.0])
    terms = [make_term(case, torch.zeros(shape[0], 0, shape[2], device=device), compatibility("potts", 3))]
    unary = torch.zeros(shape, device=device)
    result, history = unroll(unary, terms, case)
    assert result.shape == shape and history.shape == (shape[0], 4, shape[2], 3)
    grad, products = pull_back(unary, result, history, terms, False, case)
    assert grad.shape == shape and torch.equal(products, torch.zeros(1, 3, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_opcheck(dtype: torch.dtype, device: torch.device) -> None:
    term = make_term(SMALL, levels(2, 1, 20).to(device), compatibility("diagonal", 3), dtype=dtype)
    unary = noise(2, 3, 20, dtype=dtype).to(device)
    leaves = [tensor.clone().requires_grad_() for tensor in (unary, term.norm, term.compat)]
    arguments = ([], list(term.lattice), [leaves[1]], ["symmetric"], [leaves[2]], SMALL.grid, 2)
    torch.library.opcheck(ops._mean_field_unrolled, (leaves[0], *arguments, False))
    result, history = unroll(unary, [term], SMALL, 2)
    arguments = (list(term.lattice), [term.norm], ["symmetric"], [term.compat], SMALL.grid, False, True)
    for features in ([], [torch.rand(2, 3, 20, dtype=dtype, device=device)]):
        torch.library.opcheck(ops._mean_field_unrolled_backward, (unary, result, history, features, *arguments))


@pytest.mark.parametrize(
    ("index", "wrong", "error", "message"),
    [
        (0, torch.zeros(2, 3, 19), ValueError, "grad|result"),
        (1, torch.zeros(2, 4, 20), ValueError, "grad|result"),
        (2, torch.zeros(2, 2, 20, 4), ValueError, "history"),
        (2, torch.zeros(1, 2, 20, 3), ValueError, "history"),
        (2, torch.zeros(2, 2, 20, 3).half(), TypeError, "history must be float or double, got Half"),
        (2, torch.zeros(2, 2, 20, 3).double(), TypeError, "needs lattices of dtype Double, got Float"),
    ],
)
def test_bad_input(index: int, wrong: Tensor, error: type[Exception], message: str) -> None:
    terms = [make_term(SMALL, levels(2, 1, 20), compatibility("potts", 3))]
    operands = [torch.zeros(2, 3, 20), torch.zeros(2, 3, 20), torch.zeros(2, 2, 20, 3)]
    pull_back(*operands, terms, False, SMALL)
    operands[index] = wrong
    with pytest.raises(error, match=message):
        pull_back(*operands, terms, False, SMALL)
