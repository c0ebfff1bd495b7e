"""What the host sees: it never waits, memory comes from PyTorch's allocator alone, and faults are told later."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from gpu_cases import Case
from torch import Tensor

from densecrf_cuda import Lattice, no_sync

CASE = Case(161, 241, 21, 50, 3)
Guard = Callable[[], AbstractContextManager[None]]


def on_gpu(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    unary, image = case.inputs(seed)
    return unary.cuda(), image.cuda()


# --- waiting ---


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("case", [CASE, Case(1024, 2048, 3)], ids=["small", "large"])
def test_inference_does_not_wait(case: Case, precision: str, never_waiting: Guard) -> None:
    crf, inputs = case.crf(precision=precision).cuda(), on_gpu(case)
    expected = crf(*inputs)
    with never_waiting(), no_sync():
        results = [crf(*inputs) for _ in range(3)]
    assert all(torch.equal(q, expected) for q in results)


def test_inference_without_leave_to_wait_once(never_waiting: Guard) -> None:
    # Bandwidths that no other test uses: nothing is in the cache.
    crf, inputs = Case(123, 145, 5, 31, 7).crf().cuda(), on_gpu(Case(123, 145, 5))
    with never_waiting(), no_sync():
        first = crf(*inputs)
    assert torch.equal(first, crf(*inputs))


@pytest.mark.parametrize("trainable", [(), ("weights",), True], ids=["unary", "weights", "all"])
def test_training_does_not_wait(trainable: bool | tuple[str, ...], never_waiting: Guard) -> None:
    case = Case(96, 128, 5, 20, 13, batch=2)
    crf = case.crf(iterations=5, trainable=trainable).cuda()
    unary, image = on_gpu(case)
    unary.requires_grad_()
    crf(unary, image).square().sum().backward()
    expected, unary.grad = unary.grad, None
    crf.zero_grad()
    with never_waiting(), no_sync():
        crf(unary, image).square().sum().backward()
    assert torch.equal(unary.grad, expected)


def test_lattice_does_not_wait(never_waiting: Guard) -> None:
    features, values = torch.rand(3, 5000, device="cuda"), torch.rand(4, 5000, device="cuda")
    with never_waiting(), no_sync():
        filtered = Lattice(features, 0.1).filter(values)
    assert filtered.isfinite().all()


# --- memory ---


def test_memory_comes_from_the_allocator_alone() -> None:
    crf, inputs = CASE.crf().cuda(), on_gpu(CASE)

    def step() -> None:
        crf(*inputs)
        crf(inputs[0].clone().requires_grad_(), inputs[1]).sum().backward()

    def free_and_reserved() -> tuple[int, int]:
        torch.cuda.synchronize()
        gc.collect()
        return torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()

    step()
    torch.cuda.empty_cache()
    free, reserved = free_and_reserved()
    step()
    free_then, reserved_then = free_and_reserved()
    # Other programs on the card may come and go, but not in pieces as small as what is tolerated.
    assert abs((free - free_then) - (reserved_then - reserved)) <= 4 << 20


def test_memory_does_not_grow() -> None:
    crf, inputs = CASE.crf().cuda(), on_gpu(CASE)
    for _ in range(3):
        crf(*inputs)
    crf.check()
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        crf(*inputs)
    crf.check()
    assert torch.cuda.memory_allocated() == before


def test_out_of_memory_is_torchs_own_error() -> None:
    crf, inputs = CASE.crf().cuda(), on_gpu(CASE)
    expected = crf(*inputs)
    large = torch.rand(21, 1024, 2048, device="cuda"), torch.zeros(3, 1024, 2048, device="cuda")
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, held + 1e-4))
    try:
        with pytest.raises(torch.OutOfMemoryError):
            crf(*large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
    assert torch.equal(crf(*inputs), expected)


# --- faults ---


def bad_inputs() -> dict[str, tuple[Tensor, Tensor, str]]:
    unary, image = on_gpu(CASE)
    image = image.float()
    spoilt, forbidden, broken, huge = unary.clone(), unary.clone(), image.clone(), image.clone()
    spoilt[3, 7, 11] = math.nan
    forbidden[:, 7, 11] = math.inf
    broken[1, 7, 11] = math.nan
    huge[1, 7, 11] = 1e9
    return {
        "image": (unary, broken, "features must be finite"),
        "range": (unary, huge, "key coordinates must stay below"),
        "unary": (spoilt, image, "unary must not be NaN"),
        "forbidden": (forbidden, image, "at least one label"),
    }


@pytest.mark.parametrize("kind", ["image", "range", "unary", "forbidden"])
def test_fault_poisons_the_result_and_is_told_by_the_next_call(kind: str) -> None:
    crf, good = CASE.crf().cuda(), on_gpu(CASE)
    expected = crf(*good)
    unary, image, message = bad_inputs()[kind]
    assert crf(unary, image).isnan().all()
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=message):
        crf(*good)
    assert torch.equal(crf(*good), expected)
    crf(unary, image)
    with pytest.raises(ValueError, match=message):
        crf.check()
    crf.check()
    assert torch.equal(crf(*good), expected)


@pytest.mark.parametrize("kind", ["image", "unary"])
def test_fault_in_training(kind: str) -> None:
    crf = CASE.crf(iterations=3, trainable=True).cuda()
    unary, image, message = bad_inputs()[kind]
    q = crf(unary.requires_grad_(), image)
    q.sum().backward()
    assert q.isnan().any()
    with pytest.raises(ValueError, match=message):
        crf.check()


def test_fault_in_a_graph() -> None:
    crf, good = CASE.crf().cuda(), on_gpu(CASE)
    good = (good[0], good[1].float())
    graph, expected = crf.compile_graph(*good), crf(*good)
    unary, image, message = bad_inputs()["image"]
    assert graph(unary, image).isnan().all()
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=message):
        graph(*good)
    assert torch.equal(graph(*good), expected)


def test_fault_of_a_lattice() -> None:
    features = torch.rand(3, 500, device="cuda")
    features[1, 77] = math.inf
    lattice = Lattice(features, 0.1)
    assert lattice.filter(torch.ones(2, 500, device="cuda")).isnan().all()
    with pytest.raises(ValueError, match="features must be finite"):
        lattice.check()
    with pytest.raises(ValueError, match="features must be finite"):
        _ = lattice.num_vertices
