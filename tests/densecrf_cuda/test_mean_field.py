"""`mean_field`, the fused inference: against the reference, its settings, its gradients, and what it refuses."""

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
    infer_with_status,
    layouts,
    levels,
    make_term,
    noise,
    on_cpu,
    relative,
)
from torch import Tensor

from densecrf_cuda import reference

CASE = CASES["d5"]
FORMS = ["potts", "diagonal", "matrix"]
OUTPUTS = ["probabilities", "log_probabilities", "labels"]


def infer_reference(
    unary: Tensor, terms: list[Term], dtype: torch.dtype, case: Case = CASE, iterations: int = 5, **settings: Any
) -> Tensor:
    options = {"damping": 0.0, "tol": -1.0, "output": "probabilities", "precision": "fp32"} | settings
    lattices = [tensor for term in terms for tensor in on_cpu(term.lattice, dtype)]
    norms, compats = ([getattr(term, name).cpu().to(dtype) for term in terms] for name in ("norm", "compat"))
    names = [term.normalization for term in terms]
    unary = unary.cpu().to(dtype)
    return reference.mean_field(unary, lattices, norms, names, compats, case.grid, iterations, *options.values())[0]


def assert_equals_reference(unary: Tensor, terms: list[Term], **settings: Any) -> None:
    got = infer(unary, terms, **settings)
    exact = infer_reference(unary, terms, DOUBLE, **settings)
    assert got.dtype == unary.dtype and got.is_contiguous()
    if unary.dtype == DOUBLE:
        assert relative(got, exact) <= 1e-10
    else:
        assert_as_exact_as_torch(got, infer_reference(unary, terms, torch.float32, **settings), exact)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("normalization", ["none", "before", "after", "symmetric"])
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_reference(form: str, normalization: str, dtype: torch.dtype, device: torch.device) -> None:
    guide = levels(2, 3, CASE.points).to(device)
    terms = [make_term(CASE, guide, compatibility(form, 5), normalization, dtype)]
    unary = noise(2, 5, CASE.points, dtype=dtype).to(device)
    for settings in ({}, {"output": "log_probabilities"}, {"damping": 0.3}, {"iterations": 0}, {"tol": 0.05}):
        assert_equals_reference(unary, terms, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 8, 9, 16, 17, 21, 33, 150, 1000])
def test_any_number_of_labels(classes: int, form: str, dtype: torch.dtype, device: torch.device) -> None:
    case = Case((6, 19), True, [3.0, 3.0, 20.0])
    terms = [make_term(case, levels(1, 1, case.points).to(device), compatibility(form, classes), dtype=dtype)]
    unary = noise(1, classes, case.points, dtype=dtype).to(device)
    assert_equals_reference(unary, terms, case=case, iterations=3)
    q = infer(unary, terms, case, 3)
    # Every term of the sum is rounded once.
    torch.testing.assert_close(
        q.sum(1), torch.ones_like(q[:, 0]), rtol=0, atol=classes**0.5 * torch.finfo(dtype).eps * 4
    )
    assert torch.equal(infer(unary, terms, case, 3, output="labels"), q.argmax(1))


@pytest.mark.parametrize("output", OUTPUTS)
def test_terms_add_up(output: str, device: torch.device) -> None:
    """All forms and normalizations in one problem, a shared lattice among those with one for each image."""
    guide = levels(2, 3, CASE.points).to(device)
    plane = Case(CASE.grid, True, [3.0, 3.0])
    terms = [
        make_term(CASE, guide, compatibility("matrix", 3, 2.0), "before", DOUBLE),
        make_term(plane, guide[:1, :0], compatibility("potts", 3, 2.0), "symmetric", DOUBLE),
        make_term(plane, guide[:, :0], compatibility("diagonal", 3, 2.0), "none", DOUBLE),
    ]
    unary = noise(2, 3, CASE.points).to(device)
    got = infer(unary, terms, output=output)
    expected = infer_reference(unary, terms, DOUBLE, output=output)
    if output == "labels":
        assert got.dtype == torch.int64 and torch.equal(got.cpu(), expected)
    else:
        assert relative(got, expected) <= 1e-10
    assert relative(infer(unary, terms[::-1]), infer_reference(unary, terms, DOUBLE)) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE])
