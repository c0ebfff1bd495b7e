"""`DenseCRF` as a layer: gradients, memory, training, and what every module must survive."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DOUBLE, noise
from oracles import pattern_image
from torch import Tensor, nn

from densecrf_cuda import Bilateral, DenseCRF, Features, Gaussian

NORMALIZATIONS = ["none", "before", "after", "symmetric", "homogeneous"]
COMPATS: dict[str, Any] = {
    "potts": 2.0,
    "diagonal": [-2.0, -1.0, -3.0],
    "matrix": [[-2.0, 0.3, 0.1], [0.5, -1.0, 0.0], [0.2, 0.0, -3.0]],
}
GRID = (3, 4)


def example(device: torch.device, *batch: int, grid: tuple[int, ...] = GRID) -> tuple[Tensor, Tensor]:
    """A unary and an image in float64 whose pixels are nearly surely farther from faces than gradcheck steps.

    (Pixels of column 0 lie on a face; they stay on it, since nothing here moves a coordinate off zero.)
    """
    unary = noise(*batch, 3, *grid).to(device)
    return unary, 128 + 50 * noise(*batch, 3, *grid, seed=2).to(device)


def gradcheck_module(crf: nn.Module, unary: Tensor, image: Tensor | None) -> None:
    """Gradients of every input and parameter against finite differences."""
    crf = crf.double()
    names = [name for name, _ in crf.named_parameters()]
    inputs = [unary.clone().requires_grad_()]
    if image is not None:
        inputs.append(image.clone().requires_grad_())

    def run(*tensors: Tensor) -> Tensor:
        parameters = dict(zip(names, tensors[len(inputs) :]))
        return torch.func.functional_call(crf, parameters, tensors[: len(inputs)])

    leaves = [parameter.detach().clone().requires_grad_() for _, parameter in crf.named_parameters()]
    gradients = torch.autograd.grad(run(*inputs, *leaves).square().sum(), [*inputs, *leaves])
    assert all(gradient.abs().max() > 0 for gradient in gradients)  # nothing is left out by mistake
    assert torch.autograd.gradcheck(run, (*inputs, *leaves))


@pytest.mark.parametrize("filter", ["lattice", "dense"])
@pytest.mark.parametrize("form", COMPATS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients(normalization: str, form: str, filter: str, device: torch.device) -> None:
    compat = torch.tensor(COMPATS[form], dtype=DOUBLE) / (10 if normalization == "none" else 1)
    kernels = [Gaussian((1.7, 1.3), compat, weight=0.9), Bilateral(2.1, (40.0, 45.0, 50.0), compat, weight=1.2)]
    crf = DenseCRF(3, kernels, iterations=2, normalization=normalization, trainable=True, filter=filter)
    gradcheck_module(crf.to(device), *example(device))


@pytest.mark.parametrize(
    "settings", [{"damping": 0.3}, {"tol": 1e-12}, {"output": "log_probabilities"}, {"checkpoint": True}]
)
def test_gradients_with_settings(settings: dict[str, Any], device: torch.device) -> None:
    crf = DenseCRF(3, [Bilateral(2.1, 45.0, 2.0)], iterations=3, trainable=True, **settings)
    gradcheck_module(crf.to(device), *example(device, 2))


def test_gradients_of_images_that_have_stopped(device: torch.device) -> None:
    # One image stops early, the other late: each has the gradient that it has alone, at its own number of iterations.
    unary, image = example(device, 2)
    unary[0] *= 6
    crf = DenseCRF(3, [Bilateral(2.1, 45.0, 1.5)], iterations=12, tol=1e-3).to(device)
    together = unary.clone().requires_grad_()
    crf(together, image).square().sum().backward()
    stops = []
    for b in range(2):
        trace = [crf(unary[b], image[b], iterations=n) for n in range(13)]
        stops.append(next((n for n in range(1, 13) if (trace[n] - trace[n - 1]).abs().max() <= 1e-3), 12))
        alone = unary[b].clone().requires_grad_()
        fixed = DenseCRF(3, [Bilateral(2.1, 45.0, 1.5)], iterations=stops[b]).to(device)
        fixed(alone, image[b]).square().sum().backward()
        torch.testing.assert_close(together.grad[b], alone.grad, rtol=1e-9, atol=1e-12)
    assert stops[0] < stops[1]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients_of_features(normalization: str, device: torch.device) -> None:
    weight = 0.1 if normalization == "none" else 1.0
    torch.manual_seed(0)
    network = nn.Conv2d(3, 2, 3, padding=1, dtype=DOUBLE)
    kernels = [
        Features(network, 2.0, bandwidth=(40, 50), weight=weight),
        Features(nn.Parameter(noise(2, *GRID)), 1.0, weight=weight),
    ]
    crf = DenseCRF(3, kernels, iterations=2, normalization=normalization, trainable="bandwidths")
    assert len(list(crf.parameters())) == 2 + 1 + 2
    gradcheck_module(crf.to(device), *example(device, 2))


@pytest.mark.parametrize("shape", [(3, 9), (2, 3, 9), (2, 3, 2, 2, 3)])
def test_gradients_of_point_sets_and_volumes(shape: tuple[int, ...], device: torch.device) -> None:
    grid = shape[-1:] if len(shape) < 5 else shape[-3:]
    crf = DenseCRF(3, [Features(nn.Parameter(noise(3, *grid, seed=5)), 2.0)], iterations=2, trainable=True).to(device)
    gradcheck_module(crf, noise(*shape).to(device), None)


def test_names_of_what_is_trainable() -> None:
    def names(trainable: Any) -> set[str]:
        crf = DenseCRF(3, [Gaussian(3, 3), Bilateral(8, 20, 5), Features(None)], trainable=trainable)
        return {name.removeprefix("kernels.") for name, _ in crf.named_parameters()}

    weights, compats = {f"{k}.weight" for k in range(3)}, {f"{k}.compat" for k in range(3)}
    bandwidths = {"0.log_sxy", "1.log_sxy", "1.log_srgb", "2.log_bandwidth"}
    assert names(False) == names(()) == set()
    assert names("weights") == weights
    assert names(["compatibility"]) == compats
    assert names(("bandwidths", "weights")) == bandwidths | weights
    assert names(True) == weights | compats | bandwidths
    with pytest.raises(ValueError, match=r"trainable must be True, False or names among .*, got 'weight'"):
        DenseCRF(3, [Gaussian(3)], trainable=["weight"])


@pytest.mark.parametrize("filter", ["lattice", "dense"])
def test_checkpoint_gives_the_same_gradients_for_less_memory(filter: str, device: torch.device) -> None:
    grid, iterations, classes = (24, 30), 8, 21
    unary = noise(classes, *grid, dtype=torch.float32).to(device)
    image = torch.from_numpy(pattern_image(*grid)).permute(2, 0, 1).float().to(device)

    def train(checkpoint: bool) -> tuple[list[Tensor], int]:
        kernels = [Gaussian(3, 3), Bilateral(8, 20, 5)]
        crf = DenseCRF(classes, kernels, iterations=iterations, trainable=True, checkpoint=checkpoint, filter=filter)
        leaves = [unary.clone().requires_grad_(), image.clone().requires_grad_()]
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            q = crf.to(device)(*leaves)
        q.square().sum().backward()
        return [leaf.grad for leaf in [*leaves, *crf.parameters()]], sum(saved.values())

    (whole, much), (again, little) = train(False), train(True)
    assert all(map(torch.equal, whole, again))
    row = 4 * classes * grid[0] * grid[1]
    # Each iteration keeps at least Q and the filtered Q of both kernels; recomputed it keeps Q alone.
    assert much - little > iterations * row
    assert little < much


def fit(crf: DenseCRF, unary: Tensor, image: Tensor, target: Tensor, steps: int = 8) -> list[float]:
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.nll_loss(crf(unary, image, output="log_probabilities"), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_lowers_the_loss_and_moves_everything(device: torch.device) -> None:
    grid = (16, 20)
    image = torch.from_numpy(pattern_image(*grid)).permute(2, 0, 1)[None].to(device)
    target = (image[:, 0] > 128).long()
    truth = nn.functional.one_hot(target, 2).permute(0, 3, 1, 2)
    unary = noise(1, 2, *grid, dtype=torch.float32).to(device) - truth  # the truth under noise
    crf = DenseCRF(2, [Gaussian(1, 1), Bilateral(5, 60, [-1.0, -1.0])], iterations=3, trainable=True).to(device)
    before = copy.deepcopy(crf)
    losses = fit(crf, unary, image, target)
    assert losses[-1] < 0.9 * losses[0]
    for (name, new), old in zip(crf.named_parameters(), before.parameters()):
        assert not torch.equal(new, old), name
    assert fit(before, unary, image, target) == losses  # a copy is independent, and training is repeatable


# --- what a module must survive ---


def trained(device: torch.device, **settings: Any) -> DenseCRF:
    """A CRF whose parameters are no longer those that it was made with."""
    points = Features(noise(2, 16, 20, dtype=torch.float32), 1.0)
    crf = DenseCRF(2, [Gaussian(2, 1), Bilateral(5, 60, [-1.0, -2.0]), points], trainable=True, **settings).to(device)
    with torch.no_grad():
        for index, parameter in enumerate(crf.parameters()):
            parameter += 0.05 * (index + 1)
    return crf


def saved_and_loaded(crf: DenseCRF) -> DenseCRF:
    buffer = io.BytesIO()
    torch.save(crf.state_dict(), buffer)
    buffer.seek(0)
    kernels = [Gaussian(1, 0), Bilateral(1, 1, [0.0, 0.0]), Features(torch.zeros(2, 16, 20))]
    fresh = DenseCRF(2, kernels, trainable=True)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    return fresh


COPIES: dict[str, Callable[[DenseCRF], DenseCRF]] = {
    "state_dict": saved_and_loaded,
    "deepcopy": copy.deepcopy,
    "pickle": lambda crf: pickle.loads(pickle.dumps(crf)),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_give_the_same_results(way: str, device: torch.device) -> None:
    unary = noise(2, 2, 16, 20, dtype=torch.float32).to(device)
    image = torch.from_numpy(pattern_image(16, 20)).permute(2, 0, 1).expand(2, -1, -1, -1).to(device)
    crf = trained(device)
    expected = crf(unary, image)
    other = COPIES[way](crf).to(device)
    assert torch.equal(other(unary, image), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 1
    assert torch.equal(crf(unary, image), expected)


def test_precision_and_device_of_a_module(device: torch.device) -> None:
    unary = noise(2, 16, 20).to(device)
    image = torch.from_numpy(pattern_image(16, 20)).permute(2, 0, 1).to(device)
    crf = trained(device)
    expected = crf(unary, image)
    double = copy.deepcopy(crf).double()
    assert all(parameter.dtype == DOUBLE for parameter in double.parameters())
    # The parameters are float32 numbers in either; exp and products of them are rounded there.
    torch.testing.assert_close(double(unary, image), expected, rtol=1e-4, atol=1e-4)
    single = copy.deepcopy(double).float().to("cpu")
    assert torch.equal(
        single(unary.cpu().float(), image.cpu()), copy.deepcopy(crf).cpu()(unary.cpu().float(), image.cpu())
    )
    assert "sxy=2.0" in repr(crf) and "num_classes=2" in repr(crf)


def test_autocast_changes_nothing(device: torch.device) -> None:
    unary = noise(2, 3, 16, 20, dtype=torch.float32).to(device)
    image = torch.from_numpy(pattern_image(16, 20)).permute(2, 0, 1).expand(2, -1, -1, -1).to(device)
    matrix = torch.diag(torch.tensor([-3.0, -4.0, -5.0])) + 0.1
    for crf in (DenseCRF(3, [Bilateral(8, 20, matrix)]), DenseCRF(3, [Bilateral(8, 20, matrix)], trainable=True)):
        expected = crf(unary, image)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            assert torch.equal(crf(unary, image), expected)
            half = crf(unary.bfloat16(), image)
        assert half.dtype == torch.bfloat16
        assert torch.equal(half, crf(unary.bfloat16(), image))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_training(dtype: torch.dtype, device: torch.device) -> None:
    unary = noise(2, 2, 16, 20, dtype=torch.float32).to(device)
    image = torch.from_numpy(pattern_image(16, 20)).permute(2, 0, 1).expand(2, -1, -1, -1).to(device)
    crf = trained(device)
    leaf, half = unary.clone().requires_grad_(), unary.to(dtype).requires_grad_()
    crf(leaf, image).square().sum().backward()
    expected = [leaf.grad, *(parameter.grad.clone() for parameter in crf.parameters())]
    crf.zero_grad()
    leaf.grad = None
    with torch.autocast(device.type, dtype=dtype):
        loss = crf(leaf, image).square().sum()
        q = crf(half, image)
    loss.backward()
    # The CRF itself runs as without autocast: what differs is the sum behind it, where autocast may choose.
    for gradient, other in zip([leaf.grad, *(parameter.grad for parameter in crf.parameters())], expected):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)
    assert q.dtype == dtype
    q.float().sum().backward()
    assert half.grad.dtype == dtype and half.grad.isfinite().all()
