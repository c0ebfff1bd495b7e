"""The same bits: from run to run, for any split of a batch, on any stream, in any process, on any card of a kind."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from gpu_cases import Case
from torch import Tensor

from densecrf_cuda import no_sync

CASE = Case(161, 241, 21, 50, 3)
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "fp16"])


def on_gpu(case: Case, seed: int = 0, device: str = "cuda") -> tuple[Tensor, Tensor]:
    unary, image = case.inputs(seed)
    return unary.to(device), image.to(device)


def gradients(seed: int) -> list[Tensor]:
    crf = Case(96, 128, 5, 20, 13).crf(iterations=5, trainable=True).cuda()
    unary, image = on_gpu(Case(96, 128, 5), seed)
    crf(unary.requires_grad_(), image).square().sum().backward()
    return [unary.grad, *(parameter.grad for parameter in crf.parameters())]


@PRECISIONS
def test_from_run_to_run(precision: str) -> None:
    crf, inputs = CASE.crf(precision=precision).cuda(), on_gpu(CASE)
    first = crf(*inputs)
    for _ in range(20):
        assert torch.equal(crf(*inputs), first)


def test_gradients_from_run_to_run() -> None:
    first = gradients(0)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(gradients(0), first))


@PRECISIONS
def test_for_any_split_of_a_batch(precision: str) -> None:
    crf = CASE.crf(precision=precision).cuda()
    unary, image = on_gpu(CASE._replace(batch=16))
    together = crf(unary, image)
    for size in (1, 3, 8):
        assert torch.equal(torch.cat([crf(*part) for part in zip(unary.split(size), image.split(size))]), together)


@PRECISIONS
def test_on_two_streams_at_once(precision: str) -> None:
    crfs = [CASE.crf(precision=precision).cuda() for _ in range(2)]
    inputs = [on_gpu(CASE, seed) for seed in (1, 2)]
    expected = [crf(*pair) for crf, pair in zip(crfs, inputs)]
    streams = [torch.cuda.Stream() for _ in crfs]
    torch.cuda.synchronize()
    results: list[list[Tensor]] = [[], []]
    for _ in range(10):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(crfs[i](*inputs[i]))
    torch.cuda.synchronize()
    for i, runs in enumerate(results):
        assert all(torch.equal(q, expected[i]) for q in runs)


def test_one_crf_on_two_streams() -> None:
    # A lattice of the cache that one stream made is read by another.
    crf, inputs = CASE.crf().cuda(), on_gpu(CASE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = crf(*inputs)
    here = crf(*inputs)
    torch.cuda.synchronize()
    assert torch.equal(other, here)


CHILD = """
import sys
sys.path.insert(0, {folder!r})
import torch
from gpu_cases import Case
case = Case{case!r}
crf, inputs = case.crf().cuda(), [tensor.cuda() for tensor in case.inputs(int(sys.argv[1]))]
for _ in range(20):
    q = crf(*inputs)
torch.save(q.cpu(), sys.argv[2])
"""


def test_in_two_processes_at_once(tmp_path: Path) -> None:
    code = CHILD.format(folder=str(Path(__file__).parent), case=tuple(CASE))

    def infer_elsewhere(seed: int) -> Tensor:
        path = tmp_path / f"{seed}.pt"
        command = [sys.executable, "-c", code, str(seed), str(path)]
        child = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert child.returncode == 0, child.stderr
        return torch.load(path)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(infer_elsewhere, (1, 2)))
    crf = CASE.crf().cuda()
    for seed, q in zip((1, 2), results):
        assert torch.equal(crf(*on_gpu(CASE, seed)).cpu(), q)


def test_on_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    here = CASE.crf().cuda()(*on_gpu(CASE))
    crf, inputs = CASE.crf().to("cuda:1"), on_gpu(CASE, device="cuda:1")
    there = crf(*inputs)
    crf.check()
    assert there.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert torch.equal(there.cpu(), here.cpu())
    else:
        torch.testing.assert_close(there.cpu(), here.cpu(), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="device"):
        crf(inputs[0], inputs[1].to("cuda:0"))


# --- CUDA graphs ---


@PRECISIONS
@pytest.mark.parametrize("case", [CASE, CASE._replace(batch=3)], ids=["image", "batch"])
def test_graph_with_new_inputs(case: Case, precision: str) -> None:
    crf = case.crf(precision=precision).cuda()
    graph = crf.compile_graph(*on_gpu(case))
    # pictures of more and of fewer vertices than the one that was captured
    pairs = [on_gpu(case, seed) for seed in range(1, 4)]
    pairs.append((pairs[0][0], torch.zeros_like(pairs[0][1])))
    pairs.append((pairs[0][0], torch.randint_like(pairs[0][1], 256)))
    for unary, image in pairs * 2:
        assert torch.equal(graph(unary, image).clone(), crf(unary, image))


def test_graph_of_a_training_step() -> None:
    case = Case(96, 128, 5, 20, 13, batch=2)
    crf = case.crf(iterations=5, trainable=True).cuda()
    unary, image = on_gpu(case)
    unary.requires_grad_()
    leaves = [unary, *crf.parameters()]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(crf(unary, image).square().sum(), leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), no_sync():
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with no_sync(), torch.cuda.graph(graph):
        captured = step()
    for seed in (3, 4):
        new_unary, new_image = on_gpu(case, seed)
        with torch.no_grad():
            unary.copy_(new_unary)
        image.copy_(new_image)
        graph.replay()
        replayed = [gradient.clone() for gradient in captured]
        assert all(torch.equal(a, b) for a, b in zip(replayed, step()))