def test_without_terms_it_is_a_softmax(dtype: torch.dtype, device: torch.device) -> None:
    unary = (3 * noise(2, 7, CASE.points)).to(device, dtype)
    expected = (-unary.double()).softmax(1)
    for iterations in (0, 4):
        for output, truth in (("probabilities", expected), ("log_probabilities", expected.log())):
            got = infer(unary, [], iterations=iterations, output=output)
            assert got.dtype == dtype
            # computed in float32 at least, rounded once; the largest logarithm is about 10
            unit = max(torch.finfo(dtype).eps, 1e-6) if dtype != DOUBLE else 1e-14
            torch.testing.assert_close(got.double(), truth, rtol=unit, atol=unit)
        assert torch.equal(infer(unary, [], iterations=iterations, output="labels"), (-unary).argmax(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float(dtype: torch.dtype, device: torch.device) -> None:
    unary = noise(2, 5, CASE.points).to(device, dtype)
    terms = [make_term(CASE, levels(2, 3, CASE.points).to(device), compatibility("potts", 5))]
    assert torch.equal(infer(unary, terms), infer(unary.float(), terms).to(dtype))


@pytest.mark.parametrize("shape", [(0, 3, 20), (2, 3, 0), (0, 3, 0)])
def test_empty(shape: tuple[int, ...], device: torch.device) -> None:
    case = Case((4, shape[2] // 4), True, [2.0, 2.0])
    terms = [make_term(case, torch.zeros(shape[0], 0, shape[2], device=device), compatibility("potts", 3))]
    unary = torch.zeros(shape, device=device)
    assert infer(unary, terms, case).shape == shape
    assert infer(unary, terms, case, output="labels").shape == (shape[0], shape[2])
    assert infer_with_status(unary, terms, case)[1].tolist() == [0] * shape[0]


@pytest.mark.parametrize("damping", [0.0, 0.4])
def test_every_image_stops_by_itself(damping: float, device: torch.device) -> None:
    guide = levels(2, 3, CASE.points).to(device)
    terms = [make_term(CASE, guide, compatibility("potts", 3, 2.0))]
    unary = noise(2, 3, CASE.points, dtype=torch.float32).to(device)
    unary[0] *= 10  # an image without doubts
    tol, stops = 0.003, []
    together = infer(unary, terms, iterations=40, tol=tol, damping=damping)
    for b in range(2):
        own = [make_term(CASE, guide[b : b + 1], compatibility("potts", 3, 2.0))]
        trace = [infer(unary[b : b + 1], own, iterations=n, damping=damping) for n in range(41)]
        stops.append(next(n for n in range(1, 41) if (trace[n] - trace[n - 1]).abs().max() <= tol))
        assert torch.equal(together[b], trace[stops[-1]][0])
        alone = infer(unary[b : b + 1], own, iterations=40, tol=tol, damping=damping)
        assert torch.equal(alone[0], together[b])
    assert stops[0] < stops[1] < 40, stops
    labels = infer(unary, terms, iterations=40, tol=tol, damping=damping, output="labels")
    assert torch.equal(labels, together.argmax(1))
    # A tolerance that nothing exceeds stops after the first update, one of zero only where nothing moves any more.
    assert torch.equal(infer(unary, terms, tol=1.0), infer(unary, terms, iterations=1))
    assert torch.equal(infer(unary, terms, tol=0.0), infer(unary, terms))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [2, 21])
def test_images_of_a_batch_do_not_meet(classes: int, form: str, device: torch.device) -> None:
    guide, unary = levels(3, 3, CASE.points).to(device), noise(3, classes, CASE.points).float().to(device)
    compat = compatibility(form, classes)
    for shared in (False, True):
        together = infer(unary, [make_term(CASE, guide[:1] if shared else guide, compat)])
        for b in range(3):
            own = [make_term(CASE, guide[:1] if shared else guide[b : b + 1], compat)]
            assert torch.equal(infer(unary[b : b + 1], own)[0], together[b])


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("form", FORMS)
def test_number_of_threads_does_not_matter(form: str, batch: int, restore_threads: None) -> None:
    case = Case((61, 90), True, [5.0, 5.0, 13.0, 13.0, 13.0])
    terms = [make_term(case, levels(batch, 3, case.points), compatibility(form, 5))]
    unary = noise(batch, 5, case.points, dtype=torch.float32)
    first, *others = for_threads(lambda: [infer(unary, terms, case, output=output) for output in OUTPUTS])
    for other in others:
        assert all(map(torch.equal, first, other))


def test_layout_of_the_unary_does_not_matter(device: torch.device) -> None:
    terms = [make_term(CASE, levels(2, 3, CASE.points).to(device), compatibility("matrix", 5))]
    for dtype in (torch.float32, torch.float16):
        unary = noise(2, 5, CASE.points).to(device, dtype)
        before, expected = unary.clone(), infer(unary, terms)
        for name, strided in layouts(unary).items():
            assert torch.equal(infer(strided, terms), expected), name
        assert torch.equal(unary, before)
        flat = unary[:, :, :1].expand(-1, -1, CASE.points)
        assert torch.equal(infer(flat, terms), infer(flat.contiguous(), terms))
    asymmetric = terms[0]._replace(compat=terms[0].compat.T)
    unary = unary.float()
    transposed = infer(unary, [asymmetric])
    assert torch.equal(transposed, infer(unary, [asymmetric._replace(compat=asymmetric.compat.contiguous())]))
    assert not torch.equal(transposed, infer(unary, terms))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("damping", [0.0, 0.5])
@pytest.mark.parametrize("form", FORMS)
def test_forbidden_labels(form: str, damping: float, dtype: torch.dtype, device: torch.device) -> None:
    unary = noise(2, 3, CASE.points, dtype=dtype)
    forbidden = torch.rand(unary.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    forbidden[:, 2] &= ~forbidden.all(1)
    unary = unary.masked_fill(forbidden, math.inf).to(device)
    forbidden = forbidden.to(device)
    terms = [make_term(CASE, levels(2, 3, CASE.points).to(device), compatibility(form, 3), dtype=dtype)]
    for settings in ({"damping": damping}, {"damping": damping, "tol": 1e-3}, {"iterations": 0}):
        q = infer(unary, terms, **settings)
        assert (q[forbidden] == 0).all() and (q[~forbidden] > 0).all()
        torch.testing.assert_close(q.sum(1), torch.ones_like(q[:, 0]))
        log_q = infer(unary, terms, output="log_probabilities", **settings)
        assert torch.equal(log_q.isneginf(), forbidden)
        labels = infer(unary, terms, output="labels", **settings)
        assert not forbidden.gather(1, labels[:, None]).any()
    expected = infer_reference(unary, terms, dtype, damping=damping)
    torch.testing.assert_close(infer(unary, terms, damping=damping).cpu(), expected, rtol=1e-4, atol=1e-5)


def test_log_probabilities_reach_where_probabilities_end(device: torch.device) -> None:
    unary = torch.tensor([0.0, 50.0, 500.0, 5000.0], device=device)[None, :, None].expand(1, 4, 20)
    terms = [make_term(SMALL, levels(1, 1, 20).to(device), compatibility("potts", 4))]
    log_q = infer(unary, terms, SMALL, output="log_probabilities")
    assert log_q.isfinite().all() and (log_q[:, 3] < -4000).all()
    assert (infer(unary, terms, SMALL)[:, 2:] == 0).all()
    # Energies as large as float32 holds: the smallest wins, nothing overflows.
    huge = torch.tensor([-3e38, 3e38, 0.0, 3e38], device=device)[None, :, None].expand(1, 4, 20)
    assert torch.equal(infer(huge, terms, SMALL)[0, :, 0], torch.tensor([1.0, 0, 0, 0], device=device))


@pytest.mark.parametrize("labels", [1, 4, 9])
def test_ties_go_to_the_first_label(labels: int, device: torch.device) -> None:
    terms = [make_term(SMALL, levels(1, 1, 20).to(device), compatibility("potts", labels))]
    assert (infer(torch.zeros(1, labels, 20, device=device), terms, SMALL, output="labels") == 0).all()


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_precision_and_status(precision: str, output: str, rung: str, device: torch.device) -> None:
    """Rows of vertices in half precision carry 11 bits through splat and blur; the CPU stores none."""
    unary = noise(2, 5, CASE.points).float().to(device)
    terms = [make_term(CASE, levels(2, 3, CASE.points).to(device), compatibility("diagonal", 5))]
    got, status = infer_with_status(unary, terms, output=output, precision=precision)
    assert status.dtype == torch.int64 and status.device == unary.device and status.tolist() == [0, 0]
    expected = infer(unary, terms, output=output)
    if rung == "cpu" or precision == "fp32":
        assert torch.equal(got, expected)
    elif output != "labels":
        torch.testing.assert_close(got, expected, rtol=0, atol=0.02)
    else:
        assert (got != expected).float().mean() < 0.01
