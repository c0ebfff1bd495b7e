"""`CRFRNN` against the paper's equations in numpy, and what every layer must survive."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DOUBLE, noise
from torch import Tensor, nn

from densecrf_cuda import CRFRNN, reference

BANDWIDTHS: dict[str, Any] = {"alpha": 6.0, "beta": 40.0, "gamma": 2.0}
Filter = Callable[[np.ndarray], np.ndarray]  # [N, C] to [N, C]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(0))
    return e / e.sum(0)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max(0) - np.log(np.exp(x - x.max(0)).sum(0))


def crf_rnn_model(
    logits: np.ndarray, filters: tuple[Filter, Filter], matrices: tuple[np.ndarray, ...], iterations: int
) -> np.ndarray:
    """Algorithm 1 of Zheng et al. in float64 for logits [C, N]: log-probabilities."""
    (spatial, bilateral, compatibility), x = matrices, logits
    norms = [f(np.ones((logits.shape[1], 1))) for f in filters]
    for _ in range(iterations):
        q = softmax(x)
        passed = [(f(q.T) / norm).T for f, norm in zip(filters, norms)]
        x = logits - compatibility @ (spatial @ passed[0] + bilateral @ passed[1])
    return log_softmax(x)


def features_of(image: np.ndarray) -> list[np.ndarray]:
    """Features [N, 2] and [N, 5] of an image [3, H, W], divided by BANDWIDTHS."""
    y, x = np.meshgrid(*map(np.arange, image.shape[1:]), indexing="ij")
    xy = np.stack([x.ravel(), y.ravel()], 1).astype(float)
    colours = image.reshape(3, -1).T
    bilateral = np.hstack([xy / BANDWIDTHS["alpha"], colours / BANDWIDTHS["beta"]])
    return [xy / BANDWIDTHS["gamma"], bilateral]


def dense_filters(image: np.ndarray) -> tuple[Filter, Filter]:
    def gaussian(f: np.ndarray) -> Filter:
        kernel = np.exp(-((f[:, None] - f[None]) ** 2).sum(2) / 2)
        return lambda values: kernel @ values

    spatial, bilateral = map(gaussian, features_of(image))
    return spatial, bilateral


def lattice_filters(image: np.ndarray) -> tuple[Filter, Filter]:
    def lattice(f: np.ndarray) -> Filter:
        guide, grid = torch.from_numpy(np.ascontiguousarray(f.T))[None], list(image.shape[1:])
        tensors = reference.lattice_build(guide, torch.ones(f.shape[1], dtype=DOUBLE), grid, False, 6 * len(f))

        def run(values: np.ndarray) -> np.ndarray:
            columns = torch.from_numpy(np.ascontiguousarray(values))[None]
            return reference.lattice_filter(columns, None, None, None, tensors, grid, False)[0].numpy()

        return run

    spatial, bilateral = map(lattice, features_of(image))
    return spatial, bilateral


def perturbed(device: torch.device, classes: int = 3, **settings: Any) -> CRFRNN:
    """A layer in double precision whose matrices are neither diagonal nor symmetric."""
    layer = CRFRNN(classes, **BANDWIDTHS | {"spatial_weight": 1, "bilateral_weight": 2} | settings).double()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter += 0.2 * noise(parameter.numel(), seed=seed).reshape(parameter.shape)
    return layer.to(device)


def example(device: torch.device, *batch: int, grid: tuple[int, int] = (7, 9)) -> tuple[Tensor, Tensor]:
    return noise(*batch, 3, *grid).to(device), 128 + 50 * noise(*batch, 3, *grid, seed=2).to(device)


@pytest.mark.parametrize("filter", ["lattice", "dense"])
def test_equations_of_the_paper(filter: str, device: torch.device) -> None:
    layer = perturbed(device, filter=filter, iterations=4, eval_iterations=7)
    logits, image = example(device)
    matrices = tuple(
        p.detach().cpu().numpy() for p in (layer.spatial.weight, layer.bilateral.weight, layer.compatibility)
    )
    filters = (lattice_filters if filter == "lattice" else dense_filters)(image.cpu().numpy())
    flat = logits.cpu().numpy().reshape(3, -1)
    for mode, iterations in (("train", 4), ("eval", 7)):
        expected = crf_rnn_model(flat, filters, matrices, iterations)
        assert np.abs(expected - log_softmax(flat)).max() > 0.1  # the CRF does something
        getattr(layer, mode)()
        for context in (torch.enable_grad, torch.no_grad):  # unrolled, and the fused operator
            with context():
                got = layer(logits, image).detach().cpu().numpy().reshape(3, -1)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)  # float64; rounding through 7 iterations
        np.testing.assert_allclose(np.exp(got).sum(0), 1, rtol=0, atol=1e-12)


def test_initial_values_are_those_of_the_paper() -> None:
    layer = CRFRNN(4)
    assert layer.bilateral.bandwidths == {"sxy": 160, "srgb": 3} and layer.spatial.bandwidths == {"sxy": 3}
    assert torch.equal(layer.spatial.weight, 3 * torch.eye(4))
    assert torch.equal(layer.bilateral.weight, 5 * torch.eye(4))
    assert torch.equal(layer.compatibility, -torch.eye(4))
    assert {name for name, _ in layer.named_parameters()} == {"spatial.weight", "bilateral.weight", "compatibility"}
    assert (layer.iterations, layer.eval_iterations) == (5, 10)
    per_class = CRFRNN(3, weights="diagonal", spatial_weight=[1, 2, 3], trainable=True)
    assert per_class.spatial.weight.tolist() == [1, 2, 3]
    assert {"spatial.log_sxy", "bilateral.log_sxy", "bilateral.log_srgb"} < dict(per_class.named_parameters()).keys()
    assert list(CRFRNN(3, trainable=False).parameters()) == []


@pytest.mark.parametrize("settings", [{}, {"weights": "diagonal"}, {"filter": "dense"}, {"checkpoint": True}])
def test_gradients(settings: dict[str, Any], device: torch.device) -> None:
    layer = perturbed(device, trainable=True, iterations=2, **settings)
    logits, image = example(device, 2, grid=(3, 4))
    names = [name for name, _ in layer.named_parameters()]

    def run(logits: Tensor, image: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (logits, image))

    leaves = [t.detach().clone().requires_grad_() for t in (logits, image, *layer.parameters())]
    gradients = torch.autograd.grad(run(*leaves).square().sum(), leaves)
    assert len(leaves) == 2 + 3 + 3 and all(gradient.abs().max() > 0 for gradient in gradients)
    assert torch.autograd.gradcheck(run, leaves)


def test_a_batch_gives_what_its_images_give(device: torch.device) -> None:
    layer = perturbed(device).float()
    logits, image = (tensor.float() for tensor in example(device, 3))
    with torch.no_grad():
        together = layer(logits, image)
        assert all(torch.equal(together[b], layer(logits[b], image[b])) for b in range(3))
    layer(logits, image).square().sum().backward()
    whole = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    for b in range(3):
        layer(logits[b], image[b]).square().sum().backward()
    for parameter, gradient in zip(layer.parameters(), whole):
        # sums over images in another order, float32
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_scores_of_any_size_stay_finite(device: torch.device) -> None:
    # exp underflows from -104 on in float32; scores of a diverged network are larger by far.
    for scale in (1e2, 1e6, 1e30):
        layer = CRFRNN(3, **BANDWIDTHS).to(device)
        logits, image = (tensor.float() for tensor in example(device, 1))
        logits = (scale * logits).requires_grad_()
        log_q = layer(logits, image)
        loss = nn.functional.nll_loss(log_q, torch.zeros(1, 7, 9, dtype=torch.long, device=device))
        loss.backward()
        assert log_q.isfinite().all() and loss.isfinite() and logits.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_a_forbidden_label_stays_forbidden(device: torch.device) -> None:
    logits, image = (tensor.float() for tensor in example(device))
    logits[0, 2:4] = -torch.inf
    q = CRFRNN(3, **BANDWIDTHS).to(device)(logits, image).exp()
    assert (q[0, 2:4] == 0).all() and q.isfinite().all()


@pytest.mark.filterwarnings("ignore:::torch")  # torch's compiler warns of torch
def test_compiled(device: torch.device) -> None:
    layer = perturbed(device, iterations=2, trainable=True).float()
    inputs = [tensor.float().requires_grad_() for tensor in example(device, 2)]
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    parameters = list(layer.parameters())
    results = [run(*inputs) for run in (layer, compiled)]
    gradients = [torch.autograd.grad(result.square().sum(), [*inputs, *parameters]) for result in results]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    for got, expected in zip(gradients[1], gradients[0]):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    torch._dynamo.reset()


def test_autocast_and_half(device: torch.device) -> None:
    layer = perturbed(device).float()
    logits, image = (tensor.float() for tensor in example(device, 1))
    expected = layer(logits, image)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(layer(logits, image), expected)
    half = layer(logits.bfloat16(), image)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, layer(logits.bfloat16().float(), image).bfloat16())


def saved_and_loaded(layer: CRFRNN) -> CRFRNN:
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    fresh = CRFRNN(3, trainable=True)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    return fresh


COPIES: dict[str, Callable[[CRFRNN], CRFRNN]] = {
    "state_dict": saved_and_loaded,
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_give_the_same_results(way: str) -> None:
    layer = perturbed(torch.device("cpu"), trainable=True).float()
    logits, image = (tensor.float() for tensor in example(torch.device("cpu")))
    expected = layer(logits, image)
    other = COPIES[way](layer)
    assert torch.equal(other(logits, image), expected)
    with torch.no_grad():
        other.compatibility += 1
    assert torch.equal(layer(logits, image), expected)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1: a softmax over one label"):
        CRFRNN(1)
    for settings, message in [
        ({"weights": "full"}, "weights must be 'matrix' or 'diagonal', got 'full'"),
        ({"filter": "fast"}, "filter must be 'lattice' or 'dense', got 'fast'"),
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
        ({"eval_iterations": -2}, "eval_iterations must be at least 0, got -2"),
        ({"beta": 0}, "beta must be positive and finite, got 0"),
        ({"trainable": "weight"}, "trainable must be .*, got 'weight'"),
        ({"spatial_weight": [1.0, 2.0]}, r"spatial_weight must be .* for 3 classes, got shape \(2,\)"),
        ({"bilateral_weight": float("nan")}, "bilateral_weight must be finite, got NaN"),
        ({"bilateral_weight": torch.eye(3)}, r"bilateral_weight must be a number or 3, .*, got shape \(3, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            CRFRNN(3, **settings)
    layer, image = CRFRNN(3), torch.zeros(3, 4, 5)
    with pytest.raises(ValueError, match=r"logits must be \[B, 3, \*spatial\] .*, got \(2, 4, 5\)"):
        layer(torch.zeros(2, 4, 5), image)
    with pytest.raises(ValueError, match=r"image must have the spatial shape of logits.*width and height look swapped"):
        layer(torch.zeros(3, 5, 4), image)
    with pytest.raises(TypeError, match=r"logits must have a floating dtype, got torch\.int64"):
        layer(torch.zeros(3, 4, 5, dtype=torch.long), image)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"logits must be neither NaN nor .infinity, got {value}"):
            layer(torch.full((3, 4, 5), value), image)
    with pytest.raises(ValueError, match="needs an image, got none"):
        layer(torch.zeros(3, 4, 5), None)
