"""The CUDA kernels give the same bits whatever the order of threads and blocks, and whatever memory held before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import build_emulator
import emulated
import pytest
import torch
from helpers import CASES, Case, assert_same_lattice, build, compatibility, infer, levels, make_term, noise, ops
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, _library

pytestmark = pytest.mark.skipif(build_emulator.compiler_is_missing(), reason="the emulator is compiled with g++")

SEEDS = range(1, 7)


@contextmanager
def memory_full_of_nan() -> Iterator[None]:
    """New tensors hold NaN, or the largest integer, until something is written to them."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def for_seeds(run: Callable[[], Any]) -> list[Any]:
    """The results of several schedules; the first has memory as it comes."""
    with emulated.enabled(0):
        results = [run()]
    for seed in SEEDS:
        with emulated.enabled(seed), memory_full_of_nan():
            results.append(run())
    return results


def assert_same_bits(results: list[list[Tensor]]) -> None:
    for result in results[1:]:
        for got, expected in zip(result, results[0], strict=True):
            assert got.dtype == expected.dtype and got.shape == expected.shape
            assert torch.equal(got, expected)  # which a NaN would fail too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_lattice_build(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    guide = levels(3, case.channels, case.points)
    first, *others = for_seeds(lambda: build(case, guide, dtype=dtype))
    for other in others:
        assert_same_lattice(other, first, case.grid)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 21, 70])
def test_lattice_filter(channels: int, reverse: bool) -> None:
    case = CASES["d5"]
    guide, values = levels(2, 3, case.points), noise(2, case.points, channels, dtype=torch.float32)
    scales = [noise(2, case.points, seed=seed, dtype=torch.float32).exp() for seed in (2, 3)]
    features, grad = noise(2, 5, case.points, dtype=torch.float32), noise(*values.shape, seed=4, dtype=torch.float32)

    def run() -> list[Tensor]:
        lattice = build(case, guide)
        return [
            ops.lattice_filter(values, None, *scales, lattice, case.grid, reverse),
            ops._lattice_feature_grad(values, grad, features, lattice, case.grid, reverse),
        ]

    assert_same_bits(for_seeds(run))


@pytest.mark.parametrize("settings", [{}, {"damping": 0.3}, {"tol": 1e-2}, {"output": "labels"}, {"precision": "fp16"}])
@pytest.mark.parametrize("form", ["potts", "matrix"])
@pytest.mark.parametrize("classes", [2, 21, 70])
def test_mean_field(classes: int, form: str, settings: dict[str, Any]) -> None:
    case = Case((17, 33), True, [5.0, 7.0, 13.0, 11.0, 17.0])
    smooth = Case(case.grid, True, [3.0, 3.0])
    guide, unary = levels(2, 3, case.points), noise(2, classes, case.points, dtype=torch.float32)
    compat = compatibility(form, classes)

    def run() -> list[Tensor]:
        terms = [make_term(case, guide, compat), make_term(smooth, guide[:, :0], compat)]
        return [infer(unary, terms, case, iterations=3, **settings)]

    assert_same_bits(for_seeds(run))


@pytest.mark.parametrize("classes", [3, 40])
def test_training_step(classes: int) -> None:
    unary, image = noise(2, classes, 17, 20, dtype=torch.float32), 40 * noise(2, 3, 17, 20, dtype=torch.float32)

    def run() -> list[Tensor]:
        crf = DenseCRF(classes, [Gaussian(3, 3), Bilateral(8, 20, 5)], iterations=3, trainable=True)
        leaves = [unary.clone().requires_grad_(), image.clone().requires_grad_(), *crf.parameters()]
        q = crf(*leaves[:2])
        return [q.detach(), *torch.autograd.grad(q.square().sum(), leaves)]

    assert_same_bits(for_seeds(run))


def test_kernels_of_the_cpu_come_back() -> None:
    case, library = CASES["d5"], emulated.load()
    guide, values = levels(1, 3, case.points), noise(1, case.points, 4)

    def run() -> Tensor:
        return ops.lattice_filter(values, None, None, None, build(case, guide, dtype=values.dtype), case.grid, False)

    before, count = run(), library.densecrf_emulator_switches()
    with emulated.enabled():
        inside = run()
        assert _library.has_splat_plan(torch.device("cpu"))
        count_inside = library.densecrf_emulator_switches()
    after = run()
    assert count < count_inside == library.densecrf_emulator_switches()
    assert not _library.has_splat_plan(torch.device("cpu"))
    assert torch.equal(before, after)
    torch.testing.assert_close(inside, before, rtol=1e-10, atol=1e-12)
