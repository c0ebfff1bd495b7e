"""`torch.compile` without graph breaks, of inference and of training, equals eager mode."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import noise
from oracles import pattern_image
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian, permutohedral_filter

# Inductor writes C++ for the CPU; without a compiler the rest of torch.compile still runs.
CODE_GENERATOR = "inductor" if shutil.which("g++") else "aot_eager"

# One iteration: they are many small operators, all of which the compiler traces.
OTHERS: list[dict[str, Any]] = [
    {"inference": "convergent", "normalization": "after", "iterations": 1},
    {"inference": "frank_wolfe", "regularization": "l2", "iterations": 1},
]


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    """Each test compiles anew."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def no_cached_code() -> Iterator[None]:
    """Nothing comes from the caches on disk.

    They do not know of the operators' fake kernels, so code compiled for the lattices of the CPU could come back for
    those of the emulator, which have a splat plan.
    """
    with torch._inductor.config.patch(force_disable_caches=True):
        yield


def example(device: torch.device, height: int = 12, width: int = 15) -> tuple[Tensor, Tensor]:
    unary = noise(2, 3, height, width, dtype=torch.float32).to(device)
    image = torch.from_numpy(pattern_image(height, width)).permute(2, 0, 1).expand(2, -1, -1, -1)
    return unary, image.float().to(device)


def make(**settings: Any) -> DenseCRF:
    """Two kernels, two forms of compatibility."""
    return DenseCRF(3, [Gaussian(3, 3), Bilateral(8, 20, [-5.0, -4.0, -3.0])], **{"iterations": 3} | settings)


@pytest.mark.slow
@pytest.mark.usefixtures("no_cached_code")
@pytest.mark.filterwarnings("ignore:::torch")  # torch's code generator warns of torch
def test_inference_with_generated_code(device: torch.device) -> None:
    crf = make().to(device)
    compiled = torch.compile(crf, fullgraph=True, backend=CODE_GENERATOR)
    unary, image = example(device)
    assert torch.equal(compiled(unary, image), crf(unary, image))  # one operator does all that rounds


@pytest.mark.slow
@pytest.mark.usefixtures("no_cached_code")
@pytest.mark.filterwarnings("ignore:::torch")  # torch's code generator warns of torch
def test_training_step_with_generated_code(device: torch.device) -> None:
    crf = make(trainable=True, iterations=2).to(device)
    inputs = [tensor.requires_grad_() for tensor in example(device)]

    def loss(unary: Tensor, image: Tensor) -> Tensor:
        return crf(unary, image).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=CODE_GENERATOR)
    wanted = [*inputs, *crf.parameters()]
    got = torch.autograd.grad(compiled(*inputs), wanted)
    for gradient, expected in zip(got, torch.autograd.grad(loss(*inputs), wanted)):
        # Fused code rounds elsewhere; sums over the 360 pixels, and cancellation in them, set the scale.
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"output": "labels"},
        {"output": "log_probabilities", "damping": 0.3},
        {"tol": 0.05, "normalization": "homogeneous"},
        # without the others, of which a training step is compiled: a second batch makes their many sizes symbols
    ],
)
def test_inference(settings: dict[str, Any], device: torch.device) -> None:
    crf = make(**settings).to(device)
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    unary, image = example(device)
    with torch.no_grad():
        assert torch.equal(compiled(unary, image), crf(unary, image))
        assert torch.equal(compiled(unary[0], image[0].byte()), crf(unary[0], image[0].byte()))


@pytest.mark.parametrize(
    "settings", [{}, {"checkpoint": True}, {"tol": 0.05, "damping": 0.2}, {"filter": "dense"}, *OTHERS]
)
def test_training_step(settings: dict[str, Any], device: torch.device) -> None:
    crf = make(trainable=True, **settings).to(device)
    inputs = [tensor.requires_grad_() for tensor in example(device)]
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    wanted = [*inputs, *crf.parameters()]
    got = torch.autograd.grad(compiled(*inputs).square().sum(), wanted)
    for gradient, expected in zip(got, torch.autograd.grad(crf(*inputs).square().sum(), wanted)):
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * scale)


def test_sizes_may_change(device: torch.device) -> None:
    crf = make(trainable=True).to(device)
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager", dynamic=True)
    for sizes in ((12, 15), (10, 17), (33, 20)):
        unary, image = example(device, *sizes)
        with torch.no_grad():
            assert torch.equal(compiled(unary, image), crf(unary, image))
        leaves = [tensor.clone().requires_grad_() for tensor in (unary, unary)]
        for leaf, run in zip(leaves, (compiled, crf)):
            run(leaf, image).square().sum().backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-5, atol=1e-6)
    assert len(compiled.kernels) == 2


def test_filter_and_features(device: torch.device) -> None:
    unary, image = example(device)

    def run(unary: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        smooth = permutohedral_filter(image, image, 30, normalization="homogeneous")
        return smooth, crf(unary, smooth)

    crf = DenseCRF(3, [Features(torch.nn.Conv2d(3, 2, 1), 3, bandwidth=10)], iterations=2).to(device)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert all(map(torch.equal, compiled(unary, image), run(unary, image)))
