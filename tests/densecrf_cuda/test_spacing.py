"""The spacing of pixels in a module: copies, other volumes, the cache of lattices, training, bad input.

That it means what it should is in test_grids.py.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import levels, noise
from torch import Tensor

from densecrf_cuda import Bilateral, DenseCRF, Gaussian, clear_lattice_cache
from densecrf_cuda.lattice_cache import _entries

GRID = (4, 6, 8)


def problem(device: torch.device) -> tuple[Tensor, Tensor]:
    """Energies [3, D, H, W] and an image [2, D, H, W] of a few grey levels."""
    return noise(3, *GRID).to(device), levels(1, 2, 192).reshape(2, *GRID).double().to(device)


def spaced(trainable: Any = False) -> DenseCRF:
    kernels = [Gaussian(3, 2, spacing=(0.5, 1, 2)), Bilateral((2.5, 2, 4), 30, 3, spacing=0.8)]
    return DenseCRF(3, kernels, iterations=2, trainable=trainable, spatial_dims=3)


def saved_and_loaded(crf: DenseCRF) -> DenseCRF:
    buffer = io.BytesIO()
    torch.save(crf.state_dict(), buffer)
    buffer.seek(0)
    names = {name.split(".")[-1] for name, _ in crf.named_parameters()}
    fresh = DenseCRF(
        3,
        [Gaussian(1, 0), Bilateral((1, 1, 1), 1, 0)],
        iterations=2,
        trainable="bandwidths" if "log_sxy" in names else False,
        spatial_dims=3,
    )
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    return fresh


COPIES: dict[str, Callable[[DenseCRF], DenseCRF]] = {
    "state_dict": saved_and_loaded,
    "deepcopy": copy.deepcopy,
    "pickle": lambda crf: pickle.loads(pickle.dumps(crf)),
}


@pytest.mark.parametrize("trainable", [False, "bandwidths"])
@pytest.mark.parametrize("way", COPIES)
def test_copies_keep_the_spacing(way: str, trainable: Any, device: torch.device) -> None:
    unary, image = problem(device)
    crf = spaced(trainable)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter += 0.1
        other = COPIES[way](crf)
        assert torch.equal(other(unary, image), crf(unary, image))
    assert [kernel.spacing for kernel in other.kernels] == [(0.5, 1.0, 2.0), 0.8]
    assert "spacing=(0.5, 1.0, 2.0)" in repr(other) and "spacing=0.8" in repr(other)


def test_spacing_of_the_next_volume(device: torch.device) -> None:
    unary, image = problem(device)
    crf = spaced()
    before = crf(unary, image)
    crf.kernels[0].spacing = (1, 1, 3)
    crf.kernels[1].spacing = torch.tensor([1.0, 1.0, 3.0])
    kernels = [Gaussian(3, 2, spacing=(1, 1, 3)), Bilateral((2.5, 2, 4), 30, 3, spacing=(1, 1, 3))]
    after = crf(unary, image)
    assert torch.equal(after, DenseCRF(3, kernels, iterations=2, spatial_dims=3)(unary, image))
    assert not torch.equal(after, before)
    with pytest.raises(ValueError, match="spacing must be positive and finite, got 0"):
        crf.kernels[0].spacing = (1, 1, 0)
    assert crf.kernels[0].spacing == (1.0, 1.0, 3.0)


def test_lattices_are_kept_by_their_bandwidths_in_pixels(device: torch.device) -> None:
    clear_lattice_cache()
    unary, _ = problem(device)
    for kernel in (Gaussian(4, 2, spacing=(1, 1, 2)), Gaussian((8, 8, 4), 2, spacing=2), Gaussian((4, 4, 2), 2)):
        DenseCRF(3, [kernel], spatial_dims=3)(unary)
        assert [key.widths for key in _entries] == [(4.0, 4.0, 2.0)]
    DenseCRF(3, [Gaussian(4, 2)], spatial_dims=3)(unary)
    assert len(_entries) == 2
    clear_lattice_cache()


@pytest.mark.parametrize("filter", ["lattice", "dense"])
def test_trained_bandwidths_are_in_units_of_the_spacing(filter: str, device: torch.device) -> None:
    unary, image = problem(device)
    spacing = (0.5, 1.0, 2.0)

    def gradients(kernel: Bilateral) -> list[Tensor]:
        crf = DenseCRF(3, [kernel], iterations=2, trainable="bandwidths", filter=filter, spatial_dims=3)
        crf(unary, image)[0].square().sum().backward()
        return [parameter.grad for parameter in crf.parameters()]

    shared = gradients(Bilateral(3, 30, 3, spacing=spacing))
    each = gradients(Bilateral([3 / step for step in spacing], 30, 3))
    # A logarithm does not see the unit, and one number for all axes collects the gradients of each. float32 parameters.
    torch.testing.assert_close(shared[0], each[0].sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(shared[1], each[1], rtol=1e-5, atol=0)
    assert shared[0].abs() > 1e-6


def test_compiled_code_has_the_spacing() -> None:
    unary, image = (tensor.float() for tensor in problem(torch.device("cpu")))
    torch._dynamo.reset()
    try:
        crf = spaced()
        assert torch.equal(torch.compile(crf, fullgraph=True, backend="eager")(unary, image), crf(unary, image))
    finally:
        torch._dynamo.reset()


# --- bad input ---


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Gaussian(3, spacing=0), ValueError, "spacing must be positive and finite, got 0"),
        (lambda: Gaussian(3, spacing=(1, 1, -2)), ValueError, "spacing must be positive and finite, got -2"),
        (lambda: Bilateral(3, 9, spacing=(1, math.nan)), ValueError, "spacing must be positive and finite, got nan"),
        (lambda: Bilateral(3, 9, spacing="1 mm"), TypeError, "spacing must be a number .* got '1 mm'"),
        (
            lambda: DenseCRF(2, [Gaussian(3, spacing=(1, 2))], spatial_dims=3)(torch.zeros(2, 3, 4, 5)),
            ValueError,
            "spacing must be a number or 3 numbers, one per dimension, got 2",
        ),
        (
            lambda: DenseCRF(2, [Gaussian(3, spacing=1e7)])(torch.zeros(2, 4, 5)),
            ValueError,
            r"key coordinates must stay below 2\^20",
        ),
        (
            lambda: DenseCRF(2, [Gaussian(3)])(torch.zeros(2, 3, 4, 5)),
            ValueError,
            r"got \(2, 3, 4, 5\): spatial_dims=3 would take \(3, 4, 5\) as one grid",
        ),
        (
            lambda: DenseCRF(2, [Gaussian(3)])(torch.zeros(2, 9)),
            ValueError,
            r"got shape \(2, 9\): spatial_dims=1 would",
        ),
        (
            lambda: DenseCRF(2, [Gaussian(3)])(torch.zeros(2, 2, 3, 4, 5, 6)),
            ValueError,
            r"got shape \(2, 2, 3, 4, 5, 6\): spatial_dims=5 would",
        ),
    ],
)
def test_bad_spacing_and_grids(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
